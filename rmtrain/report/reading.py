"""Rows being read and tokenized, while it goes on."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0


class ReadingDisplay:
    """Shows how many rows of a source are done: a status in a terminal, a plain line now and then elsewhere.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.status = console.status("reading") if console.is_terminal and console.is_interactive else None
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.status is not None:
            self.status.stop()

    def __call__(self, source: str, rows: int) -> None:
        """So many rows of a source are tokenized."""
        text = f"tokenizing {source}: {rows:,} rows"
        if self.status is not None:
            self.status.update(text)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.console.print(text, highlight=False)
