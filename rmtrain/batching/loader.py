"""From the plan to tensors: all micro-batches of one optimizer step at a time. The position of a run is one integer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.batching.plan import Indices, Plan
from rmtrain.data.comparison import TokenizedComparison


class Comparisons(Protocol):
    """Any indexable collection of tokenized comparisons."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> TokenizedComparison: ...


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The part of one rank in one optimizer step.

    step: number of the step, counted from 0.
    ids: row ids of the step's comparisons on all ranks, in the order of the plan. The loss is divided once by their number.
    """

    step: int
    epoch: int
    ids: tuple[str, ...]
    micro_batches: tuple[MicroBatch, ...]


class StepLoader:
    """Lays out the micro-batches that the plan assigns to one rank, step by step.

    Args:
        data: the tokenized comparisons.
        plan: the steps.
        layout: memory layout of every micro-batch.
        pad_token_id: id of the padding, in the padded layout.
        rank: index of this process.
    """

    def __init__(self, data: Comparisons, plan: Plan, layout: Layout, pad_token_id: int, rank: int = 0) -> None:
        self.data, self.plan, self.layout, self.pad_token_id, self.rank = data, plan, layout, pad_token_id, rank

    def __len__(self) -> int:
        return self.plan.total_steps

    def step(self, number: int) -> StepBatch:
        """Lay out step `number`, counted from 0."""
        step = self.plan.step(number)
        # The comparisons of all ranks, since the ledger names them all; reading them costs half a millisecond at batch size 512.
        rows = {int(index): self.data[int(index)] for index in step.indices}
        micro_batches = []
        for indices in step.micro_batches[self.rank]:
            if len(indices):
                micro_batches.append(lay_out([rows[int(index)] for index in indices], self.pad_token_id, self.layout))
            else:
                # Every rank takes part in every collective call, so a rank with fewer micro-batches than the others computes
                # the shortest comparison of the step with weight zero.
                shortest = step.indices[self.plan.costs.tokens[step.indices].argmin()]
                micro_batches.append(zero_weight(lay_out([rows[int(shortest)]], self.pad_token_id, self.layout)))
        return StepBatch(number, step.epoch, tuple(row.id for row in rows.values()), tuple(micro_batches))

    def largest_micro_batch(self) -> MicroBatch:
        """Lay out a micro-batch at least as large as any in the plan, with weight zero."""
        return zero_weight(lay_out(gather(self.data, self.plan.largest_micro_batch()), self.pad_token_id, self.layout))

    def halve_budget(self) -> bool:
        """Halve `max_tokens` for all later steps, down to the largest comparison. Return False when it cannot be lowered."""
        smallest = int(self.plan.costs.tokens.max())
        if self.plan.max_tokens <= smallest:
            return False
        self.plan = replace(self.plan, max_tokens=max(smallest, self.plan.max_tokens // 2))
        return True


def gather(data: Comparisons, indices: Indices | Sequence[int]) -> list[TokenizedComparison]:
    """Return the comparisons at `indices`, in that order."""
    return [data[int(index)] for index in indices]


def zero_weight(batch: MicroBatch) -> MicroBatch:
    """Return the micro-batch with weights of zero: it is computed, and adds nothing to loss, gradient or statistics."""
    return replace(batch, weight_E=torch.zeros_like(batch.weight_E), ids=(), tokens=0)
