"""`rmtrain score`: rewards for a file of conversations, streaming, and going on where it was interrupted."""

import fcntl
import gzip
import hashlib
import itertools
import json
import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text

from rmtrain.batching.plan import Indices
from rmtrain.commands.result import CommandResult
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.rows.readers import MAX_LINE_BYTES, Line, open_bytes
from rmtrain.engine.distributed import model_device, run_on_main, start_evaluation, stopping
from rmtrain.engine.signals import Stop
from rmtrain.errors import DataError, RecipeError, Stopped, TryAgain
from rmtrain.evaluation.requests import WRITTEN, Question, format_response, read_question
from rmtrain.evaluation.score import Rows
from rmtrain.evaluation.score import score as score_rows
from rmtrain.evaluation.scorer import MAX_TOKENS, Overlong, Precision, RewardScorer, finite
from rmtrain.evaluation.scores_file import differences, read_settings, settings_file, write_settings
from rmtrain.files import NO_LOCKS
from rmtrain.report.progress import LinePace as Pace

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


class Files:
    """An input and an output, of which only the main process has any. All of it is called on all processes.

    Args:
        accelerator: the processes.
        stop: whether a signal came to them.
        stack: closes the files.
    """

    def __init__(self, accelerator: Accelerator, stop: Stop, stack: ExitStack) -> None:
        self.accelerator, self.stop, self.stack = accelerator, stop, stack
        self.done = Done()
        self._chunks: Iterator[Chunk] = iter(())
        self._sink: Sink | None = None

    def open(self, source: str, target: str, settings: Mapping[str, Any], fresh: bool) -> None:
        """Open both; raises what `output` raises."""

        def opening() -> Done:
            stream = self.stack.enter_context(opened(source))
            self._chunks = in_chunks(read_lines(stream, source))
            self._sink = self.stack.enter_context(output(target, settings, fresh))
            return self._sink.done

        self.done = run_on_main(self.accelerator, opening)

    def turns(self) -> Iterator[list[Chunk]]:
        """The chunks of the input, as many at a time as there are processes: of one there may be too few micro-batches for all."""
        while chunks := run_on_main(self.accelerator, self._next):
            yield chunks
        self.stop.check(self.accelerator)

    def _next(self) -> list[Chunk]:
        """The next chunks; none where the input ends, or where a signal came while it kept silent."""
        try:
            with self.stop.at_once():
                return list(itertools.islice(self._chunks, self.accelerator.num_processes))
        except Stopped:
            if self.stop.by is None:
                raise
            return []

    def write(self, chunks: Iterator[Sequence[str]]) -> None:
        """Write the lines of chunks, which are made by the main process alone; raises what making and writing them raises."""

        def writing() -> None:
            assert self._sink is not None, "the output is open"
            for lines in chunks:
                self._sink.write(lines)

        run_on_main(self.accelerator, writing)

    def close(self) -> None:
        """Close both; raises OSError where the last lines do not get to the disk."""
        run_on_main(self.accelerator, self.stack.close)


@contextmanager
def shared_files(
    accelerator: Accelerator, stop: Stop, source: str, target: str, settings: Mapping[str, Any], fresh: bool
) -> Iterator[Files]:
    """The files, open until the block ends; see `output` for the arguments and errors."""
    with until_closed() if target == STANDARD else nullcontext(), ExitStack() as stack:
        files = Files(accelerator, stop, stack)
        files.open(source, target, settings, fresh)
        yield files
        files.close()


MAX_NAMED = 10
Ready = tuple[Question, TokenizedComparison, bool]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is scored, and how.

    source, target: JSON Lines, `-` for standard input and output; the source may end in `.gz`.
    best_of: write the best response of each line rather than all.
    skip_bad: leave out lines that cannot be scored, rather than stop.
    fresh: begin anew, whatever the output holds.
    """

    model: str
    source: str
    target: str
    best_of: bool = False
    skip_bad: bool = False
    fresh: bool = False
    overlong: Overlong = "error"
    max_length: int | None = None
    precision: Precision = "auto"
    max_tokens: int = MAX_TOKENS
    allow_template_change: bool = False


@dataclass(slots=True)
class Count:
    """Lines that were read, written by this run and by those before, and cut; what was wrong with the first that were left out."""

    read: int = 0
    written: int = 0
    before: int = 0
    cut: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Lines that were left out."""
        return self.read - self.before - self.written


def score(wanted: ScoreOptions, console: Console) -> CommandResult:
    """Score the lines of a file in their order; see `read_question` for what a line may be and `format_response` for what is written.

    A file that was begun with the same model and settings is gone on with: its last chunk is computed again, and the result is byte for
    byte that of a run that was not interrupted. Processes that are launched together share the work, and the result is that of one.

    Raises:
        RecipeError: a source that is not there, or an output that something else wrote.
        DataError: a line that cannot be scored, without `skip_bad`, or no lines at all. Lines before its chunk are written.
        CheckpointError: no model, or no score head. NumericError: a reward that is not finite. Lines before its chunk are written.
        Stopped: a signal, of several processes.
    """
    accelerator = start_evaluation()
    run_on_main(accelerator, partial(_check, wanted))
    scorer = RewardScorer(
        wanted.model,
        device=model_device(accelerator),
        precision=wanted.precision,
        max_length=wanted.max_length,
        overlong=wanted.overlong,
        max_tokens=wanted.max_tokens,
        allow_template_change=wanted.allow_template_change,
    )
    settings, count = _settings(scorer, wanted), Count()
    console = console if accelerator.is_main_process else Console(quiet=True)
    with (
        stopping(accelerator) as stop,
        shared_files(accelerator, stop, wanted.source, wanted.target, settings, wanted.fresh) as files,
    ):
        count.before = files.done.lines
        work = Work(accelerator, scorer, wanted, files, count, Pace(console, "lines"))
        for chunks in files.turns():
            work.turn(chunks)
        if not count.written:
            raise DataError(f"{name_of(wanted.source)}: {_nothing(files.done, wanted.target)}")
    for problem in count.problems[:MAX_NAMED]:
        console.print(f"skipped: {problem}", highlight=False, markup=False)
    return _outcome(wanted, settings, count)


def _nothing(done: Done, target: str) -> str:
    if not done.end and not done.tail:
        return "no line to score"
    return f"it ends before the lines that {target} holds; is it the input that it was begun with?"


def _check(wanted: ScoreOptions) -> None:
    if wanted.source != STANDARD and not Path(wanted.source).expanduser().is_file():
        raise RecipeError(f"{wanted.source}: there is no such file")
    if wanted.target != STANDARD and wanted.source != STANDARD:
        source, target = (Path(path).expanduser().resolve() for path in (wanted.source, wanted.target))
        if source == target:
            raise RecipeError(f"{wanted.target}: the output is the input; name another file")


def _settings(scorer: RewardScorer, wanted: ScoreOptions) -> dict[str, Any]:
    head = scorer.model.head_weight_1H.detach().float().cpu().numpy().tobytes()
    return {
        "model": wanted.model,
        **scorer.settings,
        "head_sha256": hashlib.sha256(head).hexdigest(),
        "max_tokens": scorer.max_tokens,
        "chunk": CHUNK,
        "best_of": wanted.best_of,
    }


@dataclass(frozen=True, slots=True)
class Work:
    """What processes share: the lines of some chunks are encoded, then their micro-batches scored, each by one of them."""

    accelerator: Accelerator
    scorer: RewardScorer
    wanted: ScoreOptions
    files: Files
    count: Count
    pace: Pace

    def turn(self, chunks: Sequence[Chunk]) -> None:
        """Score some chunks of the input, and write those that are not done; called on all processes.

        Raises:
            DataError, NumericError: a line that cannot be scored; the chunks before its own are written.
        """
        self.count.read += sum(len(lines) for _, lines in chunks)
        is_first, done = self.scorer.layout is None, self.files.done.chunk
        needed = [chunk for place, chunk in enumerate(chunks) if chunk[0] >= done or (is_first and place == 0)]
        found = self._encoded([line for _, lines in needed for line in lines])
        ready: list[list[Ready]] = []
        problem: DataError | None = None
        for number, lines in needed:
            try:
                kept = self._kept([found[line] for line, _ in lines])
            except DataError as refused:
                problem = refused
                break
            self.scorer.choose_layout([comparison for _, comparison, _ in kept])
            if number >= done:
                ready.append(kept)
        self._write(ready)
        if problem is not None:
            raise problem

    def _encoded(self, lines: Sequence[Numbered]) -> dict[int, Ready | DataError]:
        """The tokens of each line, or what is wrong with it, by its number."""
        mine = lines[self.accelerator.process_index :: self.accelerator.num_processes]
        return dict(gather_object(encoded(mine, self.scorer)))

    def _kept(self, found: Sequence[Ready | DataError]) -> list[Ready]:
        """Lines without those that cannot be scored: they are left out and counted, or end the work."""
        for problem in found:
            if isinstance(problem, DataError):
                if not self.wanted.skip_bad:
                    raise problem
                if len(self.count.problems) < MAX_NAMED:
                    self.count.problems += problem.problems
        return [one for one in found if not isinstance(one, DataError)]

    def _write(self, chunks: Sequence[Sequence[Ready]]) -> None:
        rewards = self._rewards([[comparison for _, comparison, _ in chunk] for chunk in chunks])
        self.files.write(self._lines(chunk, found) for chunk, found in zip(chunks, rewards, strict=True))
        for chunk in chunks:
            self.count.written += len(chunk)
            self.count.cut += sum(is_cut for _, _, is_cut in chunk)
            self.pace.step(len(chunk))

    def _rewards(self, chunks: Sequence[Sequence[TokenizedComparison]]) -> list[list[tuple[float, ...]]]:
        """The rewards of the lines of each chunk, whose micro-batches are its own: what a line gets depends on its chunk alone."""
        rows: list[TokenizedComparison] = []
        micro_batches: list[Indices] = []
        for chunk in chunks:
            if chunk:
                layout, _, cut = self.scorer.micro_batches(chunk)
                micro_batches += [indices + len(rows) for indices in cut]
                rows += chunk
        if not rows:
            return [[] for _ in chunks]
        scorer, check = self.scorer, partial(self.files.stop.check, self.accelerator)
        scored = score_rows(scorer.model, Rows(rows), micro_batches, layout, self.accelerator, scorer.pad_token_id, check)
        found = (row.rewards for row in scored)
        return [list(itertools.islice(found, len(chunk))) for chunk in chunks]

    def _lines(self, chunk: Sequence[Ready], rewards: list[tuple[float, ...]]) -> list[str]:
        return [
            json.dumps(format_response(question, found, is_cut, self.wanted.best_of), ensure_ascii=False, allow_nan=False) + "\n"
            for (question, _, is_cut), found in zip(chunk, finite([row.id for _, row, _ in chunk], rewards), strict=True)
        ]


def encoded(lines: Sequence[Numbered], scorer: RewardScorer) -> list[tuple[int, Ready | DataError]]:
    """The tokens of each line, or what is wrong with it, with its number."""
    questions: list[Question] = []
    found: list[tuple[int, Ready | DataError]] = []
    for number, line in lines:
        try:
            questions.append(read_question(line, number))
        except DataError as problem:
            found.append((number, problem))
    try:
        comparisons, were_cut = scorer.encode([question.asked for question in questions])
        ready = zip(questions, comparisons, were_cut, strict=True)
        return [*found, *((one[0].number, one) for one in ready)]
    except DataError:
        return [*found, *((question.number, _encoded_alone(question, scorer)) for question in questions)]


def _encoded_alone(question: Question, scorer: RewardScorer) -> Ready | DataError:
    try:
        comparisons, were_cut = scorer.encode([question.asked])
    except DataError as problem:
        return problem
    return question, comparisons[0], were_cut[0]


def _outcome(wanted: ScoreOptions, settings: dict[str, Any], count: Count) -> CommandResult:
    document = {
        "rows": count.before + count.written,
        "resumed_after": count.before,
        "skipped": count.skipped,
        "cut": count.cut,
        "output": wanted.target,
        "settings": settings,
    }
    lines = [
        f"scored        {count.before + count.written:,} lines" + (f", {count.before:,} of them before" if count.before else "")
    ]
    if count.skipped:
        lines.append(f"skipped       {count.skipped:,} lines that cannot be scored")
    if count.cut:
        lines.append(f"cut           {count.cut:,} lines longer than {settings['max_length']:,} tokens, at their beginning")
    return CommandResult(Text("\n".join([*lines, f"output        {name_of(wanted.target, 'stdout')}"])), document)
