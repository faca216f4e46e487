"""How far the making of tokenized data has come, as it is told to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Reading:
    """What is done of a source.

    source: its tag.
    rows: how many of its rows are tokenized.
    share: which share of it that is, from 0 to 1; None: not known.
    elsewhere: whether another process does it, which this one waits for.
    """

    source: str
    rows: int
    share: float | None = None
    elsewhere: bool = False

    def to_line(self) -> str:
        """The same in a line that `of_line` reads."""
        return f"{self.rows} {'?' if self.share is None else f'{self.share:.4f}'} {self.source}"

    @classmethod
    def of_line(cls, line: str) -> Self | None:
        """What another process wrote; None: nothing yet."""
        rows, _, rest = line.partition(" ")
        share, _, source = rest.partition(" ")
        return cls(source, int(rows), None if share == "?" else float(share), elsewhere=True) if source else None


Progress = Callable[[Reading], None]
"""Called after each batch."""
