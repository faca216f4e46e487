"""Progress of long work: one live line in a terminal, with log lines above it, and plain lines now and then everywhere else.

`rich.progress` keeps the pace and draws the line. The three classes differ in what they count: steps of a training, rows of a source
that are read or tokenized, and rows or micro-batches that are scored.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from rmtrain.data.rows.loading import Reading
from rmtrain.report.console import compact, duration, one_line, percent

SECONDS_BETWEEN_LINES = 10.0
PACE_SECONDS = 3600.0
"""The pace is that of the last 1,000 updates; rich's own 30 seconds would hold fewer than two of slow steps."""

Clock = Callable[[], float]


def is_watched(console: Console) -> bool:
    """Return whether a person looks at a terminal that can redraw a line."""
    can_redraw = console.is_terminal and console.is_interactive and not console.is_dumb_terminal and not console.is_jupyter
    # with FORCE_COLOR rich takes a file for a terminal, so the file itself is asked as well
    return bool(can_redraw and not console.quiet and console.file.isatty() and not os.environ.get("CI"))


class ProgressLine:
    """A task whose facts are shown in a line that is redrawn, or printed as plain lines. Use it as a context.

    Args:
        live: redraw one line; None: where a person watches a terminal.
        keep: the live line stays when the work is done.
    """

    def __init__(self, console: Console, *, live: bool | None = None, keep: bool = False, clock: Clock = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.is_live = is_watched(console) if live is None else live
        self.next_line = clock() + SECONDS_BETWEEN_LINES
        self.progress = Progress(
            _TextColumn(self._short_name),
            BarColumn(None, "dim", "cyan", "green", table_column=Column(ratio=1)),
            _TextColumn(self._fitting_facts),
            console=console,
            expand=True,
            transient=not keep,
            disable=not self.is_live,
            get_time=clock,
            speed_estimate_period=PACE_SECONDS,
            refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    @property
    def task(self) -> Task:
        return self.progress.tasks[-1]

    def facts(self, task: Task) -> list[str]:
        """Return the numbers of a task that are shown, in words; called when the line is drawn, not at every update."""
        raise NotImplementedError

    def _short_name(self, task: Task) -> str:
        """Return the description of a task, or its end if it is wider than half of the line."""
        name = one_line(str(task.description))
        if cell_len(name) <= self.console.width // 2:
            return name
        while cell_len(name) >= self.console.width // 2:
            name = name[1:]
        return f"…{name}"

    def _fitting_facts(self, task: Task) -> str:
        """Return the first facts that the line has room for, so that no number is cut."""
        facts, room = self.facts(task), self.console.width - cell_len(self._short_name(task)) - 3
        while len(facts) > 1 and cell_len("  ".join(facts)) > room:
            facts.pop()
        return "  ".join(facts)

    def update(self, **changes: Any) -> None:
        """Note progress, and print a line where none is redrawn and the last is ten seconds ago."""
        self.progress.update(self.task.id, **changes)
        if not self.is_live and self.clock() >= self.next_line:
            self.next_line = self.clock() + SECONDS_BETWEEN_LINES
            self.notice(f"{self.task.description}: {', '.join(self.facts(self.task))}")

    def notice(self, text: str) -> None:
        """Print one line, however long, above the live one."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or text above the live line."""
        self.console.print(renderable)


class _TextColumn(ProgressColumn):
    def __init__(self, text_of: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self.text_of = text_of

    def render(self, task: Task) -> Text:
        return Text(self.text_of(task))


def _eta(task: Task, speed: float | None) -> list[str]:
    return [f"eta {duration(task.remaining / speed)}"] if speed and task.remaining is not None else []


class TrainingProgress(ProgressLine):
    """Steps of a training: `step 120/900 ━━━━  loss 0.612  acc 0.671  24.0k tok/s  eta 4m10s`, or such a line for each log."""

    def __init__(self, console: Console, total_steps: int, processes: int = 1, **options: Any) -> None:
        super().__init__(console, keep=True, **options)
        self.total_steps, self.processes = total_steps, processes
        self.steps = self.tokens = 0
        self.metrics: Mapping[str, float] = {}
        self.progress.add_task(self._name(0), total=total_steps)

    def _name(self, step: int) -> str:
        return f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}"

    def facts(self, task: Task) -> list[str]:
        """Return loss and accuracy of the last log line, tokens per second of all processes, and the time to the last step."""
        speed = self._speed(task)
        # The plan gives each process about as many tokens.
        tokens = [f"{compact(speed * self.tokens / self.steps * self.processes)} tok/s"] if speed else []
        return [*self._losses(), *tokens, *_eta(task, speed)]

    def _speed(self, task: Task) -> float | None:
        """Return steps per second; after the first step rich does not know it yet."""
        return task.speed or (self.steps / task.elapsed if task.elapsed else None)

    def _losses(self) -> list[str]:
        named = (("loss", "train/loss"), ("acc", "train/accuracy"))
        return [f"{name} {self.metrics[key]:.3f}" for name, key in named if key in self.metrics]

    def step(self, step: int, tokens: int) -> None:
        """Note an optimizer step, counted from 1, and the tokens that this process computed in it. It is cheap."""
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        self.progress.update(self.task.id, completed=step, description=self._name(step))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the `train/` metrics that are present, in the live line or as one line of the log."""
        self.metrics = metrics
        if self.is_live:
            return
        parts = [self._name(step), *self._losses()]
        if "train/learning_rate" in metrics:
            parts.append(f"lr {metrics['train/learning_rate']:.1e}")
        if "train/tokens_per_second" in metrics:
            parts.append(f"{compact(metrics['train/tokens_per_second'])} tok/s")
        self.notice("  ".join([*parts, *_eta(self.task, self._speed(self.task))]))


class ReadingProgress(ProgressLine):
    """Rows of a source: how many are done, how fast, and which share that is of all. Call it with each `Reading`."""

    def __init__(self, console: Console, **options: Any) -> None:
        super().__init__(console, **options)
        self.last: Reading | None = None

    def facts(self, task: Task) -> list[str]:
        """Return rows, share, rows per second and the time to the end of the source, as far as they are known."""
        assert self.last is not None, "a line is drawn only after the first reading"
        rows, share = self.last.rows, self.last.share
        facts = [f"{rows:,} rows"]
        if share is not None:
            facts.append(percent(share, 1.0))
        if task.speed and task.completed:
            facts.append(f"{compact(task.speed * rows / task.completed)} rows/s")
        return [*facts, *_eta(task, task.speed)]

    def __call__(self, reading: Reading) -> None:
        """Note how much of a source is done."""
        name = f"{reading.doing} {reading.source}"
        is_new = self.last is None or name != self.task.description or reading.rows < self.last.rows
        self.last = reading
        if is_new:
            for task_id in self.progress.task_ids:
                self.progress.remove_task(task_id)
            self.progress.add_task(name, total=None if reading.share is None else 1.0)
        self.update(completed=reading.rows if reading.share is None else reading.share)


class ScoringProgress(ProgressLine):
    """Units of work that are done, of a known total or not: `scoring: 20 of 60 micro-batches, 2.0/s, eta 20s`."""

    def __init__(self, console: Console, unit: str, total: int | None = None, **options: Any) -> None:
        super().__init__(console, **options)
        self.unit = unit
        self.progress.add_task("scoring", total=total)

    def facts(self, task: Task) -> list[str]:
        """Return the units that are done, their pace, and the time to the end, as far as they are known."""
        total = "" if task.total is None else f" of {task.total:,.0f}"
        speed = task.speed or 0.0
        pace = [f"{compact(speed) if speed >= 10 else f'{speed:.1f}'}/s"] if speed else []
        return [f"{task.completed:,.0f}{total} {self.unit}", *pace, *_eta(task, speed)]

    def step(self, count: int = 1) -> None:
        """Note that `count` more units are done; the last step of several processes may go beyond the total."""
        done = self.task.completed + count
        self.update(completed=done if self.task.total is None else min(done, self.task.total))
