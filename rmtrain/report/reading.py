"""Rows being read and tokenized, while it goes on."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from rmtrain.data.rows.reading import Reading
from rmtrain.report.formats import compact, duration, percent
from rmtrain.report.progress import is_watched

SECONDS_BETWEEN_LINES = 10.0
PACE_SECONDS = 10.0

Clock = Callable[[], float]


class ReadingDisplay:
    """Shows how many rows of a source are done, how fast, and how many that is of all: a bar in a terminal, a line now and then elsewhere.

    Args:
        console: where to print.
        clock: seconds that only increase.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
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
        if self.pace.marks and not reading.goes_on(self.pace.marks[-1][1]):
            self.pace = _Pace(self.clock)
        self.pace.add(reading)
        what = f"{f'another process is {reading.doing}' if reading.elsewhere else reading.doing} {reading.source}"
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

    def __init__(self, clock: Clock) -> None:
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
