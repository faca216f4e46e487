"""The preferences of scored comparisons as flat arrays, those that have a winner.

Array legend: E preferences (edges).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtrain.evaluation.scores import ScoredComparison


@dataclass(frozen=True, slots=True)
class ScoredEdges:
    """Preferences with a target probability above 0.5, in the order of the comparisons.

    comparison_E: number of the comparison, int64.
    winner_E, loser_E: rewards, float64.
    winner_length_E, loser_length_E: tokens, int64; None where a comparison has no lengths.
    """

    comparison_E: NDArray[np.int64]
    winner_E: NDArray[np.float64]
    loser_E: NDArray[np.float64]
    winner_length_E: NDArray[np.int64] | None
    loser_length_E: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.comparison_E)

    @property
    def margin_E(self) -> NDArray[np.float64]:
        """Reward of the winner less that of the loser; above 0 where the model agrees."""
        return self.winner_E - self.loser_E

    @property
    def credit_E(self) -> NDArray[np.float64]:
        """1 where the model agrees, 0 where it does not, 0.5 for a tie."""
        return np.where(self.margin_E == 0, 0.5, self.margin_E > 0)


def scored_edges(scored: Sequence[ScoredComparison]) -> ScoredEdges:
    """The edges of comparisons; there may be none."""
    rows = [(number, row, edge) for number, row in enumerate(scored) for edge in row.preferences if edge.probability > 0.5]
    winner_length_E = loser_length_E = None
    if all(len(row.lengths) == len(row.rewards) for row in scored):
        winner_length_E = np.array([row.lengths[edge.winner] for _, row, edge in rows], dtype=np.int64)
        loser_length_E = np.array([row.lengths[edge.loser] for _, row, edge in rows], dtype=np.int64)
    return ScoredEdges(
        comparison_E=np.array([number for number, _, _ in rows], dtype=np.int64),
        winner_E=np.array([row.rewards[edge.winner] for _, row, edge in rows], dtype=np.float64),
        loser_E=np.array([row.rewards[edge.loser] for _, row, edge in rows], dtype=np.float64),
        winner_length_E=winner_length_E,
        loser_length_E=loser_length_E,
    )
