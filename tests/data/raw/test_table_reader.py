import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rmtrain.data.rows.readers import Malformed, read_csv, read_dataset, read_parquet
from rmtrain.errors import DataError

CSV = 'prompt,chosen,margin\n"two\nlines, quoted ""so""",yes,0.5\np,,\nq,NA,high\n'


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_cells_are_text_and_named_numbers_are_numbers(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(CSV.encode()) if name.endswith(".gz") else CSV.encode())
    assert list(read_csv(file, {"margin"})) == [
        {"prompt": 'two\nlines, quoted "so"', "chosen": "yes", "margin": 0.5},
        {"prompt": "p", "chosen": "", "margin": None},
        {"prompt": "q", "chosen": "NA", "margin": "high"},
    ]


def test_a_csv_row_of_another_width_is_told_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('a,b\n"1\n1",2\n3\n4,5,6\n7,8\n')
    assert list(read_csv(file, set())) == [
        {"a": "1\n1", "b": "2"},
        Malformed("rows.csv:4: 1 cells, but the header has 2"),
        Malformed("rows.csv:5: 3 cells, but the header has 2"),
        {"a": "7", "b": "8"},
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,a\n1,2\n", ":1: a column name is there twice: a, a"),
        (b'a,b\n1,2\n"open,3\n', "not CSV in UTF-8: unexpected end of data"),
        (b"a,b\n1,\xff\n", "not CSV in UTF-8: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_csv_that_cannot_be_followed_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_csv(file, set()))
    assert problem in str(error.value)
    assert str(file) in str(error.value)


MIXED = [
    {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "hm"}], "margin": None},
    {"chosen": [{"role": "user", "content": "q"}], "margin": 1.0},
]
CLEAN = [{"chosen": MIXED[0]["chosen"], "margin": None}, {"chosen": MIXED[1]["chosen"], "margin": 1.0}]


def test_trap_16_keys_that_arrow_adds_to_structs_are_gone_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(MIXED), file)
    assert pq.read_table(file).to_pylist()[1]["chosen"][0] == {"role": "user", "content": "q", "thinking": None}, (
        "guard: Arrow adds"
    )
    assert list(read_parquet(file)) == CLEAN
    assert list(read_dataset(Dataset.from_list(MIXED))) == CLEAN


def test_lists_without_structs_come_as_they_are() -> None:
    rows = [{"ids": [1, 2, 3]}, {"ids": []}, {"ids": None}]
    assert list(read_dataset(Dataset.from_list(rows))) == rows


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"rows.parquet: not Parquet: "):
        list(read_parquet(file))
