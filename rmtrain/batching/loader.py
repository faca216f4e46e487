"""The plan made real: all micro-batches of one optimizer step at a time. The position of a run is one integer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rmtrain.batching.layout import MicroBatch, lay_out
from rmtrain.batching.plan import Indices, Plan, StepPlan
from rmtrain.data.comparison import TokenizedComparison


class Comparisons(Protocol):
    """What a loader reads: anything indexable that gives tokenized comparisons."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> TokenizedComparison: ...


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one rank computes in one optimizer step. `comparisons` counts those of all ranks: the loss is divided by it once."""

    step: int
    epoch: int
    comparisons: int
    micro_batches: tuple[MicroBatch, ...]


class StepLoader:
    """Lays out, step by step, the micro-batches that the plan gives one rank.

    Args:
        data: the tokenized comparisons.
        plan: the steps.
        rank: this process.
        pad_token_id: id that fills rows up.
    """

    def __init__(self, data: Comparisons, plan: Plan, pad_token_id: int, rank: int = 0) -> None:
        self.data, self.plan, self.pad_token_id, self.rank = data, plan, pad_token_id, rank

    def __len__(self) -> int:
        return self.plan.total_steps

    def steps(self, start: int = 0) -> Iterator[StepBatch]:
        """Every step from `start`, counted from 0, to the end of the run."""
        for number in range(start, len(self)):
            step = self.plan.step(number)
            micro_batches = tuple(self._lay_out(indices, step) for indices in step.micro_batches[self.rank])
            yield StepBatch(number, step.epoch, len(step.indices), micro_batches)

    def _lay_out(self, indices: Indices, step: StepPlan) -> MicroBatch:
        if len(indices):
            return lay_out(gather(self.data, indices), self.pad_token_id)
        shortest = step.indices[self.plan.longest[step.indices].argmin()]
        return _weightless(lay_out(gather(self.data, [shortest]), self.pad_token_id))


def gather(data: Comparisons, indices: Indices | Sequence[int]) -> list[TokenizedComparison]:
    """The comparisons at `indices`, in that order."""
    return [data[int(index)] for index in indices]


def _weightless(batch: MicroBatch) -> MicroBatch:
    """A micro-batch that takes part in every collective call and adds nothing, for a rank that has fewer than the others."""
    return replace(batch, weight_E=torch.zeros_like(batch.weight_E), ids=(), tokens=0)
