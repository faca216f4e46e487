"""Tokenized comparisons on disk, and their export as columns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from rmtrain.commands.preprocess import export_columns
from rmtrain.data.artifact import SCHEMA, StoredRow, TokenizedData, record_batch
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison
from rmtrain.data.prepare import prepare, prepare_evaluation
from rmtrain.data.text.tokenizer import prepared
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import DataError
from rmtrain.recipe.schema import TokenizedSource
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl

RANKED = (Preference(0, 1, 0.5, 0.9, 2.0), Preference(0, 2), Preference(1, 2, margin=0.25))
COMPARISONS = [
    TokenizedComparison("hh:0", "hh", ([1, 2, 3, 9], [1, 2, 4, 5, 9]), 2, 1),
    TokenizedComparison("hh:7", "hh", ([7, 9], [8, 8, 9]), 0, 0, (Preference(0, 1, margin=0.1),)),
    TokenizedComparison("ranked:2", "ranked", ([1, 2, 3, 9], [1, 2, 9], [1, 2, 6, 6, 9]), 2, 2, RANKED),
    TokenizedComparison("hh:9", "hh", ([70000, 9], [5, 9]), 0, 0, cut=(3, 3)),
]


def stored(comparison: TokenizedComparison, number: int) -> StoredRow:
    return StoredRow(comparison, 2**63 + number, [2**64 - 1 - place for place in range(len(comparison.sequences))])


def write(path: Path, batches: list[list[TokenizedComparison]]) -> TokenizedData:
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(record_batch([stored(comparison, number) for number, comparison in enumerate(batch)]))
    return TokenizedData(path, "key", Waterfall())


@pytest.mark.parametrize("batches", [[COMPARISONS], [COMPARISONS[:1], COMPARISONS[1:]], [[row] for row in COMPARISONS]])
def test_written_rows_are_read_back(tmp_path: Path, batches: list[list[TokenizedComparison]]) -> None:
    data = write(tmp_path / "rows.arrow", batches)
    assert len(data) == len(COMPARISONS)
    assert [data[index] for index in range(len(data))] == COMPARISONS
    assert list(data) == COMPARISONS
    assert data[-1] == COMPARISONS[-1]
    assert data.ids == ["hh:0", "hh:7", "ranked:2", "hh:9"]
    assert data.sources == ["hh", "hh", "ranked", "hh"]
    assert COMPARISONS[0].preferences == PAIR


def test_columns_agree_with_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS[:3], COMPARISONS[3:]])
    lengths = [[len(sequence) for sequence in row.sequences] for row in COMPARISONS]
    expected = {
        "response_counts": (np.int32, [2, 2, 3, 2]),
        "longest": (np.int32, [max(sizes) for sizes in lengths]),
        "total_tokens": (np.int64, [sum(sizes) for sizes in lengths]),
        "unique_tokens": (np.int64, [7, 5, 8, 4]),
        "prompt_lengths": (np.int32, [1, 0, 2, 0]),
        "prefix_lengths": (np.int32, [2, 0, 2, 0]),
        "lengths": (np.int32, [size for sizes in lengths for size in sizes]),
        "preference_counts": (np.int32, [1, 1, 3, 1]),
        "prompt_hashes": (np.uint64, [2**63, 2**63 + 1, 2**63 + 2, 2**63]),
    }
    for name, (dtype, values) in expected.items():
        column = getattr(data, name)
        assert column.dtype == dtype, name
        assert column.tolist() == values, name
    assert data.response_hashes.dtype == np.uint64
    assert len(data.response_hashes) == 9


def test_preference_lengths_are_those_of_their_responses(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS[:3], COMPARISONS[3:]])
    winners, losers = data.preference_lengths()
    assert winners.tolist() == [3, 2, 2, 2, 1, 2], "prompts are not counted"
    assert losers.tolist() == [4, 3, 1, 3, 3, 2]
    assert data.values("weights").tolist() == [1.0, 1.0, 2.0, 1.0, 1.0, 1.0]


def test_sequences_are_arrays_over_the_file(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS])
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int32 for row in data for ids in row.sequences)
    assert not data[0].sequences[0].flags.writeable  # type: ignore[union-attr]
    assert data[2].preferences == RANKED
    assert all(type(edge.winner) is int and type(edge.margin) is float for row in data for edge in row.preferences)


def test_a_prefix_is_stored_once(tmp_path: Path) -> None:
    write(tmp_path / "rows.arrow", [COMPARISONS])
    with pa.memory_map(str(tmp_path / "rows.arrow")) as file:
        tokens = pa.ipc.open_file(file).get_batch(0).column("tokens").to_pylist()
    assert tokens[0] == [1, 2, 3, 9, 4, 5, 9]


def test_an_index_out_of_range_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS])
    for index in (4, -5):
        with pytest.raises(IndexError, match=str(index)):
            data[index]
        with pytest.raises(IndexError):
            data.ids[index]


def test_ids_are_a_sequence(tmp_path: Path) -> None:
    ids = write(tmp_path / "rows.arrow", [COMPARISONS[:1], COMPARISONS[1:]]).ids
    assert (len(ids), ids[0], ids[-1], ids[1:3]) == (4, "hh:0", "hh:9", ["hh:7", "ranked:2"])
    assert (ids.index("ranked:2"), "hh:7" in ids, "hh:8" in ids, 7 in ids) == (2, True, False, False)
    with pytest.raises(ValueError, match="hh:8"):
        ids.index("hh:8")


def test_an_empty_split_is_empty(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [])
    assert (len(data), data.ids, data.longest.tolist(), data.total_tokens.tolist()) == (0, [], [], [])
    assert list(data) == []


def test_exported_columns_are_read_back(tmp_path: Path) -> None:
    """The four columns of the seed, read as a `tokenized` source, are the same data."""
    rows = [row | {"margin": number / 8} for number, row in enumerate(pairs(2500))]
    data = data_of(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "cache", margin="margin", allow_overlap=True)
    tokenizer = prepared(byte_bpe(), "simple_chat")
    train = prepare(data, tokenizer).train
    file = export_columns(train, tmp_path / "out" / "train.parquet")
    table = pq.read_table(file)
    assert table.column_names == [
        "input_ids_chosen", "attention_mask_chosen", "input_ids_rejected", "attention_mask_rejected", "margin", "id",
    ]  # fmt: skip
    first = table.slice(7, 1).to_pylist()[0]
    assert [first["input_ids_chosen"], first["input_ids_rejected"]] == [list(sequence) for sequence in train[7].sequences]
    assert first["attention_mask_chosen"] == [1] * len(train[7].sequences[0])
    source = TokenizedSource(path=str(tmp_path / "out"), split="train", format="tokenized", margin="margin")
    again = prepare_evaluation([source], data, tokenizer)
    assert len(again) == len(train) == 2500
    for index in (0, 1, 999, 1000, 2499):
        assert replace(again[index], source="rows", id=train[index].id, prompt_length=train[index].prompt_length) == train[index]


def test_other_tools_read_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub"))
    file = export_columns(write(tmp_path / "rows.arrow", [COMPARISONS[:2]]), tmp_path / "train.parquet")
    dataset = load_dataset("parquet", data_files=str(file), split="train")
    assert dataset[1]["input_ids_rejected"] == [8, 8, 9]
    assert dataset["margin"][:] == [0.0, 0.1]


@pytest.mark.parametrize(
    ("row", "size"),
    [
        (COMPARISONS[2], "ranked:2: 3 "),
        (replace(COMPARISONS[0], preferences=(Preference(0, 1), Preference(1, 0))), "hh:0: .* 2"),
        (replace(COMPARISONS[0], preferences=(Preference(0, 1, weight=3.0),)), "hh:0: .* 3"),
    ],
)
def test_only_pairs_can_be_exported(tmp_path: Path, row: TokenizedComparison, size: str) -> None:
    with pytest.raises(DataError, match=f"^{size}"):
        export_columns(write(tmp_path / "rows.arrow", [COMPARISONS[1:2], [row]]), tmp_path / "train.parquet")
    assert not (tmp_path / "train.parquet").exists()


def test_an_empty_split_exports_no_rows(tmp_path: Path) -> None:
    assert pq.read_table(export_columns(write(tmp_path / "rows.arrow", []), tmp_path / "eval.parquet")).num_rows == 0
