"""Trackers that can fail, hang or fall behind, and never stop a run: `metrics.jsonl` is the truth, they get a copy.

All their calls happen in one thread. It is given a bounded number of lines; what it does not take is dropped, and said once.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rmtrain.recipe.redact import redact

logger = logging.getLogger("rmtrain")

THREAD = "trackers"
WAITING_LINES = 1000
SECONDS_AT_END = 15.0

Call = Callable[[], Any]


class Trackers:
    """Calls of trackers, one after the other, elsewhere.

    Args:
        start: starts them; when it raises, nothing is sent.
        send: sends the metrics of a step.
        end: ends them.
        seconds: how long the end of a run waits at most for what has not been sent.
    """

    def __init__(
        self,
        start: Call,
        send: Callable[[Mapping[str, float], int], Any],
        end: Call,
        seconds: float = SECONDS_AT_END,
    ) -> None:
        self.start, self.send, self.end, self.seconds = start, send, end, seconds
        self.calls: queue.Queue[Call | None] = queue.Queue(WAITING_LINES)
        self.has_warned = self.is_given_up = False
        self.thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step, when there is time."""
        self.later(partial(self.send, dict(metrics), step))

    def later(self, call: Call) -> None:
        """Do a call of theirs, such as one that shows a table or a picture, when there is time."""
        if not self.thread.is_alive():
            return
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self._warn("they do not take lines as fast as they come; some are left out there")

    def close(self) -> None:
        """Wait a little for what is waiting, then go on without it."""
        until = time.monotonic() + self.seconds
        try:
            if self.thread.is_alive():
                self.calls.put(None, timeout=self.seconds)
                self.thread.join(max(0.0, until - time.monotonic()))
        except queue.Full:
            pass
        self.is_given_up = self.thread.is_alive()
        if self.is_given_up:
            self._warn(f"they have not ended after {self.seconds:g} s; lines may be missing there")

    def _work(self) -> None:
        if not self._try(self.start):
            return
        while not self.is_given_up and (call := self.calls.get()) is not None:
            self._try(call)
        self._try(self.end)

    def _try(self, call: Call) -> bool:
        """Whether a call of a stranger's library went well. Whatever it raises, training goes on."""
        try:
            call()
        except Exception as error:  # any: it is their code, over their network
            self._warn(" ".join(f"{type(error).__name__}: {redact(str(error))}".split()))
            return False
        return True

    def _warn(self, what: str) -> None:
        if not self.has_warned:
            self.has_warned = True
            logger.warning("trackers: %s. Training goes on, and metrics.jsonl has every line", what)
