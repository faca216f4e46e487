"""The records of a run: every number is written to a file of the run directory before it goes to a tracker."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rmtrain.engine.run_dir import disk_errors
from rmtrain.engine.trackers import Draw, Trackers, send_pictures, send_samples


class RunLog:
    """Appends lines to the records of a run, and sends copies to the trackers. Only the main process writes.

    Each method raises TryAgain when the disk is full or fails.

    Args:
        accelerator: knows which process is the main one.
        directory: the run directory.
        trackers: where copies go; None for no trackers.
    """

    def __init__(self, accelerator: Accelerator, directory: Path, trackers: Trackers | None = None) -> None:
        self.accelerator, self.directory, self.trackers = accelerator, directory, trackers

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
