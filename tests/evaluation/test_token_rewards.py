"""Rewards after every token are those of the texts that end there, in every layout and kind of model; and where two responses part."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from rmtrain import RewardScorer
from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.token_rewards import Parting, TokenReader, parting
from rmtrain.model.reward_model import RewardModel, evaluating
from rmtrain.recipe.schema import Lora
from tests.comparisons import tokenized
from tests.evaluation.test_scorer import conversations
from tests.exports import tiny_export
from tests.model.builders import amplified, build, comparisons, make_tokenizer

PAD = 2
ROWS = comparisons()[2:4]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("tokens") / "model")


def beginnings(model: RewardModel, sequence: list[int]) -> list[float]:
    """The reward of each beginning of a sequence, padded, as a text of its own."""
    model.use_layout("padded")
    rows = [TokenizedComparison(str(end), "s", (sequence[:end],), 0, 0, ()) for end in range(1, len(sequence) + 1)]
    with evaluating(model):
        rewards: list[float] = model(lay_out(rows, PAD)).tolist()
    return rewards


def read(model: RewardModel, row: TokenizedComparison, layout: Layout) -> list[tuple[float | None, ...]]:
    model.use_layout(layout)
    return TokenReader(model, layout, PAD, max_tokens=64).read(row)


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_each_token_has_the_reward_of_its_beginning(architecture: str, layout: Layout) -> None:
    """Also of responses that are equal, and with a last layer that is computed only where rewards are read."""
    model = amplified(build(architecture, make_tokenizer()))
    assert model.can_restrict, "guard"
    twice = replace(ROWS[0], sequences=(*ROWS[0].sequences, ROWS[0].sequences[1]))
    for row in (twice, ROWS[1]):
        rewards = read(model, row, layout)
        expected = [beginnings(model, list(sequence)) for sequence in row.sequences]
        assert [len(own) for own in rewards] == [len(sequence) for sequence in row.sequences]
        for own, theirs in zip(rewards, expected, strict=True):
            assert own == pytest.approx(theirs, abs=2e-5)
        assert {own[: row.prefix_length] for own in rewards} == {rewards[0][: row.prefix_length]} or layout != "shared_prefix"
    assert np.ptp(expected[0]) > 0.1, "guard: rewards differ"
    assert twice.prefix_length > 0, "guard: something is shared"


def test_adapters_and_mixtures_are_read_too() -> None:
    for model in (build("llama", make_tokenizer(), lora=Lora()), build("mixtral", make_tokenizer())):
        rewards = read(amplified(model), ROWS[0], "shared_prefix")
        assert rewards[1] == pytest.approx(beginnings(model, list(ROWS[0].sequences[1])), abs=2e-5)
        assert np.ptp(rewards[1]) > 0.1, "guard: rewards differ"


@pytest.mark.parametrize(("architecture", "layout"), [("bert", "padded"), ("modernbert", "packed"), ("deberta-v2", "padded")])
def test_encoders_score_each_beginning(architecture: str, layout: Layout) -> None:
    """Rewards before the end of the prompt are left out, since each is a forward."""
    model = amplified(build(architecture, make_tokenizer()))
    row = tokenized("s:0", [7, 8, 9, 30, 31, 32, 1], [7, 8, 9, 40, 41, 1])
    rewards = read(model, row, layout)
    for own, sequence in zip(rewards, row.sequences, strict=True):
        assert own[:2] == (None, None)
        assert own[2:] == pytest.approx(beginnings(model, list(sequence))[2:], abs=2e-5)
        assert np.ptp(own[2:]) > 1e-4, "guard: rewards differ"


def test_last_reward_is_the_score(export: Path) -> None:
    """`score_tokens` ends with the reward that `score` returns, and leaves later scores the same, to the last bit."""
    scorer = RewardScorer(str(export))
    rows = conversations(2, 2)
    scores = scorer.score(rows)
    for messages, score in zip(rows, scores, strict=True):
        ids, rewards = scorer.score_tokens(messages)
        assert len(ids) == len(rewards) > 10
        assert rewards[-1] == pytest.approx(score, rel=2e-6)
        assert rewards[-1] == scorer.score([messages])[0], "alone, to the last bit"
        assert scorer.tokenizer.decode(ids[-1:]) == scorer.tokenizer.eos_token
    assert scorer.score(rows) == scores
    assert len({round(score, 3) for score in scores}) == 4, "guard: rewards differ"


def test_only_one_conversation_is_read(export: Path) -> None:
    scorer = RewardScorer(str(export))
    for wrong in (conversations(1, 1), "Hello", [{"role": "user", "content": "Why?"}]):
        with pytest.raises(DataError, match=r"^messages"):
            scorer.score_tokens(wrong)  # type: ignore[arg-type]


def test_reward_that_is_not_finite_is_named(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a token that no later one depends on, as when a product of the last layer overflows."""
    scorer, row = RewardScorer(str(export)), tokenized("s:0", [7, 8, 1], [7, 9, 1])
    read = TokenReader.read
    monkeypatch.setattr(TokenReader, "read", lambda *given: [(own[0], float("inf"), own[2]) for own in read(*given)])
    with pytest.raises(NumericError, match=r"^s:0: .* token 1 .* inf\b"):
        scorer.token_rewards(row)
    with torch.no_grad():
        scorer.model.backbone.get_input_embeddings().weight[9] = float("nan")
    scorer.layout = "packed"
    with pytest.raises(NumericError, match=r"^s:0: .* nan\b"):
        scorer.token_rewards(row)


A, B = [1, 2, 3, 4, 9], [1, 2, 5, 9]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        (((0, 0, 2, 3, 4), (0, 0, 1, 1)), Parting(2, 2)),
        (((0, 0, 1, 3, 4), (0, 0, 2, 1)), Parting(2, 3)),
        (((0, 0, 1, 0, 4), (0, 0, 2, 1)), Parting(2, 4)),
        (((0, 0, 1, 3, 4), (0, 0, 1, 1)), Parting(2, 3)),
        (((0, 0, 9, 9, 1), (0, 0, 1, 2)), Parting(2, 4)),
        (((0, 0, 9, 1, 1), (0, 0, 1, 2)), Parting(2, 3)),
        (((0, 0, 9, 1, 1), (0, 0, 1, 1)), Parting(2, None)),
    ],
    ids=["at once", "one later", "shorter has ended", "a tie", "only in the end", "loser was ahead", "equal"],
)
def test_winner_is_ahead_from_where_rewards_part(rewards: tuple[tuple[float, ...], ...], expected: Parting) -> None:
    """The shorter response keeps its reward after its end."""
    assert parting((A, B), rewards) == expected
    assert parting((B, A), rewards[::-1]) == expected
