"""How far the making of tokenized data has come, as it is told to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Reading:
    """What is done of a source.

    source: its tag.
    rows: how many of its rows are done.
    share: which share of it that is, from 0 to 1; None: not known.
    doing: what is done with them; rows are gathered before the first of them is tokenized.
    elsewhere: whether another process does it, which this one waits for.
    """

    source: str
    rows: int
    share: float | None = None
    doing: str = "tokenizing"
    elsewhere: bool = False

    def to_line(self) -> str:
        """The same in a line that `of_line` reads."""
        return f"{self.doing} {self.rows} {'?' if self.share is None else f'{self.share:.4f}'} {self.source}"

    def goes_on(self, before: "Reading") -> bool:
        """Whether it tells of the same work as one before, further on."""
        same = (self.source, self.doing, self.elsewhere) == (before.source, before.doing, before.elsewhere)
        return same and self.rows >= before.rows

    @classmethod
    def of_line(cls, line: str) -> Self | None:
        """What another process wrote; None: nothing yet."""
        doing, rows, share, source = [*line.split(" ", 3), "", "", ""][:4]
        return cls(source, int(rows), None if share == "?" else float(share), doing, elsewhere=True) if source else None


Progress = Callable[[Reading], None]
"""Called after each batch."""
