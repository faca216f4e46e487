from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from rmtrain.data.artifact import export_columns
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.data.prepare import prepare, prepare_evaluation
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from rmtrain.recipe.schema import TokenizedSource
from tests.data.stored.test_artifact import COMPARISONS, write
from tests.helpers import byte_bpe, data_of, pairs, write_jsonl


def test_the_seed_columns_are_written_and_read_back_as_the_same_data(tmp_path: Path) -> None:
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
    ("row", "words"),
    [
        (COMPARISONS[2], "ranked:2: 3 responses"),
        (replace(COMPARISONS[0], preferences=(Preference(0, 1), Preference(1, 0))), "hh:0: preferences that weigh 2"),
        (replace(COMPARISONS[0], preferences=(Preference(0, 1, weight=3.0),)), "hh:0: preferences that weigh 3"),
    ],
)
def test_more_than_a_pair_has_no_columns(tmp_path: Path, row: TokenizedComparison, words: str) -> None:
    with pytest.raises(
        DataError, match=f"^{words}; a chosen and a rejected column hold one pair, so export pairs, neither gathered nor ranked$"
    ):
        export_columns(write(tmp_path / "rows.arrow", [COMPARISONS[1:2], [row]]), tmp_path / "train.parquet")
    assert not (tmp_path / "train.parquet").exists()


def test_an_empty_split_gives_a_file_without_rows(tmp_path: Path) -> None:
    assert pq.read_table(export_columns(write(tmp_path / "rows.arrow", []), tmp_path / "eval.parquet")).num_rows == 0
