"""The files of `rmtrain score`: lines in by chunks, and an output that is gone on with where it ends."""

import fcntl
import gzip
import itertools
import json
import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rmtrain.data.claim import NO_LOCKS
from rmtrain.data.raw.json_reader import MAX_LINE_BYTES, Line, open_bytes
from rmtrain.errors import DataError, RecipeError, Stopped, TryAgain
from rmtrain.evaluation.conversations import WRITTEN
from rmtrain.evaluation.settings import differences, read_settings, settings_file, write_settings

CHUNK = 256
"""Lines of the input that are scored together and written at once. What a line gets depends on its chunk alone, wherever a run begins."""
STANDARD = "-"
Numbered = tuple[int, Line]
Chunk = tuple[int, list[Numbered]]


@dataclass(frozen=True, slots=True)
class Done:
    """What an output holds: the number of its first chunk that may not be whole, and the lines of that; the lines before, and their end."""

    chunk: int = 0
    lines: int = 0
    end: int = 0
    tail: tuple[bytes, ...] = ()


class Sink:
    """Where lines are written, after those that are `done`.

    Args:
        path: what errors call it.
        stream: where; it is cut when the first lines come, and no sooner.
        done: what it holds.
    """

    def __init__(self, path: str, stream: IO[bytes], done: Done) -> None:
        self.path, self.stream, self.done = path, stream, done
        self._begun = False

    def write(self, lines: Sequence[str]) -> None:
        """Write the lines of a chunk; raises DataError where the first ones are not those that the output has already."""
        if not self._begun and self.done.tail:
            self._go_on(lines)
        self._begun = True
        self.stream.write("".join(lines).encode())
        self.stream.flush()

    def _go_on(self, lines: Sequence[str]) -> None:
        for number, (before, now) in enumerate(zip(self.done.tail, lines, strict=False), self.done.lines + 1):
            if _said(before) != _said(now):
                raise DataError(
                    f"{self.path}:{number}: it is of another line than the input has; is it the input that it was begun with?"
                )
        self.stream.truncate(self.done.end)
        self.stream.seek(self.done.end)


def _said(line: str | bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in WRITTEN}


@contextmanager
def opened(source: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, or of standard input."""
    if source == STANDARD:
        yield sys.stdin.buffer
        return
    with open_bytes(Path(source).expanduser()) as stream:
        yield stream


def read_lines(stream: IO[bytes], source: str) -> Iterator[Numbered]:
    """Lines that are not empty with their numbers, counted from 1; of one that is too long no more than its beginning is read.

    Raises:
        DataError: a damaged archive.
    """
    for number in itertools.count(1):
        try:
            content = stream.readline(MAX_LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{name_of(source)}: damaged archive: {error}") from error
        if not content:
            return
        while len(content) > MAX_LINE_BYTES and not content.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES)
            if not rest or rest.endswith(b"\n"):
                break
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        if content.strip():
            yield number, Line(f"{name_of(source)}:{number}", content.rstrip())


def in_chunks(lines: Iterator[Numbered]) -> Iterator[Chunk]:
    """Lines by the number of their chunk."""
    for number, group in itertools.groupby(lines, lambda numbered: (numbered[0] - 1) // CHUNK):
        yield number, list(group)


@contextmanager
def output(target: str, settings: Mapping[str, Any], fresh: bool) -> Iterator[Sink]:
    """The output, at the place where writing goes on, with what it holds; its settings are beside it.

    Raises:
        RecipeError: a file that something else wrote, or that was begun with other settings, unless `fresh`.
        TryAgain: another process writes to it.
    """
    if target == STANDARD:
        yield Sink("stdout", sys.stdout.buffer, Done())
        return
    path = Path(target).expanduser()
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield Sink(target, stream, Done())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as stream:
        _lock(stream, target)
        done = Done() if fresh else _done(path, settings)
        if not done.tail:
            stream.truncate(0)
            write_settings(path, settings)
        yield Sink(target, stream, done)
        os.fsync(stream.fileno())


def _lock(stream: IO[bytes], target: str) -> None:
    """Hold the output until it is closed, where the file system has locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TryAgain(f"{target}: another process writes to it; wait for it, or name another file") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


@contextmanager
def until_closed() -> Iterator[None]:
    """Whoever reads standard output may go away, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Stopped(signal.SIGPIPE, "nobody reads the output any more") from None


def _done(path: Path, settings: Mapping[str, Any]) -> Done:
    """How far an output got. Its last chunk counts as not whole."""
    if not path.stat().st_size:
        return Done()
    before = read_settings(path)
    if before is None:
        raise RecipeError(
            f"{path} exists, and was not begun by rmtrain score ({settings_file(path).name} is not there); "
            "name another file, or give --fresh to overwrite it"
        )
    differing = differences(before, settings, list(settings))
    if differing:
        raise RecipeError(
            f"{path} was begun with other settings: {'; '.join(differing)}; use the same, or give --fresh to overwrite it"
        )
    last: deque[tuple[int, int, bytes]] = deque(maxlen=CHUNK + 1)
    with path.open("rb") as stream:
        end = 0
        for index, line in enumerate(stream):
            if line.endswith(b"\n"):
                last.append((index, end, line))
            end += len(line)
    if not last:
        return Done()
    numbers = [_line_number(path, index, line) for index, _, line in last]
    chunk = (numbers[-1] - 1) // CHUNK
    first = next(place for place, number in enumerate(numbers) if (number - 1) // CHUNK == chunk)
    index, begin, _ = last[first]
    return Done(chunk, index, begin, tuple(line for _, _, line in list(last)[first:]))


def _line_number(path: Path, index: int, line: bytes) -> int:
    try:
        return int(json.loads(line)["input_line"])
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"{path}:{index + 1}: no line that rmtrain score wrote; name another file, or give --fresh") from None


def name_of(path: str, standard: str = "stdin") -> str:
    """The name of a file, and what standard input or output is called."""
    return standard if path == STANDARD else Path(path).name
