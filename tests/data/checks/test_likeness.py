"""Near-identical responses: by text, by tokens, by letters; and what differs enough."""

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import edges_of
from rmtrain.data.checks import duplicates as near_duplicates
from rmtrain.data.checks.duplicates import find_near_identical
from rmtrain.data.text.tokenizer import prepared
from tests.edges import prepared_rows, row
from tests.helpers import bert_like, byte_bpe, pairs

LONG = "The quick brown fox jumps over the lazy dog, and then it sleeps under the old oak tree. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def found(folder: Path, tokenizer: PreTrainedTokenizerFast, *sides: tuple[str, str]) -> dict[int, str]:
    rows = [row(f"question {number}", chosen, rejected) for number, (chosen, rejected) in enumerate(sides)]
    data = prepared_rows(folder, tokenizer, rows)[0].train
    assert len(data) == len(sides), "guard: none is dropped"
    return dict(find_near_identical(data, edges_of(data), tokenizer))


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("Paris  is the CAPITAL.", "paris is the capital.", "the same text but for case and spacing"),
        ("Yes.", "yes", "the same letters and digits; only case, spacing and punctuation differ"),
        ("1,000 men", "1000 men", "the same letters and digits; only case, spacing and punctuation differ"),
        ("你好，世界", "你好世界！", "the same letters and digits; only case, spacing and punctuation differ"),
        (LONG + "Yes", LONG + "No", r"9\d % of the tokens are the same"),
    ],
)
def test_what_is_nearly_the_same_is_found_with_the_reason(
    chosen: str, rejected: str, why: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    reasons = found(tmp_path, tokenizer, ("bread", "water"), (chosen, rejected))
    assert list(reasons) == [1]
    assert re.fullmatch(why, reasons[1])


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Yes", "No"),
        ("1.5", "15"),
        ("-5", "5"),
        ("5 %", "5"),
        ("It is 3.", "It is 8."),
        ("!!!", "???"),
        ("good \N{THUMBS UP SIGN}", "good \N{THUMBS DOWN SIGN}"),
        ("कि", "की"),
        ("What is the capital of France?", "How do I bake bread? Mix flour, water, salt."),
    ],
)
def test_what_differs_in_meaning_is_not(chosen: str, rejected: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert found(tmp_path, tokenizer, (chosen, rejected)) == {}


def test_another_order_of_the_same_tokens_says_so(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    words = [f" {word}" for word in ["fox", "dog", "oak", "river", "bread", "flour", "salt", "water", "yeast", "joke"]]
    reasons = found(tmp_path, tokenizer, ("ok" + "".join(words), "ok" + "".join(reversed(words))))
    assert reasons == {0: "the same tokens in another order"}


def test_only_so_many_are_compared_as_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [(f"Yes {number}.", f"yes {number}") for number in range(5)]
    assert len(found(tmp_path / "all", tokenizer, *sides)) == 5
    monkeypatch.setattr(near_duplicates, "DECODED", 3)
    assert len(found(tmp_path / "three", tokenizer, *sides)) == 3


def test_responses_of_a_larger_comparison_are_compared_where_a_preference_is(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row("q", "Paris!", "London"), row("q", "London", "Rome."), row("q", "Paris!", "paris")]
    data = prepared_rows(tmp_path, tokenizer, rows, group_by_prompt=True)[0].train
    assert data.response_counts.tolist() == [4], "guard: one comparison"
    ((edge, _),) = find_near_identical(data, edges_of(data), tokenizer)
    assert data[0].preferences[edge].winner == 0


def test_a_clean_file_has_none_whatever_the_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, one in (("bpe", tokenizer), ("bert", prepared(bert_like(), "simple_chat"))):
        data = prepared_rows(tmp_path / name, one, pairs(50))[0].train
        assert find_near_identical(data, edges_of(data), one) == []
        assert np.all(data.response_counts == 2)
