"""SIGTERM and SIGINT: finish the step, save, and end; a second one ends at once and breaks nothing.

The signal only leaves a note. Training looks at it after each step, an evaluation between two micro-batches, on all processes
together; so none is left waiting. While the main process works alone, on the export, the signal is raised where it strikes.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator

from rmtrain.engine.watch import SAME_SECONDS, SIGNALS
from rmtrain.errors import Stopped


class Stop:
    """Whether the run was asked to stop. Use as a context: afterwards the handlers are those of before.

    Outside the main thread, where Python takes no handlers, signals stay with whoever has them.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._when = 0.0
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_wanted(self, accelerator: Accelerator) -> bool:
        """Whether a signal came to any of the processes. Called on all of them, and the same answer on each."""
        if accelerator.num_processes == 1:
            return self.by is not None
        came = torch.tensor([0 if self.by is None else int(self.by)], device=accelerator.device)
        number = int(accelerator.gather(came).max().item())
        if number and self.by is None:
            self.by, self._when = signal.Signals(number), time.monotonic()
        return bool(number)

    def check(self, accelerator: Accelerator) -> None:
        """Raise Stopped on all processes when a signal came to any of them. Called on all of them."""
        if self.is_wanted(accelerator):
            self.end()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work of one process alone, which a signal cuts short: it is raised as Stopped, also one that came before."""
        if self.by is not None:
            self.end()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def end(self) -> NoReturn:
        """Raise Stopped, by the signal that came."""
        assert self.by is not None, "a signal stops a run"
        raise Stopped(self.by)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.by is None:
            self.by, self._when = signal.Signals(number), time.monotonic()
            if self._at_once:
                self._at_once = False
                self.end()
        elif time.monotonic() - self._when > SAME_SECONDS:
            os._exit(128 + number)
