"""`rmtrain score`: rewards for a file of conversations, streaming, and going on where it was interrupted."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text

from rmtrain.batching.plan import Indices
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.score_files import CHUNK, STANDARD, Chunk, Done, Numbered, name_of
from rmtrain.commands.score_together import Files, shared_files
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.engine.processes import device_of, start_scoring, stopping
from rmtrain.engine.together import on_main
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.conversations import Question, answered, read_question
from rmtrain.evaluation.rows import Rows
from rmtrain.evaluation.score import score as score_rows
from rmtrain.evaluation.scorer import MAX_TOKENS, Precision, RewardScorer, finite
from rmtrain.evaluation.sequences import Overlong
from rmtrain.report.pace import Pace

MAX_NAMED = 10
Ready = tuple[Question, TokenizedComparison, bool]


@dataclass(frozen=True, slots=True)
class Wanted:
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


def score(wanted: Wanted, console: Console) -> Outcome:
    """Score the lines of a file in their order; see `read_question` for what a line may be and `answered` for what is written.

    A file that was begun with the same model and settings is gone on with: its last chunk is computed again, and the result is byte for
    byte that of a run that was not interrupted. Processes that are launched together share the work, and the result is that of one.

    Raises:
        RecipeError: a source that is not there, or an output that something else wrote.
        DataError: a line that cannot be scored, without `skip_bad`, or no lines at all. Lines before its chunk are written.
        CheckpointError: no model, or no score head. NumericError: a reward that is not finite. Lines before its chunk are written.
        Stopped: a signal, of several processes.
    """
    accelerator = start_scoring()
    on_main(accelerator, partial(_check, wanted))
    scorer = RewardScorer(
        wanted.model,
        device=device_of(accelerator),
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


def _check(wanted: Wanted) -> None:
    if wanted.source != STANDARD and not Path(wanted.source).expanduser().is_file():
        raise RecipeError(f"{wanted.source}: there is no such file")
    if wanted.target != STANDARD and wanted.source != STANDARD:
        source, target = (Path(path).expanduser().resolve() for path in (wanted.source, wanted.target))
        if source == target:
            raise RecipeError(f"{wanted.target}: the output is the input; name another file")


def _settings(scorer: RewardScorer, wanted: Wanted) -> dict[str, Any]:
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
    wanted: Wanted
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
            json.dumps(answered(question, found, is_cut, self.wanted.best_of), ensure_ascii=False, allow_nan=False) + "\n"
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


def _outcome(wanted: Wanted, settings: dict[str, Any], count: Count) -> Outcome:
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
    return Outcome(Text("\n".join([*lines, f"output        {name_of(wanted.target, 'stdout')}"])), document)
