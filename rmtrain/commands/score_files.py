"""The input and the output of `rmtrain score`: what is read and written, and what is refused so that nothing is lost."""

import gzip
import hashlib
import itertools
import json
import os
import signal
import stat
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from rmtrain.command_line.model_options import ScoreOptions
from rmtrain.data.rows.readers import Line, Malformed, open_bytes, read_lines
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.run_dir import disk_errors
from rmtrain.errors import DataError, RecipeError, Stopped, TryAgain, missing
from rmtrain.evaluation.scorer import WRITTEN
from rmtrain.evaluation.scores_file import differences, read_settings, settings_file, write_settings
from rmtrain.files import NO_LOCKS, expanded

CHUNK = 256
"""Lines that are scored together and written at once. A reward depends, in its last bits, on its chunk and nothing else: not on where a
run was resumed, nor on the number of processes."""
STANDARD = "-"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".parquet")

Numbered = tuple[int, Line | Malformed]
"""A line of the input, after its number, counted from 1."""
Chunk = tuple[int, list[Numbered]]
"""The number of a chunk, and its lines."""


def check_paths(source: str, target: str) -> None:
    """Raise RecipeError for a source that is missing, and for an output that is not plain text, or the input under any name."""
    if source != STANDARD and not expanded(source).is_file():
        raise RecipeError(f"{missing(source)}")
    if Path(target).suffix.lower() in COMPRESSED:
        raise RecipeError(f"{target}: the output is not compressed; leave out {Path(target).suffix}, and compress it afterwards")
    if expanded(target, "--output").is_dir():
        raise RecipeError(f"{target}: is a directory; name a file in it")
    if (source == STANDARD and sys.stdin is None) or (target == STANDARD and sys.stdout is None):
        raise RecipeError("-: standard input or output is closed; name a file")
    given = _regular_file(source, 0)
    for path in [target] if target == STANDARD else [target, str(settings_file(Path(target)))]:
        output = _regular_file(path, 1)
        if given is not None and output is not None and os.path.samestat(given, output):
            raise RecipeError(f"{shown(path, 'stdout')}: the output is the input; name another file")


def _regular_file(path: str, standard: int) -> os.stat_result | None:
    """Return the file that a path or a standard stream leads to, by any link; None for a pipe, a terminal or a missing file."""
    try:
        status = os.fstat(standard) if path == STANDARD else expanded(path).stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def shown(path: str, standard: str) -> str:
    """Return the name of a file as messages have it, or that of the standard stream that `-` stands for."""
    return standard if path == STANDARD else Path(path).name


class ScoreFiles:
    """The input and the output of `rmtrain score`, which only the main process opens and uses; `stack` closes both.

    `settings`, everything that rewards depend on, are stored next to the output, and compared when it is resumed. So is a hash of the
    lines of the input that were scored: another input is refused before anything is written.
    """

    def __init__(self, options: ScoreOptions, settings: Mapping[str, Any], stack: ExitStack) -> None:
        self.options, self.settings, self.stack = options, settings, stack
        self._chunks: Iterator[Chunk] = iter(())
        self._output: IO[bytes]
        self._path: Path | None = None
        # The complete lines of the output: how many, where they end, and the input line of the last; and the size of the whole.
        self._rows = self._end = self._last_line = self._size = 0
        # The lines of the input that have been read, and after each chunk that will be scored: the last line, and the hash of all.
        self._digest, self._read = hashlib.sha256(), deque[tuple[int, str]]()
        # The last line that was scored earlier, and the hash up to it, until the input has been compared.
        self._scored: tuple[int, str] | None = None
        self._resume_chunk = 0
        # Those of its last chunk, until they are confirmed: line of the output, line of the input, and the row without its rewards.
        self._tail: list[tuple[int, int, dict[str, Any]]] = []

    def open(self) -> tuple[int, int]:
        """Open both; return the first chunk to score, and the number of complete lines that the output already has.

        Raises:
            RecipeError: something else wrote the output, or it has other settings, unless `fresh`.
            TryAgain: another process is writing it.
        """
        source, target = self.options.source, self.options.target
        stream = sys.stdin.buffer if source == STANDARD else self.stack.enter_context(open_bytes(expanded(source)))
        lines = read_lines(shown(source, "stdin"), stream)
        # By line number, not by count, so that skipped and empty lines do not shift the chunks.
        self._chunks = ((n, list(group)) for n, group in itertools.groupby(lines, lambda line: (line[0] - 1) // CHUNK))
        if target == STANDARD:
            self._output = sys.stdout.buffer
            return 0, 0

        path = expanded(target, "--output")
        try:
            if path.exists() and not path.is_file():  # such as /dev/null, or a named pipe
                self._output = self.stack.enter_context(path.open("wb", buffering=0))
                return 0, 0
            path.parent.mkdir(parents=True, exist_ok=True)
            # Appending: where another process cuts the file, what is written next leaves no hole.
            self._output, self._path = self.stack.enter_context(path.open("ab+", buffering=0)), path
        except OSError as error:
            raise RecipeError(f"{target}: cannot be written: {error.strerror}; name another file") from error
        self.stack.callback(os.fsync, self._output.fileno())
        try:
            if not lock_descriptor(self._output.fileno(), blocking=False):
                raise TryAgain(f"{target}: another process is writing it; wait for it, or name another file")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        self._size = os.fstat(self._output.fileno()).st_size
        if self._size and not self.options.fresh:
            self._read_output(path)
        elif not self.options.fresh:
            self._check_settings(path)
        self._resume_chunk = max(0, self._last_line - 1) // CHUNK
        return self._resume_chunk, self._rows

    def _check_settings(self, path: Path) -> None:
        """Raise RecipeError if the settings of a new output would replace those of another file."""
        before = read_settings(path)
        if before is None:
            return
        owner = before.get("output", path.name)
        if "head_sha256" not in before or (owner != path.name and (path.parent / str(owner)).exists()):
            raise RecipeError(
                f"{settings_file(path)}: belongs to another file; name another output, or pass --fresh to overwrite it"
            )

    def _read_output(self, path: Path) -> None:
        """Note the complete lines of the output. Those of the last chunk are computed again, to confirm that the input is the same."""
        before = read_settings(path)
        if before is None:
            raise RecipeError(
                f"{path}: exists, and {settings_file(path).name}, which rmtrain score writes, does not; "
                "name another file, or pass --fresh to overwrite it"
            )
        differing = differences(before, self.settings, list(self.settings))
        if differing:
            raise RecipeError(
                f"{path}: has other settings: {'; '.join(differing)}; use the same, or pass --fresh to overwrite it"
            )
        scored = before.get("input")
        if scored is not None:
            try:
                self._scored = int(scored["lines"]), str(scored["sha256"])
            except (ValueError, KeyError, TypeError):
                raise RecipeError(f"{settings_file(path)}: input: damaged; pass --fresh to overwrite the output") from None
        last: deque[tuple[int, bytes]] = deque(maxlen=CHUNK)
        foreign = "not a line of rmtrain score; name another file, or pass --fresh to overwrite it"
        with open(self._output.fileno(), "rb", closefd=False) as existing:
            existing.seek(0)
            for line in existing:
                if line.endswith(b"\n"):
                    self._rows, self._end = self._rows + 1, self._end + len(line)
                    last.append((self._rows, line))
                    if not line.startswith(b"{"):
                        raise RecipeError(f"{path}:{self._rows}: {foreign}")
        for place, line in last:
            try:
                row = json.loads(line)
                self._last_line = int(row["input_line"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise RecipeError(f"{path}:{place}: {foreign}") from None
            self._tail.append((place, self._last_line, _without_scores(row)))
        chunk = (self._last_line - 1) // CHUNK
        self._tail = [row for row in self._tail if (row[1] - 1) // CHUNK == chunk]

    def next_chunks(self, count: int, stop: GracefulShutdown) -> list[Chunk]:
        """Return up to `count` chunks; none where the input ends, or where a signal comes while it is silent."""
        try:
            with stop.raise_immediately():
                chunks = list(itertools.islice(self._chunks, count))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{shown(self.options.source, 'stdin')}: damaged archive: {error}") from error
        except Stopped:
            if stop.received is None:
                raise
            return []
        for number, lines in chunks:
            for place, line in lines:
                self._digest.update(
                    b"%d " % place + (line.detail.encode() if isinstance(line, Malformed) else line.content) + b"\n"
                )
                self._compare_input(place)
            if number >= self._resume_chunk:
                self._read.append((lines[-1][0], self._digest.hexdigest()))
        if len(chunks) < count:
            self._compare_input(None)
        return chunks

    def _compare_input(self, line: int | None) -> None:
        """At a line of the input, None: at its end, raise DataError if what was scored earlier is not what it has up to here."""
        if self._scored is None:
            return
        last, digest = self._scored
        if line is None or line >= last:
            if last and (line != last or self._digest.hexdigest() != digest):
                raise DataError(
                    f"{self.options.target}: holds the rewards of {last:,} lines that {shown(self.options.source, 'stdin')} does not "
                    "begin with; pass the same input, or --fresh to overwrite the output"
                )
            self._scored = None

    def write(self, chunks: Sequence[Sequence[tuple[int, str]]]) -> int:
        """Write the lines of chunks that the output does not have yet; return their number."""
        if self._tail and chunks:
            computed = {number: _without_scores(json.loads(text)) for number, text in chunks[0]}
            self._refuse([(place, number) for place, number, row in self._tail if computed.get(number) != row])
            self._tail = []
        new = [text for lines in chunks for number, text in lines if number > self._last_line]
        if not chunks:
            return 0
        content = memoryview("".join(new).encode())
        self._check_output()
        with disk_errors(Path(shown(self.options.target, "standard output"))):
            if self._size != self._end:  # a last line that was cut off, or all, with --fresh
                self._output.truncate(self._end)
            if not self._end:
                self._write_settings(0, "")
            self._size = self._end = self._end + len(content)
            try:
                while content:
                    content = content[self._output.write(content) :]
                self._output.flush()
            except BrokenPipeError:  # a named pipe
                raise Stopped(signal.SIGPIPE) from None
            for _ in chunks:
                last_line, digest = self._read.popleft()
            self._write_settings(last_line, digest)
        return len(new)

    def _write_settings(self, lines: int, digest: str) -> None:
        if self._path is not None:
            scored = {"lines": lines, "sha256": digest}
            write_settings(self._path, {**self.settings, "output": self._path.name, "input": scored})

    def _check_output(self) -> None:
        """Raise TryAgain if the output is no longer what this process wrote: then its rewards would be lost silently."""
        if self._path is None:
            return
        ours, problem = os.fstat(self._output.fileno()), ""
        try:
            if not os.path.samestat(ours, self._path.stat()):
                problem = "another file has taken its place; move it away"
            elif ours.st_size != self._size:
                problem = f"it has {ours.st_size:,} bytes, {self._size:,} were written; keep other processes from it"
        except OSError as error:
            problem = f"{error.strerror}; keep it in its place"
        if problem:
            raise TryAgain(f"{self.options.target}: changed while it was written: {problem}, and run the same command again")

    def finish(self) -> None:
        """Flush the output to the disk and close both."""
        self._refuse([(place, number) for place, number, _ in self._tail])
        self._check_output()
        self.stack.close()

    def _refuse(self, lines: Sequence[tuple[int, int]]) -> None:
        """Raise DataError for the first of lines that are not the input's: their numbers in the output and in the input."""
        for place, number in lines[:1]:
            raise DataError(
                f"{self.options.target}:{place}: not the reward of line {number} of {shown(self.options.source, 'stdin')}; "
                "pass the same input, or --fresh to overwrite the output"
            )


def _without_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in WRITTEN}
