"""Which comparisons form each step and each micro-batch, for all ranks.

1. `order(seed, epoch, n)` is the order of an epoch: a pure function, so a resumed or rescaled run sees the same rows.
2. Each step takes the next `batch_size` comparisons of that order; the last step of an epoch takes what is left.
3. A step is cut into world x m micro-batches, each within `max_tokens`, m equal on all ranks, costs balanced.

Nothing here depends on which rank asks: every rank derives the same plan from the same lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import RecipeError

Indices = NDArray[np.int64]


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
        longest: longest sequence of each comparison in tokens, int32 [n].
        responses: number of responses of each comparison, int32 [n].
        batch_size: comparisons per step over all ranks.
        max_tokens: largest padded micro-batch, rows x longest row.
        epochs, max_steps, seed, world: as in the recipe, and the number of processes.
    """

    longest: NDArray[np.int32]
    responses: NDArray[np.int32]
    batch_size: int
    max_tokens: int
    epochs: int
    seed: int
    world: int = 1
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the last and shorter one included."""
        return math.ceil(len(self.longest) / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step(self, number: int) -> StepPlan:
        """The plan of step `number`, counted from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        start = position * self.batch_size
        indices = order(self.seed, epoch, len(self.longest))[start : start + self.batch_size]
        bins = cut(indices, self.longest[indices], self.responses[indices], self.max_tokens, self.world)
        return StepPlan(epoch, indices, bins)


def check_budget(longest: NDArray[np.int32], responses: NDArray[np.int32], ids: Sequence[str], max_tokens: int) -> None:
    """Raise RecipeError, naming the row, when one comparison alone exceeds the budget of a micro-batch."""
    costs = longest.astype(np.int64) * responses
    worst = int(costs.argmax())
    if costs[worst] > max_tokens:
        raise RecipeError(
            f"batching.max_tokens: {max_tokens} is below the {costs[worst]} tokens of comparison {ids[worst]} "
            f"({responses[worst]} responses of up to {longest[worst]} tokens); raise it to {costs[worst]} or lower data.max_length"
        )


def cut(
    indices: Indices, longest: NDArray[np.int32], responses: NDArray[np.int32], max_tokens: int, world: int
) -> tuple[tuple[Indices, ...], ...]:
    """Cut one step into world x m padded micro-batches within `max_tokens`, m as small as possible and equal on all ranks.

    Comparisons are sorted by length, so that a micro-batch pads little. Among the cuts with the smallest m, the one with the
    lowest largest micro-batch is taken; micro-batches then go to ranks heaviest first, to the rank with the least work.

    Returns:
        `[rank][micro-batch]` -> indices; an empty array fills up a rank that has fewer.
    """
    by_length = np.argsort(-longest, kind="stable")
    lengths, rows = longest[by_length].astype(np.int64), responses[by_length].astype(np.int64)
    fewest = len(_boundaries(lengths, rows, max_tokens)) - 1
    per_rank = math.ceil(fewest / world)
    low, high = int((lengths * rows).max()), max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_boundaries(lengths, rows, middle)) - 1 <= per_rank * world:
            high = middle
        else:
            low = middle + 1
    edges = _boundaries(lengths, rows, high)
    pieces = [indices[by_length[a:b]] for a, b in pairwise(edges)]
    costs = [int(lengths[a] * rows[a:b].sum()) for a, b in pairwise(edges)]
    return _share_out(pieces, costs, per_rank, world)


def _boundaries(lengths: Indices, rows: Indices, max_tokens: int) -> list[int]:
    """Greedy cut of comparisons sorted by descending length: 0 = first boundary < ... < last boundary = n."""
    edges, first, filled = [0], 0, 0
    for position in range(len(lengths)):
        filled += int(rows[position])
        if filled * int(lengths[first]) > max_tokens and position > first:
            edges.append(position)
            first, filled = position, int(rows[position])
    return [*edges, len(lengths)]


def _share_out(pieces: list[Indices], costs: list[int], per_rank: int, world: int) -> tuple[tuple[Indices, ...], ...]:
    ranks: list[list[Indices]] = [[] for _ in range(world)]
    work = [0] * world
    for piece in sorted(range(len(pieces)), key=lambda i: -costs[i]):
        rank = min((r for r in range(world) if len(ranks[r]) < per_rank), key=lambda r: work[r])
        ranks[rank].append(pieces[piece])
        work[rank] += costs[piece]
    empty = np.empty(0, dtype=np.int64)
    return tuple(tuple(mine + [empty] * (per_rank - len(mine))) for mine in ranks)
