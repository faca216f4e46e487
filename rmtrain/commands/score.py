"""`rmtrain score`: rewards for a file of conversations, streaming, and going on where it was interrupted."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rmtrain.commands.outcome import Outcome
from rmtrain.commands.score_files import CHUNK, STANDARD, Done, Numbered, Sink, in_chunks, name_of, opened, output, read_lines
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.conversations import Question, answered, read_question
from rmtrain.evaluation.scorer import MAX_TOKENS, Precision, RewardScorer
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
    byte that of a run that was not interrupted.

    Raises:
        RecipeError: a source that is not there, or an output that something else wrote.
        DataError: a line that cannot be scored, without `skip_bad`, or no lines at all. Lines before its chunk are written.
        CheckpointError: no model, or no score head. NumericError: a reward that is not finite.
    """
    _check(wanted)
    scorer = RewardScorer(
        wanted.model,
        precision=wanted.precision,
        max_length=wanted.max_length,
        overlong=wanted.overlong,
        max_tokens=wanted.max_tokens,
        allow_template_change=wanted.allow_template_change,
    )
    settings = _settings(scorer, wanted)
    count, pace = Count(), Pace(console, "lines")
    with opened(wanted.source) as source, output(wanted.target, settings, wanted.fresh) as out:
        count.before = out.done.lines
        for number, chunk in in_chunks(read_lines(source, wanted.source)):
            count.read += len(chunk)
            if scorer.layout is not None and number < out.done.chunk:
                continue
            ready = _ready(chunk, scorer, wanted, count)
            scorer.choose_layout([comparison for _, comparison, _ in ready])
            if number >= out.done.chunk:
                _write(ready, scorer, wanted, out, count)
                pace.step(len(ready))
        if not count.written:
            raise DataError(f"{name_of(wanted.source)}: {_nothing(out.done, wanted.target)}")
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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("rmtrain score runs in one process; split the file, and start one for each part")


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


def _ready(chunk: Sequence[Numbered], scorer: RewardScorer, wanted: Wanted, count: Count) -> list[Ready]:
    """The lines of a chunk as tokens; those that cannot be scored are left out, or end the work."""
    questions: list[Question] = []
    for number, line in chunk:
        try:
            questions.append(read_question(line, number))
        except DataError as problem:
            _bad(problem, wanted, count)
    try:
        comparisons, were_cut = scorer.encode([question.asked for question in questions])
        return list(zip(questions, comparisons, were_cut, strict=True))
    except DataError:
        return [ready for question in questions for ready in _ready_alone(question, scorer, wanted, count)]


def _ready_alone(question: Question, scorer: RewardScorer, wanted: Wanted, count: Count) -> list[Ready]:
    try:
        comparisons, were_cut = scorer.encode([question.asked])
    except DataError as problem:
        _bad(problem, wanted, count)
        return []
    return [(question, comparisons[0], were_cut[0])]


def _bad(problem: DataError, wanted: Wanted, count: Count) -> None:
    if not wanted.skip_bad:
        raise DataError(*problem.problems) from problem
    if len(count.problems) < MAX_NAMED:
        count.problems += problem.problems


def _write(ready: Sequence[Ready], scorer: RewardScorer, wanted: Wanted, out: Sink, count: Count) -> None:
    found = scorer.rewards([comparison for _, comparison, _ in ready])
    lines = [
        json.dumps(answered(question, rewards, is_cut, wanted.best_of), ensure_ascii=False, allow_nan=False) + "\n"
        for (question, _, is_cut), rewards in zip(ready, found, strict=True)
    ]
    out.write(lines)
    count.written += len(lines)
    count.cut += sum(is_cut for _, _, is_cut in ready)


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
