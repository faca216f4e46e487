"""Statistics of the training steps since the last log line: summed on the device, reduced over ranks once per line."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rmtrain.errors import NumericError
from rmtrain.objective import Objective


class Meter:
    """Sums over the steps since the last log line.

    Statistics stay tensors on the device: reading one waits for the GPU, and only `report` pays for that.

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
        """Whether no step was added since the last report."""
        return self.grad_norm is None

    def add(self, statistics: Tensor, tokens: int, grad_norm: Tensor) -> None:
        """Add one step: the sums over its micro-batches, as `Objective.statistics` gives them, and its gradient norm."""
        self.sums += statistics
        self.tokens += tokens
        self.grad_norm = grad_norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block, such as an evaluation, from the throughput."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def report(self, step: int, epoch: float, learning_rate: float) -> dict[str, float]:
        """Return means since the last report under the seed's names, reduced over ranks, and start a new interval.

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

    def state(self) -> dict[str, Any]:
        """Return the open interval, summed over ranks, as JSON values for a checkpoint. Called on all ranks."""
        tokens = torch.tensor(self.tokens, device=self.sums.device)
        return {
            "sums": self.accelerator.reduce(self.sums.clone(), reduction="sum").tolist(),
            "tokens": int(self.accelerator.reduce(tokens, reduction="sum").item()),
            "total_tokens": self.total_tokens,
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the open log interval of a checkpoint; rank 0 takes the sums of all ranks."""
        self._reset()
        self.total_tokens = state["total_tokens"]
        if state["grad_norm"] is not None:
            self.grad_norm = torch.tensor(state["grad_norm"], device=self.sums.device)
        if self.accelerator.is_main_process:
            self.sums += torch.tensor(state["sums"], device=self.sums.device)
            self.tokens = state["tokens"]


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise NumericError when a metric is not finite: the weights are lost by then, and more steps would only hide it."""
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NumericError(f"step {step}: {', '.join(bad)}; lower optimizer.lr, or look for extreme rows with `rmtrain inspect`")
