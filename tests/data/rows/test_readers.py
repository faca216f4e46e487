"""JSON, CSV, Parquet and datasets to rows, and how much of a source has been read."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rmtrain.data.rows import readers as json_reader
from rmtrain.data.rows.arrow import read_parquet
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.hub_dataset import read_dataset
from rmtrain.data.rows.readers import Malformed, Placed, ReadMeter, Row, parse, read_csv, read_json
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource
from tests.helpers import pairs, write_jsonl


def read_rows_of(path: Path) -> list[Row | Malformed]:
    return [parse(row) for row in read_json(path)]


def test_jsonl_rows_keep_their_own_keys(tmp_path: Path) -> None:
    """Rows of different keys get no further keys from each other."""
    file = tmp_path / "rows.jsonl"
    rows = [{"chosen": [{"role": "user", "content": "a"}]}, {"chosen": "text", "score": 1.5}, {"chosen": None}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_rows_of(file) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
def test_json_lines_plain_or_compressed(tmp_path: Path, suffix: str) -> None:
    """Lines with a byte order mark and either line ending give the same rows, compressed or not."""
    content = b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": 2}'
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert read_rows_of(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', ' \n[\n  {"a": 1},\n  {"a": 2}\n]\n', '\ufeff[{"a": 1},{"a":2}]'])
def test_json_array_gives_its_objects(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert read_rows_of(file) == [{"a": 1}, {"a": 2}]


def test_empty_json_has_no_rows(tmp_path: Path) -> None:
    """An empty array and an empty file have no rows."""
    for text in ("[]", " [ ]\n", "", "\n\n"):
        file = tmp_path / "rows.json"
        file.write_text(text)
        assert read_rows_of(file) == []


BAD_LINES = [
    (b'{"a": 1', "rows.jsonl:2:8: "),
    (b'{"a": NaN}', "rows.jsonl:2: NaN "),
    (b'{"a": [-Infinity]}', "rows.jsonl:2: -Infinity "),
    (b'{"a": 1, "a": 2}', 'rows.jsonl:2: key "a" '),
    (b'{"b": {"a": 1, "a": 2}}', 'rows.jsonl:2: key "a" '),
    (b'{"a": "\xff"}', "rows.jsonl:2: invalid UTF-8 at byte 7"),
    (b'{"a": "\x01"}', "rows.jsonl:2:8: "),
    (b'{"a": "\\ud800"}', "rows.jsonl:2: lone surrogate"),
    (b"[1, 2]", "rows.jsonl:2: expected an object"),
    (b'{"a": 1} {"a": 2}', "rows.jsonl:2:9: "),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "rows.jsonl:2: maximum recursion"),
    (b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl:2: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "detail"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_malformed_line_is_reported_and_skipped(tmp_path: Path, line: bytes, detail: str) -> None:
    """A malformed line becomes a `Malformed` with file, line and column, and the next line is read."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = read_rows_of(file)
    assert (first, last) == ({"a": 0}, {"a": 3})
    assert isinstance(bad, Malformed)
    assert bad.detail.startswith(detail)


def test_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert read_rows_of(file) == [{"a": "\U0001f600"}]


def test_overlong_line_is_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the limit is not read into memory as a whole, and the next line is read."""
    monkeypatch.setattr(json_reader, "MAX_LINE_BYTES", 100)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": "x" * 1000}) + '\n{"a": 1}\n')
    long, row = read_rows_of(file)
    assert row == {"a": 1}
    assert isinstance(long, Malformed)
    assert long.detail.startswith("rows.jsonl:1: ")
    assert "100 bytes" in long.detail


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a": 2}', ":2:10: "),
        ('[{"a": 1},\n]', ":2:1: "),
        ('[{"a": 1}\n {"a": 2}]', ":2:2: "),
        ('[{"a": 1}]\n x', ":2:2: "),
        ("[", ":1:2: "),
    ],
)
def test_invalid_json_array_is_refused(tmp_path: Path, text: str, place: str) -> None:
    """An array that is not valid JSON is an error with line and column."""
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_rows_of(file)
    assert str(error.value).startswith(f"{file}{place}")


def test_bad_array_elements_are_malformed(tmp_path: Path) -> None:
    """A bad element is `Malformed` with its line, and the elements after it are read."""
    file = tmp_path / "rows.json"
    file.write_text('[\n{"a": 1},\n{"a": NaN},\n{"a": 1, "a": 2}, 7\n]')
    good, *bad = read_rows_of(file)
    assert good == {"a": 1}
    details = [row.detail for row in bad if isinstance(row, Malformed)]
    starts = ["rows.json:3: NaN ", 'rows.json:4: key "a" ', "rows.json:4: expected an object"]
    assert [detail.startswith(start) for detail, start in zip(details, starts, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"no archive", lambda content: content[:40] + b"x" * 90]
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: object) -> None:
    file = tmp_path / "rows.jsonl.gz"
    content = gzip.compress("".join(json.dumps({"a": str(n) * 9}) + "\n" for n in range(500)).encode())
    file.write_bytes(damage(content))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: .*gzip"):
        read_rows_of(file)


CSV = 'prompt,chosen,margin\n"two\nlines, quoted ""so""",yes,0.5\np,,\nq,NA,high\n'


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_cells_are_text_except_numbers(tmp_path: Path, name: str) -> None:
    """Cells are text; those of columns named as numbers are numbers, None where empty, and text where they are not a number."""
    file = tmp_path / name
    file.write_bytes(gzip.compress(CSV.encode()) if name.endswith(".gz") else CSV.encode())
    assert [parse(row) for row in read_csv(file, {"margin"})] == [
        {"prompt": 'two\nlines, quoted "so"', "chosen": "yes", "margin": 0.5},
        {"prompt": "p", "chosen": "", "margin": None},
        {"prompt": "q", "chosen": "NA", "margin": "high"},
    ]


def test_csv_row_of_wrong_width_is_malformed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('a,b\n"1\n1",2\n3\n4,5,6\n7,8\n')
    rows = list(read_csv(file, set()))
    assert [row.where for row in rows if isinstance(row, Placed)] == ["rows.csv:2", "rows.csv:6"], "where a row begins"
    first, narrow, wide, last = map(parse, rows)
    assert (first, last) == ({"a": "1\n1", "b": "2"}, {"a": "7", "b": "8"})
    assert isinstance(narrow, Malformed)
    assert isinstance(wide, Malformed)
    assert narrow.detail.startswith("rows.csv:4: 1 ")
    assert wide.detail.startswith("rows.csv:5: 3 ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,a\n1,2\n", ":1: "),
        (b'a,b\n1,2\n"open,3\n4,5\n', ":3: "),
        (b'a,b\n1,2\n"x"y,3\n4,5\n', ":3: "),
        (b"a,b\n1,\xff\n", ":2: invalid UTF-8 at byte 2 (0xff)"),
        (b"a,b\n" + b'"x\ny",z\n' * 5000 + b"1,\xe9\n", ":10002: "),
    ],
)
def test_invalid_csv_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_csv(file, set()))
    assert problem in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "tsv.gz"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_delimiter_is_that_of_the_header(tmp_path: Path, mark: str, suffix: str) -> None:
    """Spreadsheets write semicolons where commas are decimal points; cells may hold the other delimiters."""
    file, text = tmp_path / f"rows.{suffix}", io.StringIO()
    csv.writer(text, delimiter=mark).writerows([["prompt", "chosen", "rejected"], ["a, b; c\td|e", "x", "0.5"]])
    content = f"\n{text.getvalue()}".encode()  # an empty line before the header is skipped
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert [parse(row) for row in read_csv(file, {"rejected"})] == [{"prompt": "a, b; c\td|e", "chosen": "x", "rejected": 0.5}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.csv.gz"])
def test_utf_16_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    """With or without its mark at the beginning; UTF-8 with one is read."""
    file, text = tmp_path / name, "a,b\n1,2\n" if "csv" in name else '{"a": "1", "b": "2"}\n'

    def write(encoded: bytes) -> None:
        file.write_bytes(gzip.compress(encoded) if name.endswith("gz") else encoded)

    def read() -> list[Row | Malformed]:
        return [parse(row) for row in (read_csv(file, set()) if "csv" in name else read_json(file))]

    write(text.encode(encoding))
    with pytest.raises(DataError) as error:
        read()
    assert str(error.value).startswith(f"{file}: ")
    assert encoding[:6].upper() in str(error.value)
    write(text.encode("utf-8-sig"))
    assert read() == [{"a": "1", "b": "2"}]


def test_array_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(b'[\n{"a": 1},\n{"a": "caf\xe9"}]')
    with pytest.raises(DataError) as error:
        read_rows_of(file)
    assert str(error.value).startswith(f"{file}:3: invalid UTF-8 at byte 10 (0xe9)")


MIXED = [
    {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "hm"}], "margin": None},
    {"chosen": [{"role": "user", "content": "q"}], "margin": 1.0},
]
CLEAN = [{"chosen": MIXED[0]["chosen"], "margin": None}, {"chosen": MIXED[1]["chosen"], "margin": 1.0}]


def test_trap_16_arrow_null_keys_are_removed(tmp_path: Path) -> None:
    """Keys that Arrow adds to structs are removed again, in Parquet files and in datasets."""
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(MIXED), file)
    assert pq.read_table(file).to_pylist()[1]["chosen"][0] == {"role": "user", "content": "q", "thinking": None}, (
        "guard: Arrow adds"
    )
    assert list(read_parquet(file)) == CLEAN
    assert list(read_dataset(Dataset.from_list(MIXED))) == CLEAN


def test_plain_lists_are_unchanged() -> None:
    rows = [{"ids": [1, 2, 3]}, {"ids": []}, {"ids": None}]
    assert list(read_dataset(Dataset.from_list(rows))) == rows


def test_invalid_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"rows\.parquet: .*Parquet"):
        list(read_parquet(file))


MANY_ROWS = pairs(6000)


def write_many(folder: Path, name: str) -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in MANY_ROWS)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(MANY_ROWS), path)
    elif name.endswith(".csv"):
        path.write_text(
            "prompt,chosen,rejected\n" + "".join(",".join(f'"{cell}"' for cell in row.values()) + "\n" for row in MANY_ROWS)
        )
    elif name == "saved":
        Dataset.from_list(MANY_ROWS).save_to_disk(str(path))
    elif name == "folder":
        path.mkdir()
        for number in range(3):
            write_jsonl(path / f"train-{number}.jsonl", MANY_ROWS[2000 * number : 2000 * (number + 1)])
    else:
        path.write_text(json.dumps(MANY_ROWS) if name.endswith(".json") else text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet", "saved", "folder"])
def test_read_share_grows_to_one(tmp_path: Path, name: str) -> None:
    """The share that has been read grows with the rows, over all files of a source, and ends at 1."""
    meter = ReadMeter()
    assert meter.share is None
    shares = []
    for number, _ in read_rows(PairSource(path=str(write_many(tmp_path, name))), meter):
        if number % 1500 == 1499:
            shares.append(meter.share)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.2), shares
    assert shares == sorted(shares)
    assert meter.share == pytest.approx(1.0, abs=0.001)


def test_read_share_after_reading_was_stopped(tmp_path: Path) -> None:
    meter = ReadMeter()
    rows = read_rows(PairSource(path=str(write_many(tmp_path, "rows.jsonl")), limit=10), meter)
    assert len(list(rows)) == 10
    assert meter.share is not None


def test_read_share_of_empty_file_is_unknown(tmp_path: Path) -> None:
    meter = ReadMeter()
    assert list(read_rows(PairSource(path=str(write_jsonl(tmp_path / "rows.jsonl", []))), meter)) == []
    assert meter.share is None
