import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.builder import EncodedRows, RowEncoder, RowTask
from rmtrain.data.comparison import Comparison, Dropped, is_held_out, prompt_hash
from rmtrain.data.rows.loading import load_comparisons, read_batches
from rmtrain.data.text.tokenizer import prepared
from rmtrain.recipe.schema import PairSource
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


def test_rows_as_read_and_rows_adapted_already_give_the_same(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(30))))
    encoder = RowEncoder(tokenizer, data_of(tmp_path / "rows.jsonl", tmp_path))
    (raw,), (adapted,) = read_batches(source), load_comparisons(source)
    for holdout in (None, 0.4):
        one, other = (encoder(RowTask(rows, "rows", "train", holdout)) for rows in (raw, adapted))
        assert one.keys() == other.keys() == ({"train"} if holdout is None else {"train", "eval"})
        for split in one:
            assert one[split].stored == other[split].stored
            assert one[split].read == one[split].kept == len(one[split].stored)
        held_out = [row.id for row in adapted if isinstance(row, Comparison) and is_held_out(prompt_hash(row), holdout)]
        assert (one["eval"].stored.column("id").to_pylist() if holdout else []) == held_out


def test_rows_of_which_none_is_kept_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = RowEncoder(tokenizer, data_of(tmp_path / "rows.jsonl", tmp_path, max_length=3))
    (rows,) = load_comparisons(PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", pairs(2)))))
    lost = Dropped("rows:2", "rows", "malformed_row", "why")
    encoded = encoder(RowTask([*rows, lost], "rows", "eval", None))
    assert encoded["eval"] == EncodedRows(None, 0, [], encoded["eval"].dropped)
    assert [(row.id, row.reason) for row in encoded["eval"].dropped] == [
        ("rows:2", "malformed_row"), ("rows:0", "too_long"), ("rows:1", "too_long"),
    ]  # fmt: skip


def test_a_worker_starts_light() -> None:
    code = "import sys, rmtrain.data.builder; print([name for name in ('torch', 'datasets', 'pandas') if name in sys.modules])"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout == "[]\n"
