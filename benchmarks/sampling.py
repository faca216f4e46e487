"""Which comparisons are measured: few enough to be timed again and again, and such that they stand for all of the data."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.pairs import unique_tokens
from rmtrain.batching.plan import order
from rmtrain.data.comparison import TokenizedComparison

CANDIDATES, MICRO_BATCH = 300, 4


def sample(rows: Sequence[TokenizedComparison], steps: int, batch: int, seed: int) -> list[TokenizedComparison]:
    """Comparisons for so many steps: of 300 random samples the one most like an epoch in what decides who is faster.

    That is, for each comparison: its unique tokens; the tokens of padded batches in the order of the plan, which the few longest rows
    decide; and the tokens of padded micro-batches of 4 grouped by length, which on all of the data are those of transformers' sampler.

    Args:
        rows: all of the data.
        steps, batch: how many steps of how many comparisons.
        seed: of the plan that will order the sample.
    """
    count = steps * batch
    if count > len(rows):
        raise SystemExit(f"{count} comparisons are needed, and the data have {len(rows)}; lower --steps or --batch-size")
    unique = np.array([unique_tokens(row) for row in rows])
    longest_NE = np.array(
        [[max(len(row.sequences[e.winner]), len(row.sequences[e.loser])) for e in row.preferences] for row in rows]
    )
    rng, arranged = np.random.default_rng(0), order(seed, 0, count)
    candidates = [rng.permutation(len(rows))[:count] for _ in range(CANDIDATES)]
    tokens_C3 = np.array([_tokens(unique[some], longest_NE[some], arranged, batch) for some in candidates])
    everything = longest_NE.ravel().tolist()
    by_length = get_length_grouped_indices(everything, batch * longest_NE.shape[1], generator=torch.Generator().manual_seed(0))
    in_epoch = [unique.mean(), tokens_C3[:, 1].mean(), _padded(longest_NE.ravel()[by_length], MICRO_BATCH) / len(rows)]
    distances = np.abs(np.log(tokens_C3 / in_epoch)).sum(axis=1)
    return [rows[index] for index in candidates[int(distances.argmin())]]


def _tokens(unique: NDArray[np.int64], longest_NE: NDArray[np.int64], arranged: NDArray[np.int64], batch: int) -> list[float]:
    """Tokens for each comparison: unique, padded in the order of the plan, and padded after sorting by length."""
    pairs = longest_NE[arranged].ravel()
    in_order, by_length = _padded(pairs, batch * longest_NE.shape[1]), _padded(np.sort(pairs)[::-1], MICRO_BATCH)
    return [unique.mean(), in_order / len(unique), by_length / len(unique)]


def _padded(longest: NDArray[np.int64], size: int) -> int:
    """Tokens of pairs in padded batches of a size, in the order given."""
    return sum(2 * len(longest[i : i + size]) * int(longest[i : i + size].max()) for i in range(0, len(longest), size))
