"""Numbers of a run: summed on the device, reduced once per log line, written to `metrics.jsonl` before they go elsewhere."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rmtrain.engine.run_dir import writing
from rmtrain.engine.trackers import Trackers
from rmtrain.errors import NumericError
from rmtrain.objective import Objective
from rmtrain.redact import redact

SAMPLES = "eval/samples"
COLUMNS = ("id", "source", "prompt", "chosen", "rejected", "reward_chosen", "reward_rejected", "margin")
Draw = Callable[[], Figure]


def send_samples(tracker: Any, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Sample comparisons with their rewards, as a table of wandb or trackio."""
    table = {"columns": list(COLUMNS), "data": [_row(sample) for sample in samples]}
    if tracker.name == "wandb":
        tracker.log_table(SAMPLES, **table, step=step)
    elif tracker.name == "trackio":
        tracker.log({SAMPLES: import_module("trackio").Table(**table)}, step=step)


def _row(sample: Mapping[str, Any]) -> list[Any]:
    chosen, rejected = sample["rewards"]
    texts = [redact(sample[name]) for name in ("id", "source", "prompt", "chosen", "rejected")]
    return [*texts, chosen, rejected, chosen - rejected]


def send_pictures(tracker: Any, step: int, pictures: Mapping[str, Draw]) -> None:
    """Pictures by name; they are drawn only where the tracker shows them."""
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


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture


class Display(Protocol):
    """What shows a run to a person while it goes on."""

    def step(self, step: int, tokens: int) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def show(self, renderable: Any) -> None: ...


class Meter:
    """Sums of the steps since the last log line.

    Statistics stay tensors on the device: reading one is a synchronisation, which only `report` pays.

    Args:
        accelerator: reduces the sums over ranks.
        flos_per_token: floating-point operations of one token, forward and backward.
    """

    def __init__(self, accelerator: Accelerator, flos_per_token: int) -> None:
        self.accelerator, self.flos_per_token = accelerator, flos_per_token
        self.total_tokens = 0
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(len(Objective._fields), device=self.accelerator.device)
        self.grad_norm: Tensor | None = None
        self.tokens, self.since = 0, time.perf_counter()

    @property
    def is_empty(self) -> bool:
        """Whether no step was counted since the last report."""
        return self.grad_norm is None

    def add(self, statistics: Tensor, tokens: int, grad_norm: Tensor) -> None:
        """Count one step: the sums over its micro-batches, as `Objective.statistics` gives them, and its gradient norm."""
        self.sums += statistics
        self.tokens += tokens
        self.grad_norm = grad_norm

    def state(self) -> dict[str, Any]:
        """The open interval, summed over ranks, as JSON values for a checkpoint. Called on all ranks."""
        tokens = torch.tensor(self.tokens, device=self.sums.device)
        return {
            "sums": self.accelerator.reduce(self.sums.clone(), reduction="sum").tolist(),
            "tokens": int(self.accelerator.reduce(tokens, reduction="sum").item()),
            "total_tokens": self.total_tokens,
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on in the interval of a checkpoint; what all ranks had done together is the main one's part of it now."""
        self._reset()
        self.total_tokens = state["total_tokens"]
        if state["grad_norm"] is not None:
            self.grad_norm = torch.tensor(state["grad_norm"], device=self.sums.device)
        if self.accelerator.is_main_process:
            self.sums += torch.tensor(state["sums"], device=self.sums.device)
            self.tokens = state["tokens"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def report(self, step: int, epoch: float, learning_rate: float) -> dict[str, float]:
        """Means since the last report under the seed's names, reduced over ranks; starts a new interval.

        Raises:
            NumericError: the loss or the gradient norm of the interval is not finite.
        """
        assert self.grad_norm is not None, "no step since the last report"
        counted = torch.cat([self.sums.double(), torch.tensor([self.tokens], device=self.sums.device, dtype=torch.float64)])
        *sums, tokens = self.accelerator.reduce(counted, reduction="sum").tolist()
        seconds = time.perf_counter() - self.since
        total = dict(zip(Objective._fields, sums, strict=True))
        comparisons = total["comparisons"]
        self.total_tokens += int(tokens)
        metrics = {
            "train/loss": total["loss"] / comparisons,
            "train/accuracy": total["correct"] / comparisons,
            "train/margin": total["margin"] / comparisons,
            "train/chosen_reward": total["winner_reward"] / comparisons,
            "train/rejected_reward": total["loser_reward"] / comparisons,
            "train/grad_norm": float(self.grad_norm),
            "train/learning_rate": learning_rate,
            "train/epoch": epoch,
            "train/global_step": step,
            "train/tokens_per_second": tokens / seconds,
            "train/comparisons_per_second": comparisons / seconds,
            "total_flos": float(self.total_tokens * self.flos_per_token),
        }
        self._reset()
        check_finite(step, metrics)
        return metrics


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise NumericError when a metric is not finite: the weights are lost by then, and going on would only hide it."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        values = ", ".join(f"{name} is {metrics[name]}" for name in wrong)
        raise NumericError(f"step {step}: {values}; lower optimizer.lr, or look for extreme rows with `rmtrain inspect`")


class RunLog:
    """Where the numbers of a run are kept: `metrics.jsonl`, then the trackers. Only the main process writes.

    Each method raises TryAgain when the disk does not take a line.

    Args:
        accelerator: says which process is the main one.
        directory: the run directory.
        trackers: get a copy of the metrics; None: there are none.
    """

    def __init__(self, accelerator: Accelerator, directory: Path, trackers: Trackers | None = None) -> None:
        self.accelerator, self.directory, self.trackers = accelerator, directory, trackers

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])
        if self.trackers is not None:
            self.trackers.log(metrics, step)

    def rows(self, step: int, epoch: int, ids: Sequence[str]) -> None:
        """The ledger: ids of the comparisons of this step, in order."""
        self._append("ledger.jsonl", [{"step": step, "epoch": epoch, "ids": list(ids)}])

    def not_finite(self, step: int, ids: Sequence[str]) -> None:
        """Ids of the comparisons of a step whose gradient was not finite."""
        self._append("nonfinite.jsonl", [{"step": step, "ids": list(ids)}])

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Sample comparisons with their rewards at this step."""
        self._append("samples.jsonl", [{"step": step, **sample} for sample in samples])
        if self.trackers is not None and samples:
            self.trackers.each(send_samples, step, list(samples))

    def pictures(self, step: int, pictures: Mapping[str, Draw]) -> None:
        """Pictures by name for the trackers that show them; they are drawn in their thread."""
        if self.trackers is not None:
            self.trackers.each(send_pictures, step, dict(pictures))

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines. What says which rows were used, or what they say, only the owner can read."""
        if not self.accelerator.is_main_process:
            return
        file = self.directory / name
        mode = 0o666 if name == "metrics.jsonl" else 0o600
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with writing(file), open(file, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            stream.write(text)
