"""CSV, Parquet and Arrow to rows."""

import csv
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import TextIOWrapper
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from rmtrain.errors import DataError

Item = TypeVar("Item")


class Meter:
    """The share of a source that has been read, by the bytes of its files or by its rows."""

    def __init__(self) -> None:
        self._sizes: Sequence[int] = ()
        self._entered = 0
        self._position: Callable[[], float] | None = None

    def through(self, parts: Iterable[Iterator[Item]], sizes: Sequence[int]) -> Iterator[Item]:
        """All of the parts of a source, which are of these sizes in whatever unit."""
        self._sizes = sizes
        for number, part in enumerate(parts):
            self._entered, self._position = number, None
            yield from part

    def enter(self, position: Callable[[], float]) -> None:
        """A part is open; `position` says how much of it is read, from 0 to 1."""
        self._position = position

    @property
    def share(self) -> float | None:
        """From 0 to 1; None: not known."""
        if self._position is None or not sum(self._sizes):
            return None
        done = sum(self._sizes[: self._entered]) + self._position() * self._sizes[self._entered]
        return min(done / sum(self._sizes), 1.0)


MAX_LINE_BYTES = 16 * 2**20
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read; `detail` says where and why, without the row's text."""

    detail: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row that is not parsed yet; `where` is its file and line."""

    where: str
    content: bytes


RawRow = Row | Line | Malformed
"""A row as a source gives it: lines of JSON are left to parse for whoever uses them, which may be another process."""


def read_json(path: Path, meter: Meter | None = None) -> Iterator[RawRow]:
    """Rows of a `.json` or `.jsonl` file, `.gz` or not: an object per line, or, in `.json`, one array of objects.

    A line comes as it is, for `parse`. Duplicate keys, NaN and Infinity, invalid UTF-8, lone surrogates, overlong lines and anything
    that is not an object make the row `Malformed`; reading goes on with the next one. `meter` is told how much is read.

    Raises:
        DataError: an array that is not JSON as a whole (with line and column), or a damaged archive.
    """
    is_lines = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        with open_bytes(path, meter) as stream:
            if not is_lines and _starts_with_bracket(stream):
                yield from _read_array(path, stream, meter)
            else:
                yield from _read_lines(path, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from error


@contextmanager
def open_bytes(path: Path, meter: Meter | None = None) -> Iterator[IO[bytes]]:
    """The content of a file, decompressed where its name ends in `.gz`; `meter` is told how much of the file is read."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if meter is not None:
            meter.enter(lambda: 1.0 if file.closed or not size else file.tell() / size)
        with gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as stream:
            yield cast(IO[bytes], stream)


def _starts_with_bracket(stream: IO[bytes]) -> bool:
    while (byte := stream.read(1)) and byte in b" \t\r\n\xef\xbb\xbf":
        pass
    stream.seek(0)
    return byte == b"["


def _read_lines(path: Path, stream: IO[bytes]) -> Iterator[Malformed | Line]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{path.name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield Malformed(f"{where}: longer than {MAX_LINE_BYTES} bytes")
            continue
        content = (line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip()
        if content:
            yield Line(where, content)


def parse(line: Line) -> Row | Malformed:
    """The row of a line, or why it is none."""
    decoder = _StrictDecoder()
    try:
        text = line.content.decode()
        value, end = decoder.raw_decode(text, _skip_space(text, 0))
    except UnicodeDecodeError as error:
        return Malformed(f"{line.where}: not UTF-8 at byte {error.start}")
    except JSONDecodeError as error:
        return Malformed(f"{line.where}:{error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Malformed(f"{line.where}: {error}")
    if _skip_space(text, end) != len(text):
        return Malformed(f"{line.where}:{end + 1}: more text after the object")
    return decoder.checked(value, text, line.where)


def _read_array(path: Path, stream: IO[bytes], meter: Meter | None) -> Iterator[Row | Malformed]:
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    decoder = _StrictDecoder()
    position, line, counted = _skip_space(text, text.index("[") + 1), 1, 0
    is_empty = text[position : position + 1] == "]"
    if meter is not None:
        meter.enter(lambda: position / len(text))  # the file was read at once, its rows are not
    while not is_empty:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = decoder.raw_decode(text, position)
            yield decoder.checked(value, text[position:end], f"{path.name}:{line}")
            position = _skip_space(text, end)
            separator = text[position : position + 1]
            if separator == "]":
                break
            if separator != ",":
                raise JSONDecodeError("Expecting ',' or ']'", text, position)
        except JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not JSON: {error}") from error
        position = _skip_space(text, position + 1)
    if _skip_space(text, position + 1) != len(text):
        raise DataError(f"{path}: more text after the array")


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


class _StrictDecoder:
    """A JSON decoder that notes what the standard one lets pass: repeated keys, NaN and Infinity."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._decoder = JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def raw_decode(self, text: str, position: int) -> tuple[Any, int]:
        """The value that starts at `position` and the position after it."""
        self.problem = None
        return self._decoder.raw_decode(text, position)

    def checked(self, value: Any, text: str, where: str) -> Row | Malformed:
        """The row, or why it is none."""
        if self.problem is None and not isinstance(value, dict):
            self.problem = f"expected an object, got {type(value).__name__}"
        if self.problem is None and SURROGATE.search(text) and not _is_unicode(value):
            self.problem = "half of a surrogate pair"
        return value if self.problem is None else Malformed(f"{where}: {self.problem}")

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            self.problem = f'key "{repeated[:40]}" is there twice'
        return row

    def _constant(self, name: str) -> None:
        self.problem = f"{name} is not JSON"


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


READ_ROWS = 1000
MAX_FIELD_CHARACTERS = 16 * 2**20


def read_csv(path: Path, numbers: Set[str], meter: Meter | None = None) -> Iterator[Row | Malformed]:
    """Rows of a comma-separated file with a header, `.gz` or not. Every cell is text.

    Args:
        path: the file, in UTF-8; a quoted cell may span lines.
        numbers: columns whose cells are numbers; an empty one is None, one that is no number stays text for the caller to refuse.
        meter: told how much of the file is read.

    Raises:
        DataError: quoting that cannot be followed, a repeated column name, invalid UTF-8.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with open_bytes(path, meter) as opened, TextIOWrapper(opened, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) != len(columns):
                raise DataError(f"{path}:1: a column name is there twice: {', '.join(columns)}")
            for cells in filter(None, reader):
                if len(cells) == len(columns):
                    yield {name: _number(cell) if name in numbers else cell for name, cell in zip(columns, cells, strict=True)}
                else:
                    yield Malformed(f"{path.name}:{reader.line_num}: {len(cells)} cells, but the header has {len(columns)}")
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{path}:{reader.line_num + 1}: not CSV in UTF-8: {error}") from error


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def read_parquet(path: Path, meter: Meter | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, of which `meter` is told; raises DataError when it is none."""
    try:
        with pq.ParquetFile(path) as file:
            yield from _counted(map(pa.RecordBatch.to_pylist, file.iter_batches(READ_ROWS)), file.metadata.num_rows, meter)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not Parquet: {' '.join(str(error).split())}") from error


def read_dataset(dataset: Dataset | IterableDataset, meter: Meter | None = None, number: int | None = None) -> Iterator[Row]:
    """Rows of a dataset; with their `number`, `meter` is told how many of them are read."""
    if "Json(" in repr(dataset.features):  # cells of different shapes, which `datasets` keeps as text and only decodes row by row
        yield from _counted(([row] for row in dataset), number, meter)
        return
    tables = dataset.with_format("arrow").iter(batch_size=READ_ROWS)
    yield from _counted((table.to_pylist() for table in tables), number, meter)


def _counted(pages: Iterable[list[Row]], number: int | None, meter: Meter | None) -> Iterator[Row]:
    done = 0
    if meter is not None and number is not None:
        meter.enter(lambda: done / number if number else 1.0)
    for page in pages:
        yield from map(without_null_keys, page)
        done += len(page)


def without_null_keys(row: Row) -> Row:
    """The row without the None keys that Arrow adds inside structs when it gives all of them the same keys. Columns stay."""
    return {name: _without_null_keys(cell) for name, cell in row.items()}


def _without_null_keys(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {key: _without_null_keys(value) for key, value in cell.items() if value is not None}
    if isinstance(cell, list):
        return [_without_null_keys(value) for value in cell] if cell and isinstance(cell[0], dict | list) else cell
    return cell
