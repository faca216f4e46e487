"""Rules that read nothing, counted against the labels."""

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.checks import preferences as baselines
from rmtrain.data.checks.preferences import RULES, label_baselines, sample_rows
from rmtrain.data.text.tokenizer import prepared
from rmtrain.intervals import wilson_interval
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, pairs


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def counted(folder: Path, tokenizer: PreTrainedTokenizerFast, *sides: tuple[str, str], **settings: Any) -> dict[str, Any]:
    rows = [row(f"question {number}", chosen, rejected) for number, (chosen, rejected) in enumerate(sides)]
    return label_baselines(prepared_rows(folder, tokenizer, rows, **settings)[0].train, tokenizer)


def tally(numbers: dict[str, Any]) -> tuple[int, int, int]:
    return numbers["wins"], numbers["losses"], numbers["ties"]


def test_longer_counts_tokens_and_ties(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    longer = counted(tmp_path, tokenizer, ("a b c d", "a"), ("a b", "c d"), ("a b c", "d"), ("d", "e f g"))["longer"]
    assert tally(longer) == (2, 1, 1)
    assert (longer["share"], longer["comparisons"]) == (2 / 3, 3)
    assert (longer["low"], longer["high"]) == pytest.approx(wilson_interval(2 / 3, 3))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("more_lines", "one\n\ntwo\nthree"),
        ("more_markdown", "# Title\ntext"),
        ("more_markdown", "- one"),
        ("more_markdown", "1. one"),
        ("more_markdown", "so **bold**"),
        ("more_markdown", "```\ncode\n```"),
        ("more_markdown", "call `this`"),
        ("refuses", "I'm sorry, but no."),
        ("refuses", "I cannot help with that."),
        ("refuses", "I apologize, that is wrong."),
        ("refuses", "As an AI language model, I have no taste."),
        ("asks_back", "Which one do you mean?"),
    ],
)
def test_each_rule_recognizes_its_text(rule: str, text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = "one two three"
    numbers = counted(tmp_path, tokenizer, (text, plain), (plain, text), (plain, "four"), (text, plain))
    assert tally(numbers[rule]) == (2, 1, 1)
    others = {name for name in RULES if name not in (rule, "longer", "more_lines")}
    assert all(tally(numbers[name]) == (0, 0, 4) for name in others)
    assert all(numbers[name]["share"] is None for name in others)


@pytest.mark.parametrize("text", ["2 * 3 * 4 = 24", "It is 3.5 - 1", "a_b_c", "Sorrow is old.", "I can help", "#hashtag"])
def test_plain_text_is_not_markdown_or_refusal(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    numbers = counted(tmp_path, tokenizer, (text, "one two"))
    assert (tally(numbers["more_markdown"]), tally(numbers["refuses"])) == ((0, 0, 1), (0, 0, 1))


@pytest.mark.parametrize("gathered", [True, False])
def test_preferences_of_a_prompt_are_not_independent(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, gathered: bool) -> None:
    """Whether they are gathered into one comparison or not."""
    rows = [
        row(f"question {n}", f"a b c {k}", "d") if n % 4 else row(f"question {n}", "d", f"a b c {k}")
        for n in range(20)
        for k in range(3)
    ]
    data = prepared_rows(tmp_path, tokenizer, rows, group_by_prompt=gathered)[0].train
    longer = label_baselines(data, tokenizer)["longer"]
    assert (tally(longer), longer["comparisons"]) == ((45, 15, 0), 20 if gathered else 60)
    assert (longer["low"], longer["high"]) == pytest.approx(wilson_interval(45 / 60, 20), abs=0.03)


def test_sample_is_the_same_in_any_order(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs(40)
    first = prepared_rows(tmp_path / "one", tokenizer, rows)[0].train
    random.Random(1).shuffle(rows)
    second = prepared_rows(tmp_path / "two", tokenizer, rows)[0].train
    prompts = [{int(data.prompt_hashes[number]) for number in sample_rows(data, 10)} for data in (first, second)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 10
    assert sample_rows(first, 99).tolist() == list(range(40))
    whole = label_baselines(first, tokenizer)
    assert whole["longer"]["wins"] + whole["longer"]["losses"] > 30, "guard: lengths differ"
    monkeypatch.setattr(baselines, "SAMPLED", 10)
    sampled = label_baselines(first, tokenizer)
    assert sampled["longer"] == whole["longer"], "lengths need no text"
    assert sum(tally(sampled["asks_back"])) == 10
