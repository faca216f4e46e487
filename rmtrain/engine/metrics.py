"""Numbers of a run: summed on the device, reduced once per log line, written to `metrics.jsonl` before they go elsewhere."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from rmtrain.errors import NumericError
from rmtrain.objective import Objective


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

    def add(self, statistics: Tensor, tokens: int, grad_norm: Tensor) -> None:
        """Count one step: the sums over its micro-batches, as `Objective.statistics` gives them, and its gradient norm."""
        self.sums += statistics
        self.tokens += tokens
        self.grad_norm = grad_norm

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

    Args:
        accelerator: its trackers are started by the caller.
        directory: the run directory.
    """

    def __init__(self, accelerator: Accelerator, directory: Path) -> None:
        self.accelerator, self.directory = accelerator, directory

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])
        self.accelerator.log(dict(metrics), step=step)

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Sample comparisons with their rewards at this step."""
        self._append("samples.jsonl", [{"step": step, **sample} for sample in samples])

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.accelerator.is_main_process:
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
