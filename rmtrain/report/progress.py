"""A run while it goes on: one live line in a terminal, plain lines everywhere else.

Both displays have the same methods. The loop calls `step` after every optimizer step, which is cheap, and `log` at every log line.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from rmtrain.data.rows.loading import Reading
from rmtrain.report.console import compact, duration, percent

EVERY_SECONDS = 10.0


class LinePace:
    """Tells how much is done, at most every ten seconds.

    Args:
        console: where.
        unit: what is counted.
        total: how much there is; None: not known.
    """

    def __init__(self, console: Console, unit: str, total: int | None = None) -> None:
        self.console, self.unit, self.total = console, unit, total
        self.done = 0
        self._begun = self._said = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        now = time.monotonic()
        if now - self._said >= EVERY_SECONDS:
            self._said = now
            self.console.print(self.line(now - self._begun), highlight=False)

    def line(self, seconds: float) -> str:
        """What is told after so many seconds."""
        rate = self.done / seconds
        said = f"{self.done:,} {self.unit}" if self.total is None else f"{self.done:,} of {self.total:,} {self.unit}"
        left = "" if self.total is None or not self.done else f", {duration((self.total - self.done) / rate)} left"
        return f"  {said}, {compact(rate) if rate >= 10 else f'{rate:.1f}'} a second{left}"


PACE_STEPS = 100
REFRESHES_PER_SECOND = 4.0

Clock = Callable[[], float]


class Pace:
    """Speed over the last steps.

    Args:
        clock: seconds that only increase.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self.tokens, self.start = clock, 0, clock()
        self.marks: deque[tuple[float, int, int]] = deque(maxlen=PACE_STEPS)

    def step(self, step: int, tokens: int) -> None:
        """Count a finished step; the first may have any number, as in a run that goes on."""
        if not self.marks:
            self.marks.append((self.start, step - 1, 0))
        self.tokens += tokens
        self.marks.append((self.clock(), step, self.tokens))

    def tokens_per_second(self) -> float | None:
        """None before there is anything to measure."""
        (start, _, before), (now, _, after) = self._ends()
        return (after - before) / (now - start) if now > start else None

    def remaining(self, total_steps: int) -> float | None:
        """Seconds to the last step; None before there is anything to measure."""
        (start, first, _), (now, last, _) = self._ends()
        return (now - start) / (last - first) * (total_steps - last) if last > first else None

    def _ends(self) -> tuple[tuple[float, int, int], tuple[float, int, int]]:
        return (self.marks[0], self.marks[-1]) if self.marks else ((self.start, 0, 0), (self.start, 0, 0))


class LineDisplay:
    """One plain line for each log: `step 120/900  loss 0.612  acc 0.671  lr 9.0e-06  12.3k tok/s  eta 4m10s`.

    Args:
        console: where to print.
        total_steps: the last step.
        clock: seconds that only increase.
    """

    def __init__(self, console: Console, total_steps: int, clock: Clock = time.monotonic) -> None:
        self.console, self.total_steps, self.pace = console, total_steps, Pace(clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is open."""

    def step(self, step: int, tokens: int) -> None:
        """An optimizer step is done: `step` counts from 1, `tokens` are those this process computed in it."""
        self.pace.step(step, tokens)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print one line of the `train/` metrics that are there."""
        parts = [f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}", *_readings(metrics)]
        if (seconds := self.pace.remaining(self.total_steps)) is not None:
            parts.append(f"eta {duration(seconds)}")
        self.notice("  ".join(parts))

    def show(self, renderable: RenderableType) -> None:
        """Print a table or text."""
        self.console.print(renderable)

    def notice(self, text: str) -> None:
        """Print one line as it is, however long."""
        self.console.print(Text(text), soft_wrap=True)


class LiveDisplay:
    """One line that is redrawn in place: bar, step, loss, accuracy, tokens per second, time to the end.

    Args:
        console: a terminal.
        total_steps: the last step.
        processes: how many share the work; the plan gives each about as many tokens.
        clock: seconds that only increase.
    """

    def __init__(self, console: Console, total_steps: int, processes: int = 1, clock: Clock = time.monotonic) -> None:
        self.console, self.processes, self.pace = console, processes, Pace(clock)
        self.progress = Progress(
            _Step(),
            BarColumn(None, "dim", "cyan", "green", table_column=Column(ratio=1)),
            _Reading("loss"),
            _Reading("accuracy"),
            _Reading("speed"),
            _Reading("eta"),
            console=console,
            expand=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.progress.add_task("train", total=total_steps, loss="", accuracy="", speed="", eta="")
        self.total_steps = total_steps

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def step(self, step: int, tokens: int) -> None:
        """An optimizer step is done: `step` counts from 1, `tokens` are those this process computed in it."""
        self.pace.step(step, tokens)
        speed, seconds = self.pace.tokens_per_second(), self.pace.remaining(self.total_steps)
        self.progress.update(
            self.task,
            completed=step,
            speed=f"{compact(speed * self.processes)} tok/s" if speed is not None else "",
            eta=f"eta {duration(seconds)}" if seconds is not None else "",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest loss and accuracy."""
        self.progress.update(
            self.task, loss=_reading("loss", "train/loss", metrics), accuracy=_reading("acc", "train/accuracy", metrics)
        )

    def show(self, renderable: RenderableType) -> None:
        """Print a table or text above the live line."""
        self.console.print(renderable)

    def notice(self, text: str) -> None:
        """Print one line above the live line."""
        self.console.print(Text(text, style="bold"), soft_wrap=True)


def make_display(console: Console, total_steps: int, processes: int = 1) -> LiveDisplay | LineDisplay:
    """A live display where a person watches a terminal; plain lines in pipes, files, CI jobs and dumb terminals."""
    if is_watched(console):
        return LiveDisplay(console, total_steps, processes)
    return LineDisplay(console, total_steps)


def is_watched(console: Console) -> bool:
    """Whether a person looks at a terminal that can redraw a line.

    `FORCE_COLOR` makes rich take a file for a terminal, so that the file itself is asked, too.
    """
    able = console.is_terminal and console.is_interactive and not console.is_dumb_terminal and not console.is_jupyter
    return bool(able and console.file.isatty() and not os.environ.get("CI"))


def _reading(name: str, key: str, metrics: Mapping[str, float]) -> str:
    return f"{name} {metrics[key]:.3f}" if key in metrics else ""


def _readings(metrics: Mapping[str, float]) -> list[str]:
    readings = [_reading("loss", "train/loss", metrics), _reading("acc", "train/accuracy", metrics)]
    if "train/learning_rate" in metrics:
        readings.append(f"lr {metrics['train/learning_rate']:.1e}")
    if "train/tokens_per_second" in metrics:
        readings.append(f"{compact(metrics['train/tokens_per_second'])} tok/s")
    return [reading for reading in readings if reading]


class _Step(ProgressColumn):
    """`step 120/900`."""

    def render(self, task: Task) -> Text:
        total = f"{task.total:.0f}"
        return Text(f"step {task.completed:>{len(total)}.0f}/{total}", no_wrap=True)


class _Reading(ProgressColumn):
    """A field of the task, empty until there is one."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields[self.field]), no_wrap=True)


SECONDS_BETWEEN_LINES = 10.0
PACE_SECONDS = 10.0

ReadingClock = Callable[[], float]


class ReadingDisplay:
    """Shows how many rows of a source are done, how fast, and how many that is of all: a bar in a terminal, a line now and then elsewhere.

    Args:
        console: where to print.
        clock: seconds that only increase.
    """

    def __init__(self, console: Console, clock: ReadingClock = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.pace = _Pace(clock)
        self.next_line = clock() + SECONDS_BETWEEN_LINES
        self.bar = _bar(console) if is_watched(console) else None
        self.task = None if self.bar is None else self.bar.add_task("reading", total=None, facts="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, reading: Reading) -> None:
        """So many rows of a source are done."""
        if self.pace.marks:
            before = self.pace.marks[-1][1]
            if (reading.source, reading.doing) != (before.source, before.doing) or reading.rows < before.rows:
                self.pace = _Pace(self.clock)
        self.pace.add(reading)
        what = f"{reading.doing} {reading.source}"
        if self.bar is not None and self.task is not None:
            share, facts = reading.share, self._facts(reading)
            total = None if share is None else 1.0
            self.bar.update(self.task, description=what, total=total, completed=share or 0.0, facts=", ".join(facts))
        elif self.clock() >= self.next_line:
            self.next_line = self.clock() + SECONDS_BETWEEN_LINES
            self.console.print(f"{what}: {', '.join(self._facts(reading))}", highlight=False, markup=False, soft_wrap=True)

    def _facts(self, reading: Reading) -> list[str]:
        facts = [f"{reading.rows:,} rows"]
        if reading.share is not None:
            facts.append(percent(reading.share, 1.0))
        if (speed := self.pace.rows_per_second()) is not None:
            facts.append(f"{compact(speed)} rows/s")
        if (seconds := self.pace.remaining()) is not None:
            facts.append(f"eta {duration(seconds)}")
        return facts


class _Pace:
    """Speed over the last seconds."""

    def __init__(self, clock: ReadingClock) -> None:
        self.clock = clock
        self.marks: deque[tuple[float, Reading]] = deque()

    def add(self, reading: Reading) -> None:
        now = self.clock()
        self.marks.append((now, reading))
        while len(self.marks) > 2 and self.marks[1][0] < now - PACE_SECONDS:
            self.marks.popleft()

    def rows_per_second(self) -> float | None:
        """None before there is anything to measure."""
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return (last.rows - first.rows) / (end - start) if end > start else None

    def remaining(self) -> float | None:
        """Seconds to the end of the source; None where it is not known."""
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        if first.share is None or last.share is None or last.share <= first.share:
            return None
        return (end - start) / (last.share - first.share) * (1.0 - last.share)


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(None, "dim", "cyan", "green", table_column=Column(ratio=1)),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        transient=True,
        expand=True,
    )
