"""The plan made real: all micro-batches of one optimizer step at a time. The position of a run is one integer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
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
        layout: of every micro-batch.
        pad_token_id: id that fills rows up, where the layout has padding.
        rank: this process.
    """

    def __init__(self, data: Comparisons, plan: Plan, layout: Layout, pad_token_id: int, rank: int = 0) -> None:
        self.data, self.plan, self.layout, self.pad_token_id, self.rank = data, plan, layout, pad_token_id, rank

    def __len__(self) -> int:
        return self.plan.total_steps

    def step(self, number: int) -> StepBatch:
        """The step of this number, counted from 0."""
        step = self.plan.step(number)
        micro_batches = tuple(self._lay_out(indices, step) for indices in step.micro_batches[self.rank])
        return StepBatch(number, step.epoch, len(step.indices), micro_batches)

    def rows(self, number: int) -> tuple[int, list[str]]:
        """The epoch of a step, and the ids of its comparisons on all ranks, in the order of the plan."""
        step = self.plan.step(number)
        return step.epoch, [row.id for row in gather(self.data, step.indices)]

    def heaviest(self) -> MicroBatch:
        """Lay out the heaviest micro-batch that the plan can give, with a weight of zero."""
        return _weightless(lay_out(gather(self.data, self.plan.heaviest()), self.pad_token_id, self.layout))

    def halve_budget(self) -> bool:
        """Cut from now on into micro-batches of half the tokens, but no less than the largest comparison; False when that is reached."""
        smallest = int(self.plan.costs.tokens.max())
        if self.plan.max_tokens <= smallest:
            return False
        self.plan = replace(self.plan, max_tokens=max(smallest, self.plan.max_tokens // 2))
        return True

    def _lay_out(self, indices: Indices, step: StepPlan) -> MicroBatch:
        if len(indices):
            return lay_out(gather(self.data, indices), self.pad_token_id, self.layout)
        shortest = step.indices[self.plan.costs.tokens[step.indices].argmin()]
        return _weightless(lay_out(gather(self.data, [shortest]), self.pad_token_id, self.layout))


def gather(data: Comparisons, indices: Indices | Sequence[int]) -> list[TokenizedComparison]:
    """The comparisons at `indices`, in that order."""
    return [data[int(index)] for index in indices]


def _weightless(batch: MicroBatch) -> MicroBatch:
    """A micro-batch that takes part in every collective call and adds nothing, for a rank that has fewer than the others."""
    return replace(batch, weight_E=torch.zeros_like(batch.weight_E), ids=(), tokens=0)
