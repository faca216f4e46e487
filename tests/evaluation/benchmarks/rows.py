"""Scored rows of benchmarks, made by hand."""

from collections.abc import Sequence

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import each_over_each
from rmtrain.evaluation.scores_file import ScoredComparison


def pair(source: str, better: float, worse: float, name: str = "0", shown: tuple[int, ...] = ()) -> ScoredComparison:
    return ScoredComparison(name, source, (better, worse), (), PAIR, shown=shown)


def best_of(source: str, *rewards: float, name: str = "0", right: int = 1) -> ScoredComparison:
    """Make a row whose first `right` responses are the right ones."""
    return ScoredComparison(name, source, rewards, (), each_over_each(right, len(rewards) - right))


def many(source: str, wins: int, losses: int, ties: int = 0) -> list[ScoredComparison]:
    outcomes = [(1.0, 0.0)] * wins + [(0.0, 1.0)] * losses + [(0.5, 0.5)] * ties
    return [pair(source, *rewards, name=str(number)) for number, rewards in enumerate(outcomes)]


def with_lengths(row: ScoredComparison, lengths: Sequence[int]) -> ScoredComparison:
    return ScoredComparison(row.id, row.source, row.rewards, tuple(lengths), row.preferences, shown=row.shown)


def weighted_total(units: object, rule: str) -> float:
    """Compute the total as the weighted sum over units."""
    return float(np.sum(units.credits[rule] * units.weights_U))  # type: ignore[attr-defined]
