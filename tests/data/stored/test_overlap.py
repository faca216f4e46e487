"""Prompts that are trained on and evaluated: told by row, to the letter or not, with their responses or without."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.prepare import Overlap, PreparedData, check_overlap, overlap
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, pairs, write_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def both(
    folder: Path, tokenizer: PreTrainedTokenizerFast, train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> PreparedData:
    folder.mkdir(exist_ok=True)
    source = PairSource(path=str(write_jsonl(folder / "test.jsonl", test)))
    return prepared_rows(folder, tokenizer, train, eval=[source], allow_overlap=True)[0]


def test_trap_12_overlap_is_told_by_row_exact_or_normalised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = [row("one?", "a", "b"), row("Two?", "a", "b"), row("two?", "c", "d"), row("three?", "a", "b")]
    test = [row("new?", "a", "b"), row("two?", "e", "f"), row(" ONE?", "B", "a"), row("three?", "b", "a")]
    made = both(tmp_path, tokenizer, train, test)
    assert overlap(made.train, made.eval) == [
        Overlap(evaluated=1, trained=2, exact=True, responses_too=False),
        Overlap(evaluated=2, trained=0, exact=False, responses_too=True),
        Overlap(evaluated=3, trained=3, exact=True, responses_too=True),
    ]
    with pytest.raises(DataError) as error:
        check_overlap(made.overlap, made.eval)
    assert error.value.exit_code == 3
    assert str(error.value) == (
        "3 of 4 evaluation rows have a prompt that is also trained on: test:1, test:2, test:3; remove them, "
        "or set data.allow_overlap (to the letter 2, but for case and spacing 1)"
    )


def test_what_does_not_overlap_passes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = both(tmp_path, tokenizer, pairs(5), [row("other?", "a", "b")])
    check_overlap(made.overlap, made.eval)
    nothing = prepared_rows(tmp_path / "alone", tokenizer, pairs(5))[0]
    check_overlap(nothing.overlap, nothing.eval)
    assert overlap(nothing.eval, nothing.train) == []
    assert len(overlap(nothing.train, nothing.train)) == 5, "guard: it would be found"


def test_many_rows_are_counted_and_the_first_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = both(tmp_path, tokenizer, pairs(9), pairs(9))
    with pytest.raises(DataError, match=r"^9 of 9 .*: test:0, test:1, test:2, test:3, test:4 and 4 more; remove them"):
        check_overlap(made.overlap, made.eval)
