"""Signals that stop a command: finish the step, save and exit; a second signal exits at once.

No torch here: the command line installs `raise_on_signal` before anything heavy is imported.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

from rmtrain.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT_SECONDS = 1.0
"""A signal this soon after the first is the same request: schedulers signal every process of a job, and launchers forward theirs."""


HANDLED = threading.Event()
"""Set when the main thread has handled a signal."""
_raised_at: float | None = None


def raise_on_signal() -> None:
    """Make SIGTERM and SIGINT raise `Stopped` in the main thread, so that they end a command as an error does."""
    global _raised_at
    _raised_at = None
    for number in SIGNALS:
        signal.signal(number, raise_stopped)


def raise_stopped(number: int, _: FrameType | None) -> None:
    """Handle the first signal by raising `Stopped`; a second one interrupts the clean-up and exits."""
    global _raised_at
    HANDLED.set()
    if _raised_at is None:
        _raised_at = time.monotonic()
        raise Stopped(number)
    if time.monotonic() - _raised_at > REPEAT_SECONDS:
        os._exit(128 + number)


class GracefulShutdown:
    """Note a signal instead of raising it, and let all ranks stop together where they ask for it.

    Training asks after each step, an evaluation between two micro-batches. A second signal exits the process at once.
    Use it as a context: the previous handlers come back at its end. Outside the main thread, where Python cannot set handlers, it
    leaves signals alone.

    Args:
        agree: Collective that returns the largest of the numbers that the ranks pass; by default that of a single process.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.received: signal.Signals | None = None
        self._agree = agree
        self._received_at = 0.0
        self._raises = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any rank received a signal. A collective: the answer is the same on every rank."""
        number = self._agree(self.received or 0)
        if number and self.received is None:
            self._note(number)
        return bool(number)

    def check(self) -> None:
        """Raise `Stopped` on all ranks if any received a signal. A collective."""
        if self.requested():
            self.stop()

    @contextmanager
    def raise_immediately(self) -> Iterator[None]:
        """Let a signal interrupt work that one rank does alone: it raises `Stopped`, also if it came before."""
        if self.received is not None:
            self.stop()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def stop(self) -> NoReturn:
        """Raise `Stopped` for the signal that was received."""
        assert self.received is not None, "no signal was received"
        raise Stopped(self.received)

    def _note(self, number: int) -> None:
        HANDLED.set()
        self.received, self._received_at = signal.Signals(number), time.monotonic()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self._note(number)
            if self._raises:
                self._raises = False  # once: what is interrupted may clean up
                self.stop()
        elif time.monotonic() - self._received_at > REPEAT_SECONDS:
            os._exit(128 + number)
