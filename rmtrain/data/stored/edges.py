"""The preferences of tokenized data as arrays over all its comparisons: what the checks work on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.stored.artifact import TokenizedData

TIE = 0.5
"""Target probability of a preference that is none."""


@dataclass(frozen=True, slots=True)
class Edges:
    """E preferences, one comparison after the other; every field has one value for each.

    comparisons int64: number of the comparison that states it.
    winners, losers int64: numbers of the responses within their comparison.
    winner_nodes, loser_nodes uint64: hash of each response with its prompt, both normalised: equal nodes are the same text as far as case,
        spacing and Unicode form go, in whatever row.
    margins, probabilities float64: as in `Preference`.
    """

    comparisons: NDArray[np.int64]
    winners: NDArray[np.int64]
    losers: NDArray[np.int64]
    winner_nodes: NDArray[np.uint64]
    loser_nodes: NDArray[np.uint64]
    margins: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.comparisons)

    @property
    def are_decided(self) -> NDArray[np.bool_]:
        """Which of them have a winner: a target probability above that of a tie."""
        return self.probabilities > TIE


def edges_of(data: TokenizedData) -> Edges:
    """The edges of all comparisons."""
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    comparisons = np.repeat(np.arange(len(data), dtype=np.int64), data.preference_counts)
    winners, losers = (data.edge_values(side).astype(np.int64) for side in ("winners", "losers"))
    nodes = mix(np.repeat(data.prompt_hashes, data.response_counts), data.response_hashes)
    first = begins[comparisons]
    return Edges(
        comparisons,
        winners,
        losers,
        nodes[first + winners],
        nodes[first + losers],
        data.edge_values("margins"),
        data.edge_values("probabilities"),
    )


def mix(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """One 64-bit value from several uint64 values, in order (the multiplier is that of splitmix64)."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
