"""How far the reading of a source has come."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Meter:
    """The share of a source that has been read, by the bytes of its files or by its rows."""

    def __init__(self) -> None:
        self._sizes: Sequence[int] = ()
        self._entered = 0
        self._position: Callable[[], float] | None = None

    def through(self, parts: Iterable[Iterator[Item]], sizes: Sequence[int]) -> Iterator[Item]:
        """All of the parts of a source, which are of these sizes in whatever unit."""
        self._sizes = sizes
        for number, part in enumerate(parts):
            self._entered, self._position = number, None
            yield from part

    def enter(self, position: Callable[[], float]) -> None:
        """A part is open; `position` says how much of it is read, from 0 to 1."""
        self._position = position

    @property
    def share(self) -> float | None:
        """From 0 to 1; None: not known."""
        if self._position is None or not sum(self._sizes):
            return None
        done = sum(self._sizes[: self._entered]) + self._position() * self._sizes[self._entered]
        return min(done / sum(self._sizes), 1.0)
