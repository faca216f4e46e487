"""Readers of each kind of file: JSON lines, JSON arrays, CSV and Parquet, each as a stream of rows."""

import csv
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import TextIOWrapper
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rmtrain.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_FIELD_CHARACTERS = 16 * 2**20
READ_ROWS = 1000
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read; `detail` has its place and the problem, without the text of the row."""

    detail: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of JSON that is not parsed yet; `where` is its file and line number."""

    where: str
    content: bytes


RawRow = Row | Line | Malformed
"""A row as a reader yields it. Lines of JSON are parsed later, by the process that adapts them: parsing takes longer than reading."""


@dataclass
class ReadMeter:
    """The share of a source that has been read: all before `begin`, and of the current file, the next `size`, the share `position()`.

    Readers set `position`. Only `share` calls it: at each row, it would take longer than reading the row.
    """

    position: Callable[[], float] | None = None
    begin: float = 0.0
    size: float = 1.0

    @property
    def share(self) -> float | None:
        """Share of the source that has been read, from 0 to 1; None: unknown."""
        return None if self.position is None else min(self.begin + self.size * self.position(), 1.0)


def read_file(file: Path, numbers: Set[str], meter: ReadMeter) -> Iterator[RawRow]:
    """Read a data file with the reader for its suffix; see `read_csv` for `numbers`."""
    if file.name.endswith(".parquet"):
        return read_parquet(file, meter)
    if file.name.endswith((".csv", ".csv.gz")):
        return read_csv(file, numbers, meter)
    return read_json(file, meter)


@contextmanager
def open_bytes(path: Path, meter: ReadMeter | None = None) -> Iterator[IO[bytes]]:
    """Open a file, decompressing it when its name ends in `.gz`."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if meter is not None and size:
            meter.position = lambda: 1.0 if file.closed else file.tell() / size
        with gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as stream:
            yield cast(IO[bytes], stream)


def read_json(path: Path, meter: ReadMeter | None = None) -> Iterator[RawRow]:
    """Read a `.json` or `.jsonl` file, optionally `.gz`: one object per line, for `parse`, or, in `.json`, one array of objects.

    Repeated keys, NaN and Infinity, invalid UTF-8, lone surrogates, overlong lines and values that are not objects make a row `Malformed`;
    reading continues with the next one. Raises DataError for an array that is not valid JSON as a whole, or a damaged archive.
    """
    try:
        with open_bytes(path, meter) as stream:
            while (byte := stream.read(1)) and byte in b" \t\r\n\xef\xbb\xbf":
                pass
            stream.seek(0)
            is_array = byte == b"[" and not path.name.removesuffix(".gz").endswith(".jsonl")
            yield from _read_array(path, stream, meter) if is_array else (row for _, row in read_lines(path.name, stream))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from error


def read_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, Malformed | Line]]:
    """Yield the lines of a file that are not empty with their numbers, counted from 1; one that is too long takes no more memory."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):  # skip it in blocks, without holding all of it
                line = stream.readline(MAX_LINE_BYTES)
            yield number, Malformed(f"{where}: longer than {MAX_LINE_BYTES} bytes")
        elif content := (line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip():
            yield number, Line(where, content)


def parse(line: RawRow) -> Row | Malformed:
    """Parse a row that is still a line of JSON; return any other unchanged."""
    if not isinstance(line, Line):
        return line
    try:
        text = line.content.decode()
        row, end = _decode_object(text, _skip_space(text, 0), line.where)
    except UnicodeDecodeError as error:
        return Malformed(f"{line.where}: invalid UTF-8 at byte {error.start}")
    except JSONDecodeError as error:
        return Malformed(f"{line.where}:{error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Malformed(f"{line.where}: {error}")
    if _skip_space(text, end) != len(text):
        return Malformed(f"{line.where}:{end + 1}: unexpected text after the object")
    return row


def _read_array(path: Path, stream: IO[bytes], meter: ReadMeter | None) -> Iterator[Row | Malformed]:
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 at byte {error.start}") from error
    position, line, counted = _skip_space(text, text.index("[") + 1), 1, 0
    is_empty = text[position : position + 1] == "]"
    if meter is not None:
        meter.position = lambda: position / len(text)  # the file is read at once, its rows are decoded one by one
    while not is_empty:
        line += text.count("\n", counted, position)
        counted = position
        try:
            row, end = _decode_object(text, position, f"{path.name}:{line}")
            yield row
            position = _skip_space(text, end)
            separator = text[position : position + 1]
            if separator == "]":
                break
            if separator != ",":
                raise JSONDecodeError("Expecting ',' or ']'", text, position)
        except JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: invalid JSON: {error}") from error
        position = _skip_space(text, position + 1)
    if _skip_space(text, position + 1) != len(text):
        raise DataError(f"{path}: unexpected text after the array")


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _decode_object(text: str, position: int, where: str) -> tuple[Row | Malformed, int]:
    """Decode the JSON value at `position`; return it, or why it is refused, and the position after it.

    The hooks collect problems instead of raising: the decoder then still finds the end of the value, where the next one begins.
    """
    problems: list[str] = []

    def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            problems.append(f'key "{repeated[:40]}" is repeated')
        return row

    decoder = JSONDecoder(object_pairs_hook=unique_keys, parse_constant=lambda name: problems.append(f"{name} is not JSON"))
    value, end = decoder.raw_decode(text, position)
    if not isinstance(value, dict):
        problems.append(f"expected an object, got {type(value).__name__}")
    if has_lone_surrogate(text[position:end], value):
        problems.append("lone surrogate (half of a UTF-16 pair)")
    return Malformed(f"{where}: {problems[0]}") if problems else value, end


def has_lone_surrogate(text: str, value: Any) -> bool:
    """Return whether the value of a JSON text holds half of a surrogate pair, which no tokenizer can encode."""
    if not SURROGATE.search(text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def read_csv(path: Path, numbers: Set[str], meter: ReadMeter | None = None) -> Iterator[Row | Malformed]:
    """Read a comma-separated UTF-8 file with a header, optionally `.gz`; a quoted cell may span lines. Every cell is text.

    Cells of the columns `numbers` become numbers; an empty one None, and one that is not a number stays text, for the caller to refuse.
    Raises DataError for invalid quoting, a repeated column name, or invalid UTF-8.
    """

    def number(cell: str) -> float | str | None:
        try:
            return float(cell) if cell else None
        except ValueError:
            return cell

    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the default of 131,072 characters is less than a long conversation
    with open_bytes(path, meter) as opened, TextIOWrapper(opened, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) != len(columns):
                raise DataError(f"{path}:1: repeated column name: {', '.join(columns)}")
            for cells in filter(None, reader):
                if len(cells) == len(columns):
                    yield {name: number(cell) if name in numbers else cell for name, cell in zip(columns, cells, strict=True)}
                else:
                    yield Malformed(f"{path.name}:{reader.line_num}: {len(cells)} cells, but the header has {len(columns)}")
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{path}:{reader.line_num + 1}: invalid CSV in UTF-8: {error}") from error


def read_parquet(path: Path, meter: ReadMeter | None = None) -> Iterator[Row]:
    """Read a Parquet file; raises DataError when it is damaged or not Parquet."""
    try:
        with pq.ParquetFile(path) as file:
            yield from flatten(map(pa.RecordBatch.to_pylist, file.iter_batches(READ_ROWS)), file.metadata.num_rows, meter)
    except pa.ArrowException as error:
        raise DataError(f"{path}: invalid Parquet: {' '.join(str(error).split())}") from error


def flatten(pages: Iterable[list[Row]], count: int | None, meter: ReadMeter | None) -> Iterator[Row]:
    """Yield the rows of pages that Arrow made, without the keys that it added; `count` is the number of all rows, for `meter`."""
    done = 0
    if meter is not None and count is not None:
        meter.position = lambda: done / count if count else 1.0
    for page in pages:
        for row in page:
            yield {name: _without_null_keys(cell) for name, cell in row.items()}
        done += len(page)


def _without_null_keys(cell: Any) -> Any:
    """Remove the None keys that Arrow adds to structs, since all structs of a column have the same keys."""
    if isinstance(cell, dict):
        return {key: _without_null_keys(value) for key, value in cell.items() if value is not None}
    if isinstance(cell, list) and cell and isinstance(cell[0], dict | list):
        return [_without_null_keys(value) for value in cell]
    return cell
