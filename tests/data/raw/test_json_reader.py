import gzip
import json
from pathlib import Path

import pytest

from rmtrain.data.rows import readers as json_reader
from rmtrain.data.rows.readers import Line, Malformed, Row, parse, read_json
from rmtrain.errors import DataError


def read(path: Path) -> list[Row | Malformed]:
    return [parse(row) if isinstance(row, Line) else row for row in read_json(path)]


def test_jsonl_rows_keep_the_keys_they_were_written_with(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"chosen": [{"role": "user", "content": "a"}]}, {"chosen": "text", "score": 1.5}, {"chosen": None}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(file) == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
def test_lines_and_archives_of_lines_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}'
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert read(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', ' \n[\n  {"a": 1},\n  {"a": 2}\n]\n', '\ufeff[{"a": 1},{"a":2}]'])
def test_an_array_gives_its_objects(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8")
    assert read(file) == [{"a": 1}, {"a": 2}]


def test_an_empty_array_and_an_empty_file_have_no_rows(tmp_path: Path) -> None:
    for text in ("[]", " [ ]\n", "", "\n\n"):
        file = tmp_path / "rows.json"
        file.write_text(text)
        assert read(file) == []


BAD_LINES = [
    (b'{"a": 1', "rows.jsonl:2:8: Expecting ',' delimiter"),
    (b'{"a": NaN}', "rows.jsonl:2: NaN is not JSON"),
    (b'{"a": [-Infinity]}', "rows.jsonl:2: -Infinity is not JSON"),
    (b'{"a": 1, "a": 2}', 'rows.jsonl:2: key "a" is there twice'),
    (b'{"b": {"a": 1, "a": 2}}', 'rows.jsonl:2: key "a" is there twice'),
    (b'{"a": "\xff"}', "rows.jsonl:2: not UTF-8 at byte 7"),
    (b'{"a": "\x01"}', "rows.jsonl:2:8: Invalid control character at"),
    (b'{"a": "\\ud800"}', "rows.jsonl:2: half of a surrogate pair"),
    (b"[1, 2]", "rows.jsonl:2: expected an object, got list"),
    (b'{"a": 1} {"a": 2}', "rows.jsonl:2:9: more text after the object"),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "rows.jsonl:2: maximum recursion depth exceeded"),
    (b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl:2: Exceeds the limit (4300 digits)"),
]


@pytest.mark.parametrize(("line", "detail"), BAD_LINES, ids=[detail for _, detail in BAD_LINES])
def test_a_malformed_line_is_told_by_file_and_line_and_the_next_one_is_read(tmp_path: Path, line: bytes, detail: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = read(file)
    assert (first, last) == ({"a": 0}, {"a": 3})
    assert isinstance(bad, Malformed)
    assert bad.detail.startswith(detail)


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert read(file) == [{"a": "\U0001f600"}]


def test_an_overlong_line_is_refused_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "MAX_LINE_BYTES", 100)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": "x" * 1000}) + '\n{"a": 1}\n')
    assert read(file) == [Malformed("rows.jsonl:1: longer than 100 bytes"), {"a": 1}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n {"a": 2}', ":2:10: not JSON: Expecting ',' or ']'"),
        ('[{"a": 1},\n]', ":2:1: not JSON: Expecting value"),
        ('[{"a": 1}\n {"a": 2}]', ":2:2: not JSON: Expecting ',' or ']'"),
        ('[{"a": 1}] x', ": more text after the array"),
        ("[", ":1:2: not JSON: Expecting value"),
    ],
)
def test_an_array_that_is_not_json_is_refused_with_line_and_column(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value) == f"{file}{problem}"


def test_bad_elements_of_an_array_are_told_by_their_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[\n{"a": 1},\n{"a": NaN},\n{"a": 1, "a": 2}, 7\n]')
    assert read(file) == [
        {"a": 1},
        Malformed("rows.json:3: NaN is not JSON"),
        Malformed('rows.json:4: key "a" is there twice'),
        Malformed("rows.json:4: expected an object, got int"),
    ]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-20], lambda content: b"no archive", lambda content: content[:40] + b"x" * 90]
)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: object) -> None:
    file = tmp_path / "rows.jsonl.gz"
    content = gzip.compress("".join(json.dumps({"a": str(n) * 9}) + "\n" for n in range(500)).encode())
    file.write_bytes(damage(content))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"rows.jsonl.gz: damaged gzip file"):
        read(file)
