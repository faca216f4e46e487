"""The records of a run: every number is written to a file of the run directory before it goes to trackers and display."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from rmtrain.engine.run_dir import disk_errors
from rmtrain.engine.trackers import Draw, Trackers, send_pictures, send_samples


class Display(Protocol):
    """Shows the progress of a run to a person."""

    def step(self, step: int, tokens: int) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def show(self, renderable: Any) -> None: ...


class RunLog:
    """Writes the records of a run, and passes them on to the trackers and the display. Only the main process writes.

    Each method that writes raises TryAgain when the disk is full or fails.

    Args:
        accelerator: knows which process is the main one.
        directory: the run directory.
        trackers: get copies; None for no trackers.
        display: shows progress; None for none.
    """

    def __init__(
        self, accelerator: Accelerator, directory: Path, trackers: Trackers | None = None, display: Display | None = None
    ) -> None:
        self.accelerator, self.directory, self.trackers, self.display = accelerator, directory, trackers, display

    def step(self, step: int, tokens: int) -> None:
        """Show that a step is done, in which this process computed `tokens` tokens."""
        if self.display is not None:
            self.display.step(step, tokens)

    def show(self, renderable: Any) -> None:
        """Show a table or a text."""
        if self.display is not None:
            self.display.show(renderable)

    def train_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one line of training metrics, and show it."""
        self.metrics(step, metrics)
        if self.display is not None:
            self.display.log(step, metrics)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one line of metrics."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])
        if self.trackers is not None:
            self.trackers.log(metrics, step)

    def rows(self, step: int, epoch: int, ids: Sequence[str]) -> None:
        """Record the ids of the comparisons of a step, in order, in the ledger."""
        self._append("ledger.jsonl", [{"step": step, "epoch": epoch, "ids": list(ids)}])

    def not_finite(self, step: int, ids: Sequence[str]) -> None:
        """Record the ids of the comparisons of a step whose gradient was not finite."""
        self._append("nonfinite.jsonl", [{"step": step, "ids": list(ids)}])

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Record sample comparisons with their rewards at this step."""
        self._append("samples.jsonl", [{"step": step, **sample} for sample in samples])
        if self.trackers is not None and samples:
            self.trackers.each(partial(send_samples, step, list(samples)))

    def pictures(self, step: int, pictures: Mapping[str, Draw]) -> None:
        """Send pictures by name to the trackers that show them; they are drawn in the trackers' thread."""
        if self.trackers is not None:
            self.trackers.each(partial(send_pictures, step, dict(pictures)))

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.accelerator.is_main_process:
            return
        file = self.directory / name
        # Row ids and texts of the data are private: only the owner can read those records.
        mode = 0o666 if name == "metrics.jsonl" else 0o600
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (
            disk_errors(file),
            open(file, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, mode)) as stream,
        ):
            stream.write(text)
