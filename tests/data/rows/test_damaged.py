"""Damaged and hostile data files: each is refused in one line with its place, or costs only the rows that need what is damaged."""

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from rmtrain.data.rows import arrow, readers
from rmtrain.data.rows.arrow import Unreadable
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.fingerprint import Snapshot
from rmtrain.data.rows.readers import Malformed, parse
from rmtrain.data.rows.select import RawBatch, select
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import PairSource
from tests.helpers import pairs, write_jsonl

ROWS = pairs(5)
Damage = Callable[[Path], object]


def read(path: Path | str, **keys: Any) -> list[Any]:
    source = PairSource(path=str(path), **keys)
    with Snapshot([source]).unchanged():
        return [parse(row) for _, row in read_rows(source)]


def refused(path: Path | str, **keys: Any) -> str:
    """The one problem of a source that is refused."""
    with pytest.raises(DataError) as error:
        read(path, **keys)
    (problem,) = error.value.problems
    assert "\n" not in problem
    return problem


def json_of(value: Any) -> Damage:
    return lambda file: file.write_text(json.dumps(value))


def bytes_of(content: bytes) -> Damage:
    return lambda file: file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def filled(file: Path) -> None:
    """Overwrite the offsets and texts of an Arrow file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    file.write_bytes(content)


def to_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def to_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


STATE, INFO, ARROW = "state.json", "dataset_info.json", "data-00000-of-00001.arrow"
SAVED: list[tuple[str, Damage, str]] = [
    (STATE, bytes_of(b"{"), STATE),
    (STATE, bytes_of(b"[" * 100_000), STATE),
    (STATE, bytes_of(b'{"_split": "\xff"}'), STATE),
    (STATE, json_of([1]), STATE),
    (STATE, json_of({}), STATE),
    (STATE, json_of({"_data_files": {"filename": "x"}}), STATE),
    (STATE, json_of({"_data_files": [{"filename": "../one/" + ARROW}]}), STATE),
    (STATE, json_of({"_data_files": [{"filename": 3}]}), STATE),
    (STATE, json_of({"_data_files": [{"filename": "none.arrow"}]}), "none.arrow"),
    (INFO, Path.unlink, INFO),
    (INFO, bytes_of(b"{}x"), INFO),
    (INFO, to_pipe, INFO),
    (INFO, to_device, INFO),
    (ARROW, to_pipe, ARROW),
    (INFO, json_of({"features": {"prompt": {"_type": "Nonsense"}}}), "saved: "),
    (INFO, json_of({"features": 7}), "saved: "),
    (ARROW, Path.unlink, ARROW),
    (ARROW, to_device, ARROW),
    (ARROW, bytes_of(b""), "saved: "),
    (ARROW, bytes_of(b"ARROW1" * 99), "saved: "),
    (ARROW, cut, "saved: "),
    (ARROW, filled, "saved"),
]


@pytest.mark.parametrize(("name", "damage", "place"), SAVED, ids=range(len(SAVED)))
def test_damaged_saved_dataset_is_refused(tmp_path: Path, name: str, damage: Damage, place: str) -> None:
    """Each file of a folder of `save_to_disk` may be missing, damaged, or contradict the others."""
    folder = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(str(folder))
    assert read(folder) == ROWS, "guard: the folder was whole"
    damage(folder / name)
    assert f"{folder.parent}/" in refused(folder)
    assert place in refused(folder)


@pytest.mark.parametrize("splits", [7, {"train": 1}, [None], ["../other"], ["/etc"], [""]])
def test_lying_splits_of_saved_dataset(tmp_path: Path, splits: Any) -> None:
    """The splits are names of folders: no path leads out of the dataset."""
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == ROWS, "guard"
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": splits}))
    assert refused(tmp_path / "saved").startswith(f"{tmp_path}/saved/dataset_dict.json: splits: ")


def not_utf8(count: int) -> pa.Array:
    """Texts that are not UTF-8, as other programs write them."""
    offsets = pa.array(range(0, 2 * count + 1, 2), pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), count, [None, offsets, pa.py_buffer(b"\xff\xfe" * count)])


UNREADABLE = {
    "text": not_utf8(5),
    "date": pa.array([2**62] * 5, pa.timestamp("us")),
    "zone": pa.array([1] * 5, pa.timestamp("us", "Nowhere/Atlantis")),
    "duration": pa.array([2**62] * 5, pa.duration("s")),
    "nested": pa.StructArray.from_arrays([not_utf8(5)], ["a"]),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_cells_of_other_columns(tmp_path: Path, kind: str) -> None:
    """Texts that are not UTF-8 and dates out of range do no harm in a column that nobody reads."""
    table = pa.Table.from_pylist(ROWS).append_column("more", UNREADABLE[kind])
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read(tmp_path / "rows.parquet")
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert all(isinstance(row["more"], Unreadable) for row in rows), "guard"


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_cells_that_are_needed(tmp_path: Path, kind: str) -> None:
    """They cost their rows, with column and row."""
    table = pa.Table.from_pylist(ROWS).drop_columns(["chosen"]).append_column("chosen", UNREADABLE[kind])
    pq.write_table(table, tmp_path / "rows.parquet")
    source = PairSource(path=str(tmp_path / "rows.parquet"))
    with pytest.raises(DataError, match=r"^rows: the first 5 rows are all refused \(.*\): .*chosen is "):
        select(RawBatch(source, list(read_rows(source)), is_first=True))


def test_overlong_parquet_cell_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an overlong line of JSON does."""
    monkeypatch.setattr(arrow, "MAX_LINE_BYTES", 1000)
    rows = [*ROWS, {"prompt": "q", "chosen": "x" * 1001, "rejected": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    *good, bad = read(tmp_path / "rows.parquet")
    assert good == ROWS
    assert bad == {"prompt": "q", "chosen": Unreadable("longer than 1000 bytes"), "rejected": None}


def page(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:60] + b"\xff" * 30 + content[90:])


def footer(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-60] + b"\xff" * 50 + content[-10:])


@pytest.mark.parametrize("damage", [page, footer, cut, bytes_of(b"PAR1"), bytes_of(b"PAR1" * 3), bytes_of(b"\0" * 99)])
def test_damaged_parquet_is_refused(tmp_path: Path, damage: Damage) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    assert read(file) == ROWS, "guard"
    damage(file)
    assert refused(file).startswith(f"{file}: ")


def test_repeated_parquet_column_is_refused(tmp_path: Path) -> None:
    """As in CSV: which of the two was meant is not known."""
    column = pa.array(["a"] * 3)
    pq.write_table(
        pa.Table.from_arrays([column] * 4, names=["prompt", "chosen", "rejected", "chosen"]), tmp_path / "rows.parquet"
    )
    assert "prompt, chosen, rejected, chosen" in refused(tmp_path / "rows.parquet")


TEXT = "prompt,chosen,rejected\n" + "".join(f"q{n},a,b\n" for n in range(3000))


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz", "rows.json.gz"])
@pytest.mark.parametrize(
    "damage", [cut, lambda file: file.write_bytes(file.read_bytes()[:30] + b"x" * 90), bytes_of(b"\x1f\x8b\x08")]
)
def test_broken_streams_are_refused(tmp_path: Path, name: str, damage: Damage) -> None:
    file = tmp_path / name
    text = {".csv": TEXT, ".json": json.dumps(ROWS * 500), ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS * 500)}
    file.write_bytes(gzip.compress(text[Path(file.stem).suffix].encode()))
    assert len(read(file)) >= 2500, "guard"
    damage(file)
    assert refused(file).startswith(f"{file}: ")


ENDLESS = {
    "string.json": (b'[{"a": 1},\n{"b": "', b"x", ":2:7: "),
    "deep.json": (b"[\n{", b'"a":{', ":2:"),
    "quote.csv": (b'prompt,chosen\na,b\n"', b"x\n", ":3: "),
    "line.csv": (b"prompt,chosen\na,b\nc,d\n", b"x", ":4: "),
    "cells.csv": (b"prompt,chosen\n", b'"x\n",', ":2: "),
    "header.csv": (b"", b"a,", ":1: "),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_row_is_not_read_whole(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row over the limit is refused with its line, and no more than the limit is read of a stream that may be a bomb."""
    head, unit, place = ENDLESS[name]
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(readers, "MAX_ROW_CHARACTERS", 100_000)
    file = tmp_path / f"{name}.gz"
    file.write_bytes(gzip.compress(head + unit * (20_000_000 // len(unit))))
    meter = readers.ReadMeter()
    with pytest.raises(DataError) as error:
        list(read_rows(PairSource(path=str(file)), meter))
    (problem,) = error.value.problems
    assert problem.startswith(f"{file}{place}"), problem
    assert len(problem) < 2500
    assert meter.position is not None
    assert 0 < meter.position() <= 1, "guard: it was being read"


def test_array_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, white space and characters of several bytes may be cut anywhere by the blocks that are read."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    rows = [{"é\n𝄞": ["}]", n, {"n": None}], "n": n * 10**9} for n in range(20)]
    for indent in (None, 3):
        (tmp_path / "rows.json").write_text("\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=indent is None) + " \n ")
        assert read(tmp_path / "rows.json") == rows
    (tmp_path / "rows.json").write_text('[\n{"a": 1},\n  7, 12345678901234567890\n\n, {"a": tru}]')
    source = PairSource(path=str(tmp_path / "rows.json"))
    found: list[Any] = []
    with pytest.raises(DataError, match=r"rows\.json:5:9: "):
        found.extend(parse(row) for _, row in read_rows(source))
    first, *bad = found
    assert first == {"a": 1}
    assert [row.detail.partition(": ")[0] for row in bad if isinstance(row, Malformed)] == ["rows.json:3", "rows.json:3"]


def test_files_that_are_not_files(tmp_path: Path) -> None:
    """Named pipes, devices and sockets are refused as what they are, without opening them."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.jsonl"))
        found = {name: refused(tmp_path / f"{name}.jsonl") for name in ("pipe", "zero", "socket", "loop")}
        found["null"] = refused("/dev/null")
        write_jsonl(tmp_path / "rows.jsonl", ROWS)
        assert read(tmp_path, split="rows") == ROWS, "in a folder they are passed over"
    kinds = {"pipe": "named pipe", "zero": "device", "socket": "socket", "loop": "does not exist", "null": "device"}
    assert all(kind in found[name] for name, kind in kinds.items()), found


@pytest.mark.parametrize("path", ["~nosuchuser", "~nosuchuser/rows.jsonl", "~nosuchuser/a/b", "x" * 300 + ".jsonl", "./a\0b"])
def test_absurd_paths_do_not_exist(path: str) -> None:
    assert path in refused(path)


@pytest.mark.parametrize("patterns", ["", "**x", "/etc/*", ".", ["*.jsonl", ""], "a/**b/*"])
def test_absurd_patterns_are_refused(tmp_path: Path, patterns: Any) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(RecipeError, match=r"data_files: "):
        read(tmp_path, data_files=patterns)


@pytest.mark.parametrize("pattern", ["**/" * 60 + "*.jsonl", "**//**/**/rows.jsonl"])
def test_repeated_patterns_take_no_longer(tmp_path: Path, pattern: str) -> None:
    folder = tmp_path
    for number in range(12):
        folder /= str(number)
    folder.mkdir(parents=True)
    shutil.copy(write_jsonl(tmp_path / "rows.jsonl", ROWS), folder)
    assert read(tmp_path, data_files=pattern) == ROWS * 2
