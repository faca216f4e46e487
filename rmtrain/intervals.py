"""Confidence intervals of shares and of differences of means, for units that come in clusters, such as the pairs of one prompt.

Array legend: U units, H strata, G clusters, R resamples, V different values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NORMAL_QUANTILE_95 = 1.959963984540054
T_TERMS = (2.372271, 2.822500, 2.555852, 1.589536)
"""Terms of the expansion of Student's quantile by 1 over the degrees of freedom (Abramowitz & Stegun 26.7.5), at the normal quantile."""
T_QUANTILE_95_OF_ONE = 12.706205
FEW_CLUSTERS = 10
"""Strata of fewer clusters are merged: too few to estimate how much each varies."""
ADDED = 0.15
"""Part of a cluster that is added on either side. With it the coverage for 20 to 200 prompts of 5.5 pairs is nearest to 95 %."""


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the Wilson 95 % score interval of a share observed in `n` independent trials (Wilson 1927, eq. 4 of Brown et al. 2001)."""
    square = NORMAL_QUANTILE_95**2
    center = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def t_quantile_95(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t; within 1 % from two degrees of freedom on, and that of one below two."""
    if freedom < 2:
        return T_QUANTILE_95_OF_ONE
    return NORMAL_QUANTILE_95 + sum(term / freedom**power for power, term in enumerate(T_TERMS, start=1))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Units whose weighted mean is reported, and how they were drawn.

    Units of one cluster depend on each other, and different clusters do not. The weight of a stratum does not depend on what was drawn,
    so only deviations from its own mean vary. A cluster may reach into several strata. Small strata are merged, see `FEW_CLUSTERS`.

    weights_U: of each unit in the mean; they sum to 1.
    strata_U, clusters_U: their numbers, from 0.
    """

    weights_U: Floats
    strata_U: Integers
    clusters_U: Integers

    @classmethod
    def of(cls, weights_U: NDArray[Any], strata: Sequence[str] | Integers, clusters: Integers) -> Self:
        """Number strata and clusters, and scale the weights, which are positive; there is at least one unit."""
        strata_U, clusters_U = (np.unique(np.asarray(labels), return_inverse=True)[1] for labels in (strata, clusters))
        count = int(strata_U.max()) + 1
        clusters_H = np.bincount(np.unique(clusters_U * count + strata_U) % count)
        merged_U = np.where(clusters_H[strata_U] < FEW_CLUSTERS, count, strata_U)
        return cls(weights_U / weights_U.sum(), np.unique(merged_U, return_inverse=True)[1], clusters_U)

    def effective_size(self, credits_U: NDArray[Any]) -> float:
        """Return how many independent trials, each right or wrong, would give the mean of these credits in [0, 1] the same variance.

        The variance is that of the weighted mean by linearization, clusters being drawn as a whole (Kish 1965; Miller 2024,
        arXiv:2411.00640). Where clusters are few it is uncertain, and the number is reduced by the ratio of Student's
        quantiles for units and for clusters (Korn & Graubard 1998). Each stratum is given `ADDED` of a cluster that is all right and as
        much of one that is all wrong (as Agresti & Coull 1998 add trials), so that a share of 0 or 1 does not claim that nothing varies:
        if all units are right, each cluster counts once. For units that are right or wrong, have equal weights and are in clusters of
        their own, and for one stratum, this is exactly their number.
        """
        credits_U = np.minimum(credits_U, 1.0)
        count = int(self.strata_U.max()) + 1
        pieces_P, piece_U = np.unique(self.clusters_U * count + self.strata_U, return_inverse=True)
        of_stratum_H = np.bincount(self.strata_U, self.weights_U)
        # The weight of a cluster within its stratum: 1 over their number, where they are equally large.
        cluster_H = np.bincount(pieces_P % count, np.bincount(piece_U, self.weights_U) ** 2) / of_stratum_H**2
        whole_H = 1 + 2 * ADDED * cluster_H
        right_H = (self.means(credits_U) + ADDED * cluster_H) / whole_H
        deviations_U = self.weights_U * ((credits_U - right_H[self.strata_U]) / np.sqrt(whole_H[self.strata_U]))
        added_H = of_stratum_H * cluster_H / np.sqrt(whole_H)
        variance = float(np.sum(np.bincount(self.clusters_U, deviations_U) ** 2))
        variance += ADDED * float(np.sum(added_H**2 * (right_H**2 + (1 - right_H) ** 2)))
        share = float(np.sum(of_stratum_H * right_H))
        units, clusters = (t_quantile_95(self._freedom(numbers)) for numbers in (np.arange(len(credits_U)), self.clusters_U))
        return float(share * (1 - share) / variance * (units / clusters) ** 2)

    def means(self, values_U: NDArray[Any]) -> Floats:
        """Return the weighted mean of each stratum."""
        sums_H = np.bincount(self.strata_U, self.weights_U * values_U)
        return np.asarray(sums_H / np.bincount(self.strata_U, self.weights_U), np.float64)

    def few_clusters(self) -> float:
        """Return by how much an interval is too narrow that takes the variance among clusters as known: Student's t over the normal."""
        size, freedom = self._size(self.clusters_U), self._freedom(self.clusters_U)
        return math.sqrt(max(1.0, size / freedom)) * t_quantile_95(freedom) / NORMAL_QUANTILE_95

    def _size(self, groups_U: Integers) -> float:
        """Return the number of groups, unequal ones counting as fewer (Kish's effective number)."""
        return float(1 / np.sum(np.bincount(groups_U, self.weights_U) ** 2))

    def _freedom(self, groups_U: Integers) -> float:
        return max(1.0, self._size(groups_U) - int(self.strata_U.max()) - 1)


RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 250
"""A block for 10,000 different values takes 20 MB; all resamples at once would take 0.8 GB."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference of two means, its 95 % interval, and the probability of one at least as large, either way, if there were none."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(one_U: Floats, other_U: Floats, sample: Sample, seed: int = 0) -> PairedDifference:
    """Return the weighted mean of `other_U` minus that of `one_U`, with the percentile interval of the cluster bootstrap.

    Whole clusters are drawn with replacement, each unit with both its values, so that what the models share cancels out. A draw adds up
    the deviations of its units from the mean of their stratum; they are stretched where clusters are few (Hesterberg 2015).
    Half a unit is added that only the first model has right, and half of one that only the second has (Agresti & Min 2005), so that a few
    rows on which the models agree do not prove them equal. With k of B resamples deviating by at least the difference, p is
    (k + 1) / (B + 1) (Davison & Hinkley 1997, eq. 4.11).

    Args:
        one_U, other_U: a value of each unit under either model, in [0, 1].
        sample: the weights of the units, and their strata and clusters.
        seed: the same seed gives the same interval.
    """
    changes_U = other_U - one_U
    value = float(np.sum(sample.weights_U * changes_U))
    deviations_G = np.bincount(sample.clusters_U, sample.weights_U * (changes_U - sample.means(changes_U)[sample.strata_U]))
    half = np.sum(sample.weights_U**2) / math.sqrt(2)  # two of these vary as much as one unit that differs
    # Most clusters deviate alike: how often each value is drawn is all that counts.
    values_V, counts_V = np.unique(sample.few_clusters() * np.append(deviations_G, (half, -half)), return_counts=True)
    generator = np.random.default_rng(seed)
    sums_R = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        times_RV = generator.multinomial(counts_V.sum(), counts_V / counts_V.sum(), RESAMPLES_AT_ONCE)
        sums_R[begin : begin + RESAMPLES_AT_ONCE] = times_RV @ values_V
    low, high = np.quantile(value + sums_R, (0.025, 0.975))
    beyond = int(np.sum(np.abs(sums_R) >= abs(value) - 1e-12))
    return PairedDifference(value, float(low), float(high), (beyond + 1) / (RESAMPLES + 1))
