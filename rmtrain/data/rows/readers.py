"""Readers of each kind of text file: JSON lines, JSON arrays, CSV and TSV, each as a stream of rows."""

import csv
import gzip
import json
import re
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any, cast

from rmtrain.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_ROW_CHARACTERS = 16 * 2**20
BLOCK_BYTES = 2**16
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


@dataclass(frozen=True, slots=True)
class Placed:
    """A row that was parsed when it was read; `where` is its file and the number of its first line."""

    where: str
    row: Row


RawRow = Row | Line | Placed | Malformed
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


@contextmanager
def open_bytes(path: Path, meter: ReadMeter | None = None) -> Iterator[BufferedReader]:
    """Open a file of text, decompressing it when its name ends in `.gz`; raises DataError for UTF-16 and for a damaged archive."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if meter is not None and size:
                meter.position = lambda: 1.0 if file.closed else file.tell() / size
            with gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as stream:
                encoding = json.detect_encoding(stream.peek(4)[:4])
                if not encoding.startswith("utf-8"):
                    name = encoding[:6].upper()
                    raise DataError(f"{path}: the text is {name}; save it as UTF-8, for example with iconv -f {name} -t UTF-8")
                yield cast(BufferedReader, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from error


def _not_utf8(path: Path) -> DataError:
    """Return the error of a file with its first line that is not UTF-8: that of the decoder, which reads ahead, does not have it."""
    decoder, number = getincrementaldecoder("utf-8")(), 1
    with open_bytes(path) as stream:
        try:
            while line := stream.readline(MAX_LINE_BYTES):
                decoder.decode(line)
                number += line.endswith(b"\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            return DataError(f"{path}:{number}: {_bad_byte(error)}; save the file as UTF-8")
    return DataError(f"{path}: not UTF-8; save it as UTF-8")


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"invalid UTF-8 at byte {error.start} (0x{error.object[error.start]:02x})"


def read_json(path: Path, meter: ReadMeter | None = None) -> Iterator[RawRow]:
    """Read a `.json` or `.jsonl` file, optionally `.gz`: one object per line, for `parse`, or one array of objects.

    Repeated keys, NaN and Infinity, invalid UTF-8, lone surrogates, overlong lines and values that are not objects make a row `Malformed`;
    reading continues with the next one. Raises DataError for an array that is not valid JSON as a whole, or a damaged archive.
    """
    with open_bytes(path, meter) as stream:
        is_array = stream.peek(1).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
        yield from _read_array(_Text(path, stream)) if is_array else (row for _, row in read_lines(path.name, stream))


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
        elif content := line.removeprefix(BOM_UTF8).rstrip():  # joined files have one at the beginning of each
            yield number, Line(where, content)


def parse(line: RawRow) -> Row | Malformed:
    """Return a row that can be used: parsed, where it is still a line of JSON, and without its place."""
    if isinstance(line, Placed):
        return line.row
    if not isinstance(line, Line):
        return line
    try:
        text = line.content.decode()
        row, end = _decode_object(text, _skip_space(text, 0), line.where)
    except UnicodeDecodeError as error:
        return Malformed(f"{line.where}: {_bad_byte(error)}")
    except JSONDecodeError as error:
        return Malformed(f"{line.where}:{error.colno}: {error.msg}; expected one JSON object per line")
    except (ValueError, RecursionError) as error:
        return Malformed(f"{line.where}: {error}")
    if _skip_space(text, end) != len(text):
        return Malformed(f"{line.where}:{end + 1}: unexpected text after the object")
    return row


def _read_array(text: "_Text") -> Iterator[Placed | Malformed]:
    text.next_mark()
    text.move(text.position + 1)
    is_more = text.next_mark() != "]"
    while is_more:
        yield text.row()
        mark = text.next_mark()
        if mark not in ("]", ","):
            raise text.error("invalid JSON: Expecting ',' or ']'")
        is_more = mark == ","
        if is_more:
            text.move(text.position + 1)
            text.next_mark()
    text.move(text.position + 1)
    if text.next_mark():
        raise text.error("unexpected text after the array")


class _Text:
    """The text of a file from `position` on, with the line and column of that; no more is in memory than the value that is decoded."""

    def __init__(self, path: Path, stream: BufferedReader) -> None:
        self.path, self.text, self.position, self.line, self.column = path, "", 0, 1, 1
        self._stream, self._decoder = stream, getincrementaldecoder("utf-8-sig")()

    def move(self, position: int) -> None:
        """Move on to a position."""
        lines = self.text.count("\n", self.position, position)
        self.line += lines
        self.column = position - self.text.rindex("\n", 0, position) if lines else self.column + position - self.position
        self.position = position

    def more(self) -> bool:
        """Read as much again as is left; return False at the end of the file, and where a value is too long."""
        left = self.text[self.position :]
        if len(left) > MAX_LINE_BYTES:
            return False
        block = self._stream.read(max(BLOCK_BYTES, len(left)))
        try:
            new = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path) from error
        self.text, self.position = left + new, 0
        return bool(block)

    def next_mark(self) -> str:
        """Move to the next character that is not white space, and return it; empty at the end of the file."""
        while True:
            self.move(_skip_space(self.text, self.position))
            if self.position < len(self.text) or not self.more():
                return self.text[self.position : self.position + 1]

    def row(self) -> Placed | Malformed:
        """Return the value that begins here, and move to its end; raises DataError where it is not valid JSON."""
        where = f"{self.path.name}:{self.line}"
        while True:
            try:
                row, end = _decode_object(self.text, self.position, where)
            except JSONDecodeError as error:
                after = error.pos - self.position
                if self.more():
                    continue
                limit = f" in the first {MAX_LINE_BYTES} characters of a row" if len(self.text) > MAX_LINE_BYTES else ""
                self.move(self.position + after)
                raise self.error(f"invalid JSON: {error.msg}{limit}") from error
            except (ValueError, RecursionError) as error:
                raise self.error(f"invalid JSON: {error}") from error
            if end < len(self.text) or not self.more():
                self.move(end)
                return row if isinstance(row, Malformed) else Placed(where, row)

    def error(self, problem: str) -> DataError:
        """Return an error with this place."""
        return DataError(f"{self.path}:{self.line}:{self.column}: {problem}")


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


def read_csv(path: Path, numbers: Set[str], meter: ReadMeter | None = None) -> Iterator[Placed | Malformed]:
    """Read a UTF-8 file of delimited cells with a header, optionally `.gz`; a quoted cell may span lines. Every cell is text.

    Cells of the columns `numbers` become numbers; an empty one None, and one that is not a number stays text, for the caller to refuse.
    Raises DataError for invalid quoting, a repeated column name, an overlong row, or invalid UTF-8.
    """
    begin, size = 1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := stream.readline(MAX_ROW_CHARACTERS + 1):
            size += len(line)
            if size > MAX_ROW_CHARACTERS:
                raise DataError(f"{path}:{begin}: a row longer than {MAX_ROW_CHARACTERS} characters; a quote may be missing")
            yield line

    csv.field_size_limit(MAX_ROW_CHARACTERS)  # the default of 131,072 characters is less than a long conversation
    with open_bytes(path, meter) as opened, TextIOWrapper(opened, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(lines(), delimiter=_delimiter(path.name, opened.peek(1)), strict=True)
        try:
            columns = next(filter(None, reader), [])
            if len(set(columns)) != len(columns):
                raise DataError(f"{path}:{reader.line_num}: repeated column name: {', '.join(columns)}")
            begin = reader.line_num + 1
            for cells in reader:
                where = f"{path.name}:{begin}"
                if len(cells) == len(columns):
                    row = zip(columns, cells, strict=True)
                    yield Placed(where, {name: _number(cell) if name in numbers else cell for name, cell in row})
                elif cells:
                    yield Malformed(f"{where}: {len(cells)} cells, but the header has {len(columns)}")
                begin, size = reader.line_num + 1, 0
        except csv.Error as error:
            raise DataError(f"{path}:{begin}: invalid CSV in the row that begins here: {error}") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _delimiter(name: str, start: bytes) -> str:
    """Return the delimiter that gives the header the most columns; where commas are decimal points, spreadsheets write semicolons.

    `start` is the beginning of the file, with the whole header.
    """
    header = start.decode(errors="replace").lstrip("\ufeff\r\n").splitlines()[:1]
    marks = ("\t" if ".tsv" in name else ",", ",", ";", "\t", "|")
    return max(marks, key=lambda mark: len(next(csv.reader(header, delimiter=mark), [])))
