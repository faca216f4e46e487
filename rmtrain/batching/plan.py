"""Which comparisons form each step and each micro-batch, for all ranks.

1. `order(seed, epoch, n)` is the order of an epoch: a pure function, so a resumed or rescaled run sees the same rows.
2. Each step takes the next `batch_size` comparisons of that order; the last step of an epoch takes what is left.
3. A step is cut into world x m micro-batches, each within `max_tokens` as laid out, m equal on all ranks, costs balanced.

Nothing here depends on which rank asks: every rank derives the same plan from the same lengths.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmtrain.batching.layout import Layout
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Recipe

Indices = NDArray[np.int64]
SAMPLED_STEPS = 100
CPU_TOKENS = 8192


class Lengths(Protocol):
    """The lengths of n comparisons, one value each, as `TokenizedData` has them."""

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
    """What comparisons cost in a layout, in tokens.

    tokens: int64 [n], each one alone; without padding, a micro-batch costs their sum.
    longest, responses: int32 [n]; with padding, a micro-batch costs its responses times its longest sequence.
    padded: whether there is padding.
    """

    tokens: NDArray[np.int64]
    longest: NDArray[np.int32]
    responses: NDArray[np.int32]
    padded: bool

    @classmethod
    def of(cls, lengths: Lengths, layout: Layout) -> "Costs":
        """The costs of comparisons in a layout."""
        if layout == "padded":
            tokens = lengths.longest.astype(np.int64) * lengths.response_counts
        else:
            tokens = lengths.unique_tokens if layout == "shared_prefix" else lengths.total_tokens
        return cls(tokens, lengths.longest, lengths.response_counts, padded=layout == "padded")

    def __len__(self) -> int:
        return len(self.tokens)

    def of_micro_batch(self, indices: Indices) -> int:
        """Tokens of a micro-batch as laid out."""
        if self.padded:
            return int(self.longest[indices].max()) * int(self.responses[indices].sum())
        return int(self.tokens[indices].sum())


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, n: int) -> Indices:
    """The permutation of n comparisons in one epoch, int64 [n]; a pure function of its arguments."""
    return np.random.default_rng((seed, epoch)).permutation(n)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step. `micro_batches[rank][i]` holds the comparisons of a micro-batch, none where a rank has fewer."""

    epoch: int
    indices: Indices
    micro_batches: tuple[tuple[Indices, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run.

    Args:
        costs: of all comparisons, in the layout of the run.
        batch_size: comparisons per step over all ranks.
        max_tokens: largest micro-batch of one rank, in tokens as laid out.
        epochs, max_steps, seed, world: as in the recipe, and the number of processes.
    """

    costs: Costs
    batch_size: int
    max_tokens: int
    epochs: int
    seed: int
    world: int = 1
    max_steps: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, costs: Costs, max_tokens: int, world: int) -> "Plan":
        """The plan of a recipe on `world` processes."""
        return cls(
            costs=costs,
            batch_size=recipe.training.batch_size,
            max_tokens=max_tokens,
            epochs=recipe.training.epochs,
            seed=recipe.run.seed,
            world=world,
            max_steps=recipe.training.max_steps,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the last and shorter one included."""
        return math.ceil(len(self.costs) / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def computed_epoch(self) -> int:
        """Tokens of an epoch as laid out; of the padded layout, its real tokens in the micro-batches of the first steps, extrapolated."""
        if not self.costs.padded:
            return int(self.costs.tokens.sum())
        steps = [self.step(number) for number in range(min(SAMPLED_STEPS, self.steps_per_epoch))]
        laid_out = sum(
            self.costs.of_micro_batch(piece) for step in steps for rank in step.micro_batches for piece in rank if len(piece)
        )
        return laid_out * len(self.costs) // sum(len(step.indices) for step in steps)

    def padded_epoch(self) -> int:
        """Tokens of the first epoch, had each step been one batch padded to its longest row."""
        starts = np.arange(0, len(self.costs), self.batch_size)
        indices = order(self.seed, 0, len(self.costs))
        longest = np.maximum.reduceat(self.costs.longest[indices], starts).astype(np.int64)
        return int((longest * np.add.reduceat(self.costs.responses[indices], starts)).sum())

    def micro_batches_per_step(self) -> float:
        """Micro-batches of a rank in a step, the mean of the first steps."""
        counts = [len(self.step(number).micro_batches[0]) for number in range(min(SAMPLED_STEPS, self.steps_per_epoch))]
        return sum(counts) / len(counts)

    def step(self, number: int) -> StepPlan:
        """The plan of step `number`, counted from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        start = position * self.batch_size
        indices = order(self.seed, epoch, len(self.costs))[start : start + self.batch_size]
        return StepPlan(epoch, indices, cut(indices, self.costs, self.max_tokens, self.world))

    def heaviest(self) -> Indices:
        """The comparisons of a micro-batch as heavy as any of the plan: the largest ones, as many as the budget holds.

        Of several ranks each has its share of a step, and never more than one comparison beyond it.
        """
        costs = self.costs
        largest = np.argsort(-costs.tokens, kind="stable")[: self.batch_size]
        share = costs.of_micro_batch(largest) // self.world + int(costs.tokens.max())
        most, count = min(self.max_tokens, share), 1
        while count < len(largest) and costs.of_micro_batch(largest[: count + 1]) <= most:
            count += 1
        return largest[:count]


def cpu_budget(costs: Costs) -> int:
    """`batching.max_tokens: auto` where there is no GPU."""
    return max(CPU_TOKENS, int(costs.tokens.max()))


def check_budget(costs: Costs, ids: Sequence[str], max_tokens: int) -> None:
    """Raise RecipeError, naming the row, when one comparison alone exceeds the budget of a micro-batch."""
    worst = int(costs.tokens.argmax())
    if costs.tokens[worst] > max_tokens:
        raise RecipeError(
            f"batching.max_tokens: {max_tokens} is below the {costs.tokens[worst]} tokens of comparison {ids[worst]} "
            f"({costs.responses[worst]} responses of up to {costs.longest[worst]} tokens); raise it, or lower data.max_length"
        )


def cut(indices: Indices, costs: Costs, max_tokens: int, world: int) -> tuple[tuple[Indices, ...], ...]:
    """Cut one step into world x m micro-batches within `max_tokens`, m small and equal on all ranks, their costs balanced.

    Returns:
        `[rank][micro-batch]` -> indices; an empty array fills up a rank that has fewer.
    """
    pieces = (
        _cut_padded(indices, costs, max_tokens, world) if costs.padded else _cut_single_rows(indices, costs, max_tokens, world)
    )
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


def _cut_single_rows(indices: Indices, costs: Costs, max_tokens: int, world: int) -> list[Indices]:
    """As few bins as the budget allows, filled heaviest first, each comparison into the lightest (longest processing time first)."""
    tokens = costs.tokens[indices]
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


def _cut_padded(indices: Indices, costs: Costs, max_tokens: int, world: int) -> list[Indices]:
    """Pieces of the comparisons sorted by length, so that a micro-batch pads little.

    Among the cuts with the smallest number of micro-batches per rank, the one whose largest micro-batch is smallest.
    """
    by_length = np.argsort(-costs.longest[indices], kind="stable")
    sorted_indices = indices[by_length]
    lengths, rows = costs.longest[sorted_indices].astype(np.int64), costs.responses[sorted_indices].astype(np.int64)
    most = math.ceil((len(_boundaries(lengths, rows, max_tokens)) - 1) / world) * world
    low, high = int((lengths * rows).max()), max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_boundaries(lengths, rows, middle)) - 1 <= most:
            high = middle
        else:
            low = middle + 1
    return [sorted_indices[begin:end] for begin, end in pairwise(_boundaries(lengths, rows, high))]


def _boundaries(lengths: Indices, rows: Indices, max_tokens: int) -> list[int]:
    """Greedy cut of comparisons sorted by descending length: 0 = first boundary < ... < last boundary = n."""
    edges, first, filled = [0], 0, 0
    for position in range(len(lengths)):
        filled += int(rows[position])
        if filled * int(lengths[first]) > max_tokens and position > first:
            edges.append(position)
            first, filled = position, int(rows[position])
    return [*edges, len(lengths)]
