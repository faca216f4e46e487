"""Where a model is fooled, and how far its numbers can be believed: what is behind the one accuracy. Plain numpy.

Array legend: E preferences (edges).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.evaluation.metrics import CALIBRATION_BINS
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""What the first digits of a round width are."""


def round_width(span: float, most: int) -> float:
    """The smallest round width of which at most `most` cover a span; 1 for a span of 0."""
    if span <= 0:
        return 1.0
    least = span / most
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(digits * power for digits in ROUND if digits * power >= least * (1 - 1e-9))


def round_edges(low: float, high: float, most: int) -> NDArray[np.float64]:
    """Edges, a round width apart, that are multiples of it and hold all from `low` to `high`; at most `most` + 1 bins."""
    width = round_width(high - low, most)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * np.float64(width)


def share_with_interval(right: NDArray[Any], comparisons: NDArray[np.int64]) -> dict[str, Any]:
    """Count, share and Wilson 95 % interval of credits in [0, 1]; each comparison is one trial, however many edges it has."""
    if not len(right):
        return {"preferences": 0, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    share = float(np.mean(right))
    low, high = wilson_interval(share, len(np.unique(comparisons)))
    return {"preferences": len(right), "accuracy": share, "accuracy_low": low, "accuracy_high": high}


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


HISTOGRAM_BINS = 30
LENGTH_BINS = 8


def diagnose(scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Everything below over the preferences that have a winner, JSON-ready; a part without anything to count is None.

    Returns:
        `preferences`, `rewards`, `margins`, `length_difference`, `reward_by_length` and `calibration`, each as the function
        of that name says.
    """
    edges = scored_edges(scored)
    return {
        "preferences": len(edges),
        "rewards": reward_histograms(edges),
        "margins": margin_histogram(edges),
        "length_difference": accuracy_by_length_difference(edges),
        "reward_by_length": reward_by_length(edges),
        "calibration": calibration_curve(edges),
    }


def reward_histograms(edges: ScoredEdges) -> dict[str, Any] | None:
    """Rewards of winners and of losers over the same bins: `edges` (one more than bins), and the counts `winners` and `losers`."""
    if not len(edges):
        return None
    together = np.concatenate([edges.winner_E, edges.loser_E])
    bins = round_edges(float(together.min()), float(together.max()), HISTOGRAM_BINS)
    winners, losers = (_counts(values, bins) for values in (edges.winner_E, edges.loser_E))
    return {"edges": bins.tolist(), "winners": winners.tolist(), "losers": losers.tolist()}


def margin_histogram(edges: ScoredEdges) -> dict[str, Any] | None:
    """Reward of the winner less that of the loser: `edges`, among them 0, `counts`, and the shares `right`, `wrong` and `tied`.

    A tie counts in the bin above 0.
    """
    if not len(edges):
        return None
    margin_E = edges.margin_E
    bins = round_edges(min(0.0, float(margin_E.min())), max(0.0, float(margin_E.max())), HISTOGRAM_BINS)
    shares = {name: float(np.mean(np.sign(margin_E) == sign)) for name, sign in (("right", 1), ("wrong", -1), ("tied", 0))}
    return {"edges": bins.tolist(), "counts": _counts(margin_E, bins).tolist(), **shares}


def accuracy_by_length_difference(edges: ScoredEdges) -> list[dict[str, Any]] | None:
    """Accuracy where the winner is so many tokens longer than the loser, from much shorter to much longer.

    The bounds are the thirds of the differences' sizes, the same for both signs, so that a taste for length shows as a slope; equal
    lengths are a bin of their own. Of each bin that has any: `low` and `high` (whole tokens, both included; None: without end),
    `preferences`, and `accuracy` with its interval.
    """
    if edges.winner_length_E is None or edges.loser_length_E is None or not len(edges):
        return None
    difference_E = edges.winner_length_E - edges.loser_length_E
    bins = []
    for low, high in _length_bounds(np.abs(difference_E[difference_E != 0])):
        inside_E = (difference_E >= (-np.inf if low is None else low)) & (difference_E <= (np.inf if high is None else high))
        if inside_E.any():
            numbers = share_with_interval(edges.margin_E[inside_E] > 0, edges.comparison_E[inside_E])
            bins.append({"low": low, "high": high, **numbers})
    return bins


def _length_bounds(sizes: NDArray[np.int64]) -> list[tuple[int | None, int | None]]:
    """Whole-number intervals that cover all differences, symmetric about the one of 0."""
    thirds = np.quantile(sizes, (1 / 3, 2 / 3), method="inverted_cdf") if len(sizes) else np.array([], dtype=np.int64)
    bounds = [int(bound) for bound in np.unique(thirds)]
    starts = [1, *(bound + 1 for bound in bounds)]
    above: list[tuple[int | None, int | None]] = list(zip(starts, [*bounds, None], strict=True))
    below = [(None if high is None else -high, None if low is None else -low) for low, high in reversed(above)]
    return [*below, (0, 0), *above]


def reward_by_length(edges: ScoredEdges) -> list[dict[str, Any]] | None:
    """Mean reward of responses of like length, in bins of equal counts: `low` and `high` in tokens, `responses`, `reward`, `deviation`.

    Lengths are with their prompts. A response counts once for each preference it is in.
    """
    if edges.winner_length_E is None or edges.loser_length_E is None or not len(edges):
        return None
    lengths = np.concatenate([edges.winner_length_E, edges.loser_length_E])
    rewards = np.concatenate([edges.winner_E, edges.loser_E])
    quantiles = np.arange(1, LENGTH_BINS) / LENGTH_BINS
    uppers = np.unique(np.append(np.quantile(lengths, quantiles, method="inverted_cdf"), lengths.max()))
    bin_of = np.searchsorted(uppers, lengths)
    return [
        {
            "low": int(lengths[bin_of == number].min()),
            "high": int(lengths[bin_of == number].max()),
            "responses": int(np.sum(bin_of == number)),
            "reward": float(rewards[bin_of == number].mean()),
            "deviation": float(rewards[bin_of == number].std()),
        }
        for number in range(len(uppers))
    ]


def calibration_curve(edges: ScoredEdges) -> dict[str, Any] | None:
    """How often the model is right where it is so sure (Guo et al. 2017, eq. 3).

    The prediction is the side with the greater reward, its confidence sigmoid(|margin|) in [0.5, 1], cut into ten equal bins.
    A tie has confidence 0.5 and is half right. The error is `sum_b n_b / n * |right_b - confidence_b|`.

    Returns:
        `error`, and of each bin that has any `low`, `high`, `confidence`, `preferences`, and `accuracy` with its interval.
    """
    if not len(edges):
        return None
    confidence_E, credit_E = 1 / (1 + np.exp(-np.abs(edges.margin_E))), edges.credit_E
    bin_E = np.minimum(((confidence_E - 0.5) * 2 * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    bins = [
        {
            "low": 0.5 + number / (2 * CALIBRATION_BINS),
            "high": 0.5 + (number + 1) / (2 * CALIBRATION_BINS),
            "confidence": float(confidence_E[bin_E == number].mean()),
            **share_with_interval(credit_E[bin_E == number], edges.comparison_E[bin_E == number]),
        }
        for number in np.unique(bin_E).tolist()
    ]
    error = sum(row["preferences"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(edges)
    return {"error": error, "bins": bins}


def _counts(values: NDArray[np.float64], bins: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many values are in each bin, its lower edge included; rounding at the outer edges loses none."""
    counts: NDArray[np.int64] = np.bincount(
        np.clip(np.searchsorted(bins, values, side="right") - 1, 0, len(bins) - 2), minlength=len(bins) - 1
    )
    return counts
