"""The plan: which comparisons form each step and each micro-batch, for all ranks.

1. `order(seed, epoch, n)` is the order of an epoch: a pure function, so a resumed or rescaled run sees the same rows.
2. Each step takes the next `batch_size` comparisons of that order; the last step of an epoch takes the rest.
3. Of 1.5 epochs, the second one ends after half of its steps, rounded up. Its order is that of a whole epoch.
4. A step is split into world x m micro-batches, each within `max_tokens` as laid out, m equal on all ranks, costs balanced.

The plan does not depend on the rank: every rank derives the same one from the same lengths. `StepLoader` lays out the part of one rank, so
that the position of a run is one integer.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmtrain.batching.layout import MOST_PADDING, Layout, MicroBatch, lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Recipe

Indices = NDArray[np.int64]
SAMPLED_STEPS = 100
CPU_TOKENS = 8192


class Lengths(Protocol):
    """Lengths of n comparisons, one value per comparison, as in `TokenizedData`."""

    @property
    def response_counts(self) -> NDArray[np.int32]: ...
    @property
    def longest(self) -> NDArray[np.int32]: ...
    @property
    def total_tokens(self) -> NDArray[np.int64]: ...
    @property
    def unique_tokens(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost of each comparison in a layout, in tokens; a micro-batch costs their sum.

    tokens: int64 [n], cost of each comparison, with as much padding as `lay_out` allows.
    longest, responses: int32 [n].
    """

    tokens: NDArray[np.int64]
    longest: NDArray[np.int32]
    responses: NDArray[np.int32]

    @classmethod
    def of(cls, lengths: Lengths, layout: Layout) -> "Costs":
        """Compute the costs of comparisons in a layout."""
        tokens = lengths.unique_tokens if layout == "shared_prefix" else lengths.total_tokens
        if layout == "padded":
            tokens = np.ceil(tokens / (1 - MOST_PADDING)).astype(np.int64)
        return cls(tokens, lengths.longest, lengths.response_counts)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def alone(self) -> NDArray[np.int64]:
        """Cost of each comparison in a micro-batch of its own, where padding ends with its longest response, int64 [n]."""
        alone: NDArray[np.int64] = np.minimum(self.tokens, self.longest.astype(np.int64) * self.responses)
        return alone

    def of_micro_batch(self, indices: Indices) -> int:
        """Return the tokens of a micro-batch as laid out, or somewhat more where it is padded."""
        tokens = int(self.tokens[indices].sum())
        if len(indices) == 1:
            return min(tokens, int(self.longest[indices[0]]) * int(self.responses[indices[0]]))
        return tokens


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, n: int) -> Indices:
    """Return the permutation of n comparisons in one epoch, int64 [n]; a pure function of its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step. `micro_batches[rank][i]` holds the indices of one micro-batch, empty where a rank has fewer than the others."""

    epoch: int
    indices: Indices
    micro_batches: tuple[tuple[Indices, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run.

    costs: costs of all comparisons, in the layout of the run.
    batch_size: comparisons per step over all ranks.
    max_tokens: largest micro-batch of one rank, in tokens as laid out.
    epochs: passes over the comparisons; the last one may be a part of a pass.
    world: number of processes.
    """

    costs: Costs
    batch_size: int
    max_tokens: int
    epochs: int | float
    seed: int
    world: int = 1
    max_steps: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, costs: Costs, max_tokens: int, world: int) -> "Plan":
        """Plan a recipe on `world` processes."""
        training = recipe.training
        return cls(costs, training.batch_size, max_tokens, training.epochs, recipe.run.seed, world, training.max_steps)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, including the last, shorter one."""
        return math.ceil(len(self.costs) / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; those of a part of an epoch are rounded up, as in transformers."""
        # As decimals: in binary, 1.1 epochs of 10 steps would be 12 steps.
        steps = math.ceil(self.steps_per_epoch * Fraction(str(self.epochs)))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def computed_epoch(self) -> int:
        """Return the tokens of an epoch as laid out, or somewhat more where they are padded."""
        return int(self.costs.tokens.sum())

    def padded_epoch(self) -> int:
        """Return the tokens of the first epoch if each step were one batch padded to its longest row."""
        starts = np.arange(0, len(self.costs), self.batch_size)
        indices = order(self.seed, 0, len(self.costs))
        longest = np.maximum.reduceat(self.costs.longest[indices], starts).astype(np.int64)
        return int((longest * np.add.reduceat(self.costs.responses[indices], starts)).sum())

    def micro_batches_per_step(self) -> float:
        """Return the mean number of micro-batches per rank and step, over the first steps."""
        counts = [len(self.step(number).micro_batches[0]) for number in range(min(SAMPLED_STEPS, self.steps_per_epoch))]
        return sum(counts) / len(counts)

    def step(self, number: int) -> StepPlan:
        """Plan step `number`, counted from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        start = position * self.batch_size
        indices = order(self.seed, epoch, len(self.costs))[start : start + self.batch_size]
        return StepPlan(epoch, indices, split_step(indices, self.costs, self.max_tokens, self.world))

    def largest_micro_batch(self) -> Indices:
        """Return the comparisons of a micro-batch at least as large as any in the plan: the largest ones, as many as fit the budget.

        With several ranks, each gets at most its share of a step plus one comparison.
        """
        costs = self.costs
        largest = np.argsort(-costs.tokens, kind="stable")[: self.batch_size]
        share = costs.of_micro_batch(largest) // self.world + int(costs.tokens.max())
        most, count = min(self.max_tokens, share), 1
        while count < len(largest) and costs.of_micro_batch(largest[: count + 1]) <= most:
            count += 1
        return largest[:count]


def cpu_budget(costs: Costs) -> int:
    """Return `batching.max_tokens: auto` for a machine without a GPU."""
    return max(CPU_TOKENS, int(costs.alone.max()))


def check_budget(costs: Costs, ids: Sequence[str], max_tokens: int) -> None:
    """Raise RecipeError if one comparison alone exceeds the budget of a micro-batch."""
    worst = int(costs.alone.argmax())
    if costs.alone[worst] > max_tokens:
        tokens = f"{costs.alone[worst]} tokens ({costs.responses[worst]} responses of up to {costs.longest[worst]})"
        problem = f"comparison {ids[worst]} has {tokens}, more than {max_tokens}"
        raise RecipeError(f"batching.max_tokens: {problem}; raise it, or lower data.max_length")


def split_step(indices: Indices, costs: Costs, max_tokens: int, world: int) -> tuple[tuple[Indices, ...], ...]:
    """Split one step into `[rank][micro-batch]` -> indices, within `max_tokens`, in as few micro-batches as possible, costs balanced.

    All ranks get equally many: an empty array fills up a rank that has fewer.
    """
    pieces = _fill_bins(indices, costs, max_tokens, world)
    per_rank = math.ceil(len(pieces) / world)
    ranks: list[list[Indices]] = [[] for _ in range(world)]
    work = [(0, rank) for rank in range(world)]
    for piece in sorted(pieces, key=lambda piece: -costs.of_micro_batch(piece)):
        done, rank = heapq.heappop(work)
        ranks[rank].append(piece)
        if len(ranks[rank]) < per_rank:
            heapq.heappush(work, (done + costs.of_micro_batch(piece), rank))
    empty = np.empty(0, dtype=np.int64)
    return tuple(tuple(mine + [empty] * (per_rank - len(mine))) for mine in ranks)


def _fill_bins(indices: Indices, costs: Costs, max_tokens: int, world: int) -> list[Indices]:
    """Fill as few bins as the budget allows, the largest comparison first, each into the emptiest bin.

    This is the "longest processing time first" rule (Graham 1969): the fullest bin is at most 4/3 of the optimum.
    """
    tokens = np.minimum(costs.tokens[indices], max_tokens)  # with less padding, the largest ones fit alone: see `check_budget`
    heaviest_first = np.argsort(-tokens, kind="stable").tolist()
    sizes = tokens.tolist()
    bins = max(1, math.ceil(sum(sizes) / max_tokens / world)) * world
    while True:
        fill = [(0, number) for number in range(min(bins, len(sizes)))]
        members: list[list[int]] = [[] for _ in fill]
        for position in heaviest_first:
            filled, number = fill[0]
            if filled + sizes[position] > max_tokens:
                break
            members[number].append(position)
            heapq.heapreplace(fill, (filled + sizes[position], number))
        else:
            return [indices[positions] for positions in members]
        bins += world


class Comparisons(Protocol):
    """Any indexable collection of tokenized comparisons."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> TokenizedComparison: ...


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The part of one rank in one optimizer step, counted from 0.

    ids: row ids of the step's comparisons on all ranks, in the order of the plan. The loss is divided once by their number.
    """

    step: int
    epoch: int
    ids: tuple[str, ...]
    micro_batches: tuple[MicroBatch, ...]


class StepLoader:
    """Lays out the micro-batches that the plan assigns to one rank, step by step; `pad_token_id` is for the padded layout."""

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
        smallest = int(self.plan.costs.alone.max())
        if self.plan.max_tokens <= smallest:
            return False
        self.plan = replace(self.plan, max_tokens=max(smallest, self.plan.max_tokens // 2))
        return True


def gather(data: Comparisons, indices: Indices | Sequence[int]) -> list[TokenizedComparison]:
    """Return the comparisons at `indices`, in that order."""
    return [data[int(index)] for index in indices]


def zero_weight(batch: MicroBatch) -> MicroBatch:
    """Return the micro-batch with weights of zero: it is computed, and adds nothing to loss, gradient or statistics."""
    return replace(batch.only(()), ids=(), tokens=0)
