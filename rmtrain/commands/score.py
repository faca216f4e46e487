"""`rmtrain score`: rewards for a file of conversations, streamed in chunks of lines, resumed where an earlier run stopped."""

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from accelerate.utils import gather_object
from filelock import lock_descriptor
from rich.console import Console
from rich.text import Text

from rmtrain.commands.options import CommandResult, ScoreOptions, checked_precision
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.rows.readers import Line, Malformed, open_bytes, read_lines
from rmtrain.data.text.tokenizer import replaced_pad_token
from rmtrain.engine.distributed import model_device, run_on_main, start_evaluation, stopping
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.errors import DataError, NumericError, RecipeError, Stopped, TryAgain, missing
from rmtrain.evaluation.scorer import (
    MAX_TOKENS,
    WRITTEN,
    InputRow,
    RewardScorer,
    format_response,
    parse_input,
)
from rmtrain.evaluation.scores_file import differences, read_settings, settings_file, write_settings
from rmtrain.files import NO_LOCKS, expanded
from rmtrain.report.progress import ScoringProgress, is_watched

CHUNK = 256
"""Lines that are scored together and written at once. A reward depends, in its last bits, on its chunk and nothing else: not on where a
run was resumed, nor on the number of processes."""
STANDARD = "-"
MAX_NAMED = 10

Numbered = tuple[int, Line | Malformed]
"""A line of the input, after its number, counted from 1."""
Chunk = tuple[int, list[Numbered]]
"""The number of a chunk, and its lines."""
Encoded = tuple[InputRow, TokenizedComparison, bool]
"""A line of the input, its tokens, and whether some of its sequences were cut."""


def score(options: ScoreOptions, console: Console) -> CommandResult:
    """Score the lines of a file in their order; see `parse_input` for the lines, and `format_response` for the output.

    A partial output with the same model and settings is resumed; the result is byte for byte that of an uninterrupted run. Processes that
    are launched together score a chunk each, and the result is that of one process.

    Raises:
        RecipeError: the source is missing, or something else wrote the output.
        DataError: a line cannot be scored, without `skip_bad`, or there are no lines at all. The lines before its chunk are written.
        CheckpointError: no model, or no score head. NumericError: a reward is not finite. The lines before its chunk are written.
        TryAgain: another process is writing the output.
        Stopped: a signal came to one of several processes.
    """
    accelerator = start_evaluation()
    run_on_main(accelerator, partial(_check_paths, options.source, options.target))
    scorer = RewardScorer(
        options.model,
        device=model_device(accelerator),
        precision=checked_precision(options.precision),
        max_length=options.max_length,
        overlong="cut" if options.cut else "error",
        max_tokens=options.max_tokens or MAX_TOKENS,
        allow_template_change=options.allow_template_change,
    )
    head = scorer.model.head_weight_1H.detach().float().cpu().numpy().tobytes()
    settings = {
        "model": options.model,
        **scorer.settings,
        "head_sha256": hashlib.sha256(head).hexdigest(),
        "max_tokens": scorer.max_tokens,
        "chunk": CHUNK,
        "best_of": options.best_of,
    }
    console = console if accelerator.is_main_process else Console(quiet=True)
    read = cut = 0
    problems: list[str] = []
    # Rewards on stdout would be written into the live line.
    live = is_watched(console) and options.target != STANDARD
    with stopping(accelerator) as stop, ScoringProgress(console, "lines", live=live) as progress, ExitStack() as stack:
        if options.target == STANDARD:
            stack.enter_context(until_closed())
        files = ScoreFiles(options, settings, stack)
        resume_chunk, resumed = run_on_main(accelerator, files.open)
        rows = resumed

        # Each turn reads as many chunks as there are processes; each process scores one of them.
        while chunks := run_on_main(accelerator, partial(files.next_chunks, accelerator.num_processes, stop)):
            read += sum(len(lines) for _, lines in chunks)
            if scorer.layout is None:
                # By the first chunk of the input on all processes, and also when it is already scored: rewards depend on the layout.
                scorer.choose_layout([tokens for _, tokens, _ in encode(chunks[0][1], scorer)[0]])
            mine = [lines for number, lines in chunks[accelerator.process_index :][:1] if number >= resume_chunk]
            results: list[ScoredChunk] = gather_object([score_chunk(lines, scorer, options, stop) for lines in mine])
            stop.check()

            complete = list(itertools.takewhile(lambda result: result.error is None, results))
            rows += run_on_main(accelerator, partial(files.write, [result.lines for result in complete]))
            for result in complete:
                cut += result.cut
                problems += result.problems[: MAX_NAMED - len(problems)]
                progress.step(len(result.lines))
            if len(complete) < len(results):
                error = results[len(complete)].error
                assert error is not None, "only an error ends the complete chunks"
                raise error
        stop.check()
        run_on_main(accelerator, files.finish)
    if not rows:
        raise DataError(f"{_name(options.source, 'stdin')}: no line to score")

    for problem in problems:
        console.print(f"skipped: {problem}", highlight=False, markup=False)
    document = {
        "rows": rows,
        "resumed_after": resumed,
        "skipped": read - rows,
        "cut": cut,
        "output": options.target,
        "pad_token": replaced_pad_token(scorer.tokenizer),
        "settings": settings,
    }
    report = [f"scored        {rows:,} lines" + (f", {resumed:,} of them earlier" if resumed else "")]
    if read > rows:
        report.append(f"skipped       {read - rows:,} lines that cannot be scored")
    if cut:
        report.append(f"cut           {cut:,} lines longer than {settings['max_length']:,} tokens, at their beginning")
    return CommandResult(Text("\n".join([*report, f"output        {_name(options.target, 'stdout')}"])), document)


def _check_paths(source: str, target: str) -> None:
    if source == STANDARD:
        return
    if not expanded(source).is_file():
        raise RecipeError(f"{missing(source)}")
    if target != STANDARD and expanded(source).resolve() == expanded(target, "--output").resolve():
        raise RecipeError(f"{target}: the output is the input; name another file")


def _name(path: str, standard: str) -> str:
    return standard if path == STANDARD else Path(path).name


def encode(lines: Sequence[Numbered], scorer: RewardScorer) -> tuple[list[Encoded], list[DataError]]:
    """Return the lines that can be scored with their tokens, and the problems of the others, both in order."""
    rows: list[InputRow] = []
    problems: dict[int, DataError] = {}
    for number, line in lines:
        try:
            rows.append(parse_input(line, number, scorer.variables))
        except DataError as problem:
            problems[number] = problem
    try:
        encoded = list(zip(rows, *scorer.encoder.encode_for_scoring([row.request for row in rows]), strict=True))
    except DataError:  # names one line only; encode each alone to know about all
        encoded = []
        for row in rows:
            try:
                (tokens,), (is_cut,) = scorer.encoder.encode_for_scoring([row.request])
                encoded.append((row, tokens, is_cut))
            except DataError as problem:
                problems[row.number] = problem
    return encoded, [problems[number] for number in sorted(problems)]


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """Lines of the output with their numbers in the input; how many were cut; and the first of those that were skipped.

    error: ends the run; nothing of the chunk is written.
    """

    lines: list[tuple[int, str]] = field(default_factory=list)
    cut: int = 0
    problems: list[str] = field(default_factory=list)
    error: DataError | NumericError | None = None


def score_chunk(lines: Sequence[Numbered], scorer: RewardScorer, options: ScoreOptions, stop: GracefulShutdown) -> ScoredChunk:
    """Score the lines of a chunk on this process alone. Without a result after a signal, which all processes then find by `stop`."""

    def check() -> None:
        if stop.received is not None:
            raise Stopped(stop.received)

    encoded, bad = encode(lines, scorer)
    if bad and not options.skip_bad:
        return ScoredChunk(error=bad[0])
    try:
        rewards = scorer.rewards([tokens for _, tokens, _ in encoded], check)
    except NumericError as error:
        return ScoredChunk(error=error)
    except Stopped:
        if stop.received is None:  # a single process: its handler raises at once
            raise
        return ScoredChunk()
    written = []
    for (row, _, is_cut), of_row in zip(encoded, rewards, strict=True):
        response = format_response(row, of_row, is_cut, options.best_of)
        written.append((row.number, json.dumps(response, ensure_ascii=False, allow_nan=False) + "\n"))
    problems = [line for problem in bad[:MAX_NAMED] for line in problem.problems]
    return ScoredChunk(written, sum(is_cut for _, _, is_cut in encoded), problems)


class ScoreFiles:
    """The input and the output of `rmtrain score`, which only the main process opens and uses; `stack` closes both.

    `settings`, everything that rewards depend on, are stored next to the output, and compared when it is resumed.
    """

    def __init__(self, options: ScoreOptions, settings: Mapping[str, Any], stack: ExitStack) -> None:
        self.options, self.settings, self.stack = options, settings, stack
        self._chunks: Iterator[Chunk] = iter(())
        self._output: IO[bytes] = sys.stdout.buffer
        # The complete lines of the output: how many, where they end, and the input line of the last.
        self._rows = self._end = self._last_line = 0
        # Those of its last chunk, until they are confirmed: line of the output, line of the input, and the row without its rewards.
        self._tail: list[tuple[int, int, dict[str, Any]]] = []

    def open(self) -> tuple[int, int]:
        """Open both; return the first chunk to score, and the number of complete lines that the output already has.

        Raises:
            RecipeError: something else wrote the output, or it has other settings, unless `fresh`.
            TryAgain: another process is writing it.
        """
        source, target = self.options.source, self.options.target
        stream = sys.stdin.buffer
        if source != STANDARD:
            stream = self.stack.enter_context(open_bytes(expanded(source)))
        lines = read_lines(_name(source, "stdin"), stream)
        # By line number, not by count, so that skipped and empty lines do not shift the chunks.
        self._chunks = ((n, list(group)) for n, group in itertools.groupby(lines, lambda line: (line[0] - 1) // CHUNK))
        if target == STANDARD:
            return 0, 0

        path = expanded(target, "--output")
        if path.exists() and not path.is_file():  # such as /dev/null, or a named pipe
            self._output = self.stack.enter_context(path.open("wb"))
            return 0, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._output = self.stack.enter_context(path.open("r+b"))
        self.stack.callback(os.fsync, self._output.fileno())
        try:
            if not lock_descriptor(self._output.fileno(), blocking=False):
                raise TryAgain(f"{target}: another process is writing it; wait for it, or name another file")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if path.stat().st_size and not self.options.fresh:
            self._read_output(path)
        if not self._rows:
            self._output.seek(0)
            self._output.truncate()
            write_settings(path, self.settings)
        return max(0, self._last_line - 1) // CHUNK, self._rows

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
        last: deque[tuple[int, bytes]] = deque(maxlen=CHUNK)
        for line in self._output:
            if line.endswith(b"\n"):
                self._rows, self._end = self._rows + 1, self._end + len(line)
                last.append((self._rows, line))
        for place, line in last:
            try:
                row = json.loads(line)
                self._last_line = int(row["input_line"])
            except (ValueError, KeyError, TypeError):
                raise RecipeError(
                    f"{path}:{place}: not a line of rmtrain score; name another file, or pass --fresh to overwrite it"
                ) from None
            self._tail.append((place, self._last_line, _without_scores(row)))
        chunk = (self._last_line - 1) // CHUNK
        self._tail = [row for row in self._tail if (row[1] - 1) // CHUNK == chunk]

    def next_chunks(self, count: int, stop: GracefulShutdown) -> list[Chunk]:
        """Return up to `count` chunks; none where the input ends, or where a signal comes while it is silent."""
        try:
            with stop.raise_immediately():
                return list(itertools.islice(self._chunks, count))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{_name(self.options.source, 'stdin')}: damaged archive: {error}") from error
        except Stopped:
            if stop.received is None:
                raise
            return []

    def write(self, chunks: Sequence[Sequence[tuple[int, str]]]) -> int:
        """Write the lines of chunks that the output does not have yet; return their number."""
        if self._tail and chunks:
            computed = {number: _without_scores(json.loads(text)) for number, text in chunks[0]}
            self._refuse([(place, number) for place, number, row in self._tail if computed.get(number) != row])
            self._tail = []
            self._output.seek(self._end)
            self._output.truncate()  # a last line that was cut off
        new = [text for lines in chunks for number, text in lines if number > self._last_line]
        self._output.write("".join(new).encode())
        self._output.flush()
        return len(new)

    def finish(self) -> None:
        """Flush the output to the disk and close both."""
        self._refuse([(place, number) for place, number, _ in self._tail])
        self.stack.close()

    def _refuse(self, lines: Sequence[tuple[int, int]]) -> None:
        """Raise DataError for the first of lines that are not the input's: their numbers in the output and in the input."""
        for place, number in lines[:1]:
            raise DataError(
                f"{self.options.target}:{place}: not the reward of line {number} of {_name(self.options.source, 'stdin')}; "
                "pass the same input, or --fresh to overwrite the output"
            )


def _without_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in WRITTEN}


@contextmanager
def until_closed() -> Iterator[None]:
    """End as by SIGPIPE when the reader of standard output, such as `head`, goes away."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes stdout at exit
        raise Stopped(signal.SIGPIPE, "standard output was closed by its reader") from None
