"""Trackers can fail, hang or fall behind, and never stop a run: `metrics.jsonl` has every line, they get a copy.

All calls to trackers run in one thread with a bounded queue. When it is full, calls are dropped. Each tracker's first failure is
reported once, and the other trackers are not affected.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmtrain.redact import redact

if TYPE_CHECKING:  # exits.py imports this module, and `rmtrain --help` must not wait for numpy and matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

logger = logging.getLogger("rmtrain")

THREAD = "trackers"
WAITING_CALLS = 1000
SECONDS_AT_END = 15.0
SAMPLES = "eval/samples"
COLUMNS = ("id", "source", "prompt", "chosen", "rejected", "reward_chosen", "reward_rejected", "margin")

Tracker = Any
"""One of accelerate's trackers, such as a WandBTracker."""
Draw = Callable[[], "Figure"]


class Trackers:
    """Calls trackers, one call after the other, in a thread of its own.

    Args:
        builders: functions that make the trackers, by name. A tracker that cannot be made or started is sent nothing.
        settings: the recipe, by `section.key`.
        seconds: how long the end of a run waits at most for unsent calls.
    """

    def __init__(
        self, builders: Mapping[str, Callable[[], Tracker]], settings: Mapping[str, Any], seconds: float = SECONDS_AT_END
    ) -> None:
        self.builders, self.settings, self.seconds = builders, settings, seconds
        self.calls: queue.Queue[Callable[[Tracker], Any] | None] = queue.Queue(WAITING_CALLS)
        self.warned_about: set[str] = set()
        self.is_given_up = False
        self.thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the metrics of a step for every tracker."""
        values = dict(metrics)
        self.each(lambda tracker: tracker.log(values, step=step))

    def each(self, call: Callable[[Tracker], Any]) -> None:
        """Queue a call, such as of `send_samples`, for every tracker."""
        if not self.thread.is_alive():
            return
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self._warn("", "trackers are slower than the run; some lines are not sent")

    def close(self) -> None:
        """Wait up to `seconds` for the queued calls, then give up."""
        deadline = time.monotonic() + self.seconds
        try:
            if self.thread.is_alive():
                self.calls.put(None, timeout=self.seconds)
                self.thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        self.is_given_up = self.thread.is_alive()
        if self.is_given_up:
            self._warn("", f"no end after {self.seconds:g} s; some lines may not be sent")

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
        """Return the result of a call into a tracker's library, or None if it raises."""
        try:
            return call()
        except Exception as error:  # broad on purpose: it is their code, over their network
            message = " ".join(f"{type(error).__name__}: {redact(str(error))}".split())
            self._warn(name, f"{name}: {message.rstrip('.')}")
            return None

    def _warn(self, subject: str, problem: str) -> None:
        if subject not in self.warned_about:
            self.warned_about.add(subject)
            logger.warning("trackers: %s. Training continues, and metrics.jsonl has every line", problem)


def send_samples(step: int, samples: Sequence[Mapping[str, Any]], tracker: Tracker) -> None:
    """Send sample comparisons with their rewards to a tracker that shows tables: wandb and trackio."""
    rows = []
    for sample in samples:
        chosen, rejected = sample["rewards"]
        texts = [redact(sample[name]) for name in ("id", "source", "prompt", "chosen", "rejected")]
        rows.append([*texts, chosen, rejected, chosen - rejected])
    table = {"columns": list(COLUMNS), "data": rows}
    if tracker.name == "wandb":
        tracker.log_table(SAMPLES, **table, step=step)
    elif tracker.name == "trackio":
        tracker.log({SAMPLES: import_module("trackio").Table(**table)}, step=step)


def send_pictures(step: int, pictures: Mapping[str, Draw], tracker: Tracker) -> None:
    """Send pictures by name; they are drawn only if the tracker shows them."""
    if tracker.name == "wandb":
        tracker.log_images({name: [pixels(draw())] for name, draw in pictures.items()}, step=step)
    elif tracker.name == "tensorboard":
        images = {name: pixels(draw())[None] for name, draw in pictures.items()}
        tracker.log_images(images, step=step, dataformats="NHWC")
    elif tracker.name == "mlflow":
        for name, draw in pictures.items():
            tracker.log_figure(draw(), f"{name}/{step:08d}.png")
    elif tracker.name == "trackio":
        image = import_module("trackio").Image
        tracker.log({name: image(pixels(draw())) for name, draw in pictures.items()}, step=step)


def pixels(figure: "Figure") -> "NDArray[np.uint8]":
    """Draw a figure as an array of bytes [height, width, 3]."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture
