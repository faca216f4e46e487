"""Trackers that can fail, hang or fall behind, and never stop a run: `metrics.jsonl` is the truth, they get a copy.

All their calls happen in one thread. It is given a bounded number of them; what it does not take is dropped, and said once. What one
tracker raises is told once, and the others go on.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rmtrain.redact import redact

logger = logging.getLogger("rmtrain")

THREAD = "trackers"
WAITING_CALLS = 1000
SECONDS_AT_END = 15.0

Tracker = Any
"""One of accelerate's, such as a WandBTracker."""


class Trackers:
    """Calls of trackers, one after the other, elsewhere.

    Args:
        builders: make the trackers, by name. One that cannot be made or started is sent nothing.
        settings: of the run, by `section.key`.
        seconds: how long the end of a run waits at most for what has not been sent.
    """

    def __init__(
        self, builders: Mapping[str, Callable[[], Tracker]], settings: Mapping[str, Any], seconds: float = SECONDS_AT_END
    ) -> None:
        self.builders, self.settings, self.seconds = builders, settings, seconds
        self.calls: queue.Queue[Callable[[Tracker], Any] | None] = queue.Queue(WAITING_CALLS)
        self.warned_of: set[str] = set()
        self.is_given_up = False
        self.thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step, when there is time."""
        self.each(_log, dict(metrics), step)

    def each(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function with each tracker and these arguments, when there is time; such as one that shows a table or a picture."""
        if not self.thread.is_alive():
            return
        try:
            self.calls.put_nowait(lambda tracker: function(tracker, *arguments))
        except queue.Full:
            self._warn("", "they do not take lines as fast as they come; some are left out there")

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
            self._warn("", f"they have not ended after {self.seconds:g} s; lines may be missing there")

    def _work(self) -> None:
        started = {name: self._try(name, partial(self._start, build)) for name, build in self.builders.items()}
        running = {name: tracker for name, tracker in started.items() if tracker is not None}
        while running and not self.is_given_up and (call := self.calls.get()) is not None:
            for name, tracker in running.items():
                self._try(name, partial(call, tracker))
        for name, tracker in running.items():
            self._try(name, tracker.finish)

    def _start(self, build: Callable[[], Tracker]) -> Tracker:
        tracker = build()
        tracker.start()
        tracker.store_init_configuration(dict(self.settings))
        return tracker

    def _try(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call of a stranger's library returns, None where it raises. Whatever that is, training goes on."""
        try:
            return call()
        except Exception as error:  # any: it is their code, over their network
            what = " ".join(f"{type(error).__name__}: {redact(str(error))}".split())
            self._warn(name, f"{name}: {what.rstrip('.')}")
            return None

    def _warn(self, subject: str, what: str) -> None:
        if subject not in self.warned_of:
            self.warned_of.add(subject)
            logger.warning("trackers: %s. Training goes on, and metrics.jsonl has every line", what)


def _log(tracker: Tracker, metrics: Mapping[str, float], step: int) -> None:
    tracker.log(metrics, step=step)
