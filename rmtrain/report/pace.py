"""How far long work is, as a line now and then: the same for people and for the log of a job."""

import time

from rich.console import Console

from rmtrain.report.formats import compact, duration

EVERY_SECONDS = 10.0


class Pace:
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
