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
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from rmtrain.report.formats import compact, duration

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
