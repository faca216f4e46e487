"""Odd margins and winners that say next to nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import TokenizedData, edges_of
from rmtrain.data.checks.preferences import LONG, SHORT, margin_outliers, short_winners, zero_margins
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import prepared
from rmtrain.recipe.schema import PairSource
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, pairs, write_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def with_margins(folder: Path, tokenizer: PreTrainedTokenizerFast, *margins: float, **settings: Any) -> TokenizedData:
    rows = [{**one, "m": margin} for one, margin in zip(pairs(len(margins)), margins, strict=True)]
    return prepared_rows(folder, tokenizer, rows, margin="m", **settings)[0].train


def test_zero_margin_among_other_margins(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = with_margins(tmp_path / "some", tokenizer, 1.0, 0.0, 2.0)
    assert [edge for edge, _ in zero_margins(data, edges_of(data))] == [1]
    for name, margins in (("none", (0.0, 0.0, 0.0)), ("all", (1.0, 2.0, 1.0))):
        data = with_margins(tmp_path / name, tokenizer, *margins)
        assert zero_margins(data, edges_of(data)) == []


def test_margin_far_above_others_is_outlier(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    usual = [1.0, 2.0, 3.0, 4.0] * 5
    data = with_margins(tmp_path / "far", tokenizer, *usual, 100.0)
    ((edge, detail),) = margin_outliers(data, edges_of(data))
    assert edge == 20
    assert all(number in detail for number in ("100", "2 to 4"))
    data = with_margins(tmp_path / "near", tokenizer, *usual, 20.0)
    assert margin_outliers(data, edges_of(data)) == []
    data = with_margins(tmp_path / "equal", tokenizer, *([1.0] * 20), 100.0)
    assert margin_outliers(data, edges_of(data)) == [], "without a spread there is nothing to be far from"


def test_margins_are_compared_within_their_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    large = [{**one, "prompt": f"large {one['prompt']}", "m": 1000.0 + number} for number, one in enumerate(pairs(8))]
    plain = write_jsonl(tmp_path / "plain.jsonl", [{**one, "prompt": f"plain {one['prompt']}"} for one in pairs(3)])
    source = PairSource(path=str(write_jsonl(tmp_path / "large.jsonl", large)), margin="m")
    small = [{**one, "m": float(number % 4)} for number, one in enumerate(pairs(8))]
    data = prepared_rows(tmp_path, tokenizer, small, margin="m")[1]
    both = data.model_copy(update={"train": (*data.train, source, PairSource(path=str(plain)))})
    made = prepare(both, tokenizer).train
    assert margin_outliers(made, edges_of(made)) == []
    assert [made.ids[edge] for edge, _ in zero_margins(made, edges_of(made))] == ["rows:0", "rows:4"]


def test_short_winner_over_long_loser(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    long = "What is the capital of France? " * 20
    rows = [row("a", "I", long), row("b", long, "I"), row("c", "I", "Paris"), row("d", long, long + "no")]
    data = prepared_rows(tmp_path, tokenizer, rows)[0].train
    ((edge, detail),) = short_winners(data, edges_of(data))
    assert edge == 0
    assert re.findall(r"\d+", detail) == ["1", str(data.lengths[1] - data.prompt_lengths[0] - 1)]
    assert data.lengths[1] > LONG > SHORT
