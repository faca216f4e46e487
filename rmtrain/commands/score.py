"""`rmtrain score`: rewards for a file of conversations, streamed in chunks of lines, resumed where an earlier run stopped."""

import hashlib
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text

from rmtrain.command_line.model_options import ScoreOptions, ServeOptions, checked_precision
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.score_files import CHUNK, STANDARD, Numbered, ScoreFiles, check_paths, shown
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.text.tokenizer import replaced_pad_token
from rmtrain.engine.distributed import run_on_main, start_evaluation, stopping
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.strategy import model_device
from rmtrain.errors import DataError, NumericError, Stopped
from rmtrain.evaluation.scorer import (
    MAX_TOKENS,
    InputRow,
    RewardScorer,
    format_response,
    parse_input,
)
from rmtrain.report.console import escape_json, one_line
from rmtrain.report.progress import ScoringProgress, is_watched
from rmtrain.report.terminal import TerminalConsole

MAX_NAMED = 10

Encoded = tuple[InputRow, TokenizedComparison, bool]
"""A line of the input, its tokens, and whether some of its sequences were cut."""


def load_scorer(options: ScoreOptions | ServeOptions, accelerator: Accelerator) -> RewardScorer:
    """Load the model of a command on the device of this process; raises CheckpointError where there is none, or no score head."""
    return RewardScorer(
        options.model,
        device=model_device(accelerator),
        precision=checked_precision(options.precision),
        max_length=options.max_length,
        overlong="cut" if options.cut else "error",
        max_tokens=options.max_tokens or MAX_TOKENS,
        allow_template_change=options.allow_template_change,
    )


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
    run_on_main(accelerator, partial(check_paths, options.source, options.target))
    scorer = load_scorer(options, accelerator)
    head = scorer.model.head_weight_1H.detach().float().cpu().numpy().tobytes()
    settings = {
        "model": options.model,
        **scorer.settings,
        "head_sha256": hashlib.sha256(head).hexdigest(),
        "max_tokens": scorer.max_tokens,
        "chunk": CHUNK,
        "best_of": options.best_of,
    }
    console = console if accelerator.is_main_process else TerminalConsole(quiet=True)
    read = cut = 0
    problems: list[str] = []
    # Rewards on stdout would be written into the live line.
    live = is_watched(console) and options.target != STANDARD
    with stopping(accelerator) as stop, ScoringProgress(console, "lines", live=live) as progress, ExitStack() as stack:
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
        raise DataError(f"{shown(options.source, 'stdin')}: no line to score")

    for problem in problems:
        console.print(Text(f"skipped: {one_line(problem)}"))
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
    return CommandResult(Text("\n".join([*report, f"output        {shown(options.target, 'stdout')}"])), document)


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
        written.append((row.number, escape_json(format_response(row, of_row, is_cut, options.best_of))))
    problems = [line for problem in bad[:MAX_NAMED] for line in problem.problems]
    return ScoredChunk(written, sum(is_cut for _, _, is_cut in encoded), problems)
