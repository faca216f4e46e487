import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.readers import Meter
from rmtrain.recipe.schema import PairSource
from tests.helpers import pairs, write_jsonl

ROWS = pairs(6000)


def write(folder: Path, name: str) -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".csv"):
        path.write_text(
            "prompt,chosen,rejected\n" + "".join(",".join(f'"{cell}"' for cell in row.values()) + "\n" for row in ROWS)
        )
    elif name == "saved":
        Dataset.from_list(ROWS).save_to_disk(str(path))
    elif name == "folder":
        path.mkdir()
        for number in range(3):
            write_jsonl(path / f"train-{number}.jsonl", ROWS[2000 * number : 2000 * (number + 1)])
    else:
        path.write_text(json.dumps(ROWS) if name.endswith(".json") else text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "saved", "folder"])
def test_the_share_grows_with_the_rows_and_ends_at_the_whole(tmp_path: Path, name: str) -> None:
    meter = Meter()
    assert meter.share is None
    shares = []
    for number, _ in read_rows(PairSource(path=str(write(tmp_path, name))), meter):
        if number % 1500 == 1499:
            shares.append(meter.share)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.2), shares
    assert shares == sorted(shares)
    assert meter.share == pytest.approx(1.0, abs=0.001)


def test_it_can_be_asked_after_the_reading_was_broken_off(tmp_path: Path) -> None:
    meter = Meter()
    rows = read_rows(PairSource(path=str(write(tmp_path, "rows.jsonl")), limit=10), meter)
    assert len(list(rows)) == 10
    assert meter.share is not None


def test_an_empty_file_has_no_share(tmp_path: Path) -> None:
    meter = Meter()
    assert list(read_rows(PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", []))), meter)) == []
    assert meter.share is None
