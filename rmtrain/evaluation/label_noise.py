"""The share of labels that are wrong, and the rows: from rewards of models that were not trained on the rows they score.

A label is taken to name the wrong response with a probability `rate` that does not depend on the row. Rows on which people differ, since
the responses are about equally good, do not count as wrong.

Array legend: R rows, those with a label that has a winner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.intervals import Floats, Integers, Sample, wilson_interval

Booleans = NDArray[np.bool_]
KINDS = {"winner_longer": 1, "winner_shorter": -1, "equal": 0}
"""Kinds of labels by the lengths of the responses: the sign of the better one's length minus the other's."""
ANCHORS = 0.2
"""Share of rows, those on which the model is the most confident, whose true labels it is taken to know."""
HALVINGS = 60
STEEPEST = 50.0
"""Largest factor of scaled margins: beyond it all but the smallest are certain."""


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """Estimated share of wrong labels with its 95 % interval, and the number of rows it was counted on."""

    rate: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class LabelAudit:
    """Labels and what models say about them that were trained without them.

    rows: the scored comparisons, in the order of their folds.
    margin_R: reward of the better response minus that of the other; of a ranking, the mean over its preferences by their weights.
    kind_R: sign of the difference of the same lengths, int64; 0 where lengths are not known.
    scaled_R: margins over the root mean square of those of their fold, by which the models of all folds are equally sure. No label enters
        it: one that did would make a fold look surer in which fewer labels happen to be wrong.
    """

    rows: Sequence[ScoredComparison]
    margin_R: Floats
    kind_R: Integers
    scaled_R: Floats

    @classmethod
    def of(cls, folds: Sequence[Sequence[ScoredComparison]]) -> Self:
        """Measure the rows of each fold, which one model scored; rows whose labels are all ties are left out. DataError if all are."""
        labelled = [[row for row in fold if any(edge.probability > 0.5 for edge in row.preferences)] for fold in folds]
        if not any(labelled):
            raise DataError("no label says that one response is better: all are ties; audit rows with a better response")
        margins = [np.array([_mean(row, row.rewards) for row in fold], np.float64) for fold in labelled]
        rows = [row for fold in labelled for row in fold]
        kinds = [np.sign(_mean(row, row.lengths)) if row.lengths else 0 for row in rows]
        scaled = [margin_R / (math.sqrt(float(np.mean(margin_R**2))) or 1.0) for margin_R in margins if len(margin_R)]
        return cls(rows, np.concatenate(margins), np.array(kinds, np.int64), np.concatenate(scaled))

    @cached_property
    def judged_R(self) -> Booleans:
        """Whether the model is better than chance on labels of the row's source and kind.

        A model that prefers the shorter response disputes the labels that prefer the longer one, whatever they say: none of them is
        suspect.
        """
        judged_R = np.zeros(len(self.rows), bool)
        for inside_R in (inside_R for kinds in self.parts().values() for inside_R in kinds.values()):
            if self.estimate(inside_R) is not None:
                judged_R |= inside_R
        return judged_R

    @cached_property
    def agreement_R(self) -> Floats:
        """Probability that such a label is given: the margins calibrated by one factor (Guo et al. 2017, arXiv:1706.04599)."""
        return _sigmoid(_temperature(self.scaled_R[self.judged_R]) * self.scaled_R)

    @cached_property
    def clusters_R(self) -> Integers:
        """The number of the prompt of each row."""
        return prompt_numbers(self.rows)

    @cached_property
    def sources_R(self) -> NDArray[np.str_]:
        """The source of each row."""
        return np.array([row.source for row in self.rows])

    def estimate(self, inside_R: Booleans) -> NoiseEstimate | None:
        """Estimate the share of wrong labels among some rows; None without rows, or where the model is not better than chance on them.

        The estimate is the share of disputed labels among the fifth on which the model is the most confident. It is right where these rows
        are anchor points, on which the model is never wrong (Liu & Tao 2016, arXiv:1411.7718), and too high otherwise: it is an upper
        bound. Confident learning (Northcutt et al. 2021, arXiv:1911.00068) counts the same share among all rows above the mean
        confidence, about three quarters of them, and takes what is a matter of taste for noise. The interval is that of a share (Wilson),
        for rows of one prompt that depend on each other; it does not know how wrong the model is.
        """
        if not inside_R.any() or self._share(self.margin_R > 0, inside_R).low <= 0.5:
            return None
        least = np.quantile(np.abs(self.scaled_R[inside_R]), 1 - ANCHORS)
        estimate = self._share(self.margin_R < 0, inside_R & (np.abs(self.scaled_R) >= least))
        return estimate if estimate.rate < 0.5 else None

    def _share(self, credit_R: Booleans, inside_R: Booleans) -> NoiseEstimate:
        credits = credit_R[inside_R].astype(np.float64)
        sample = Sample.of(np.ones(len(credits)), self.sources_R[inside_R].tolist(), self.clusters_R[inside_R])
        share = float(credits.mean())
        return NoiseEstimate(share, *wilson_interval(share, sample.effective_size(credits)), len(credits))

    def parts(self) -> dict[str, dict[str, Booleans]]:
        """Return the rows of each source, and of each of `KINDS` within it that has any."""
        parts: dict[str, dict[str, Booleans]] = {}
        for tag in dict.fromkeys(self.sources_R.tolist()):
            kinds = {name: (self.sources_R == tag) & (self.kind_R == sign) for name, sign in KINDS.items()}
            parts[tag] = {name: inside_R for name, inside_R in kinds.items() if inside_R.any()}
        return parts

    @cached_property
    def suspect_R(self) -> Booleans:
        """Whether each label is more likely wrong than right, if the model is right where it is the most confident.

        Given the noise rate e, a model that was trained on noisy labels predicts that a label is given with probability
        a = e + (1 - 2 e) q, where q is the probability that it is the true one. The label is wrong with probability
        e (1 - q) / (e (1 - q) + (1 - e) q) (Bayes).
        """
        if (estimate := self.estimate(self.judged_R)) is None:
            return np.zeros(len(self.rows), bool)
        rate = estimate.rate
        right_R = np.clip((self.agreement_R - rate) / (1 - 2 * rate), 0, 1)
        return self.judged_R & (rate * (1 - right_R) > (1 - rate) * right_R)

    def suspects(self) -> list[int]:
        """Return the numbers of the suspect rows, the most suspect first."""
        numbers = np.flatnonzero(self.suspect_R)
        return [int(number) for number in numbers[np.argsort(self.agreement_R[numbers], kind="stable")]]

    def numbers(self, inside_R: Booleans) -> dict[str, Any]:
        """Return numbers of some rows, JSON-ready: `rows`, `suspects`, `accuracy` of the model, and `noise`, an estimate or None."""
        estimate = self.estimate(inside_R)
        return {
            "rows": int(inside_R.sum()),
            "suspects": int(self.suspect_R[inside_R].sum()),
            "accuracy": float(np.mean(self.margin_R[inside_R] > 0)) if inside_R.any() else None,
            "noise": None if estimate is None else {"rate": estimate.rate, "low": estimate.low, "high": estimate.high},
        }

    def summary(self) -> dict[str, Any]:
        """Return the numbers of all rows, with `kinds` of them, and of each of `sources`, with its kinds; see `KINDS`."""

        whole_R = np.ones(len(self.rows), bool)
        kinds = {name: whole_R & (self.kind_R == sign) for name, sign in KINDS.items()}
        sources = {
            tag: self.numbers(self.sources_R == tag) | {"kinds": {name: self.numbers(part_R) for name, part_R in parts.items()}}
            for tag, parts in self.parts().items()
        }
        by_kind = {name: self.numbers(part_R) for name, part_R in kinds.items() if part_R.any()}
        return self.numbers(whole_R) | {"kinds": by_kind, "sources": sources}


def _mean(row: ScoredComparison, values: Sequence[float]) -> float:
    """Return the mean over the preferences of a row of the winner's value minus the loser's, by how much each preference says."""
    weights = [edge.weight * (2 * edge.probability - 1) for edge in row.preferences]
    gaps = [values[edge.winner] - values[edge.loser] for edge in row.preferences]
    return sum(weight * gap for weight, gap in zip(weights, gaps, strict=True)) / sum(weights)


def _temperature(scaled_R: Floats) -> float:
    """Return the factor of at least 0 by which the margins have the greatest likelihood, by bisection of its derivative; 0 without any."""
    low, high = 0.0, STEEPEST
    for _ in range(HALVINGS if len(scaled_R) else 0):
        middle = (low + high) / 2
        rises = float(np.mean(scaled_R * _sigmoid(-middle * scaled_R))) > 0
        low, high = (middle, high) if rises else (low, middle)
    return low


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)), np.float64)
