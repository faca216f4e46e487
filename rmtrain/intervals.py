"""How sure a share is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_QUANTILE_95 = 1.959963984540054


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson 95 % score interval of a share observed in `n` independent trials (Wilson 1927, eq. 4 of Brown et al. 2001)."""
    square = NORMAL_QUANTILE_95**2
    center = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


RESAMPLES = 10_000
AT_A_TIME = 250


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference of two numbers, its 95 % interval, and the share of resamples on the less likely side of 0, twice (at most 1)."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    one_U: NDArray[np.float64],
    other_U: NDArray[np.float64],
    weights_U: NDArray[np.float64],
    strata: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """The weighted mean of the second minus that of the first, with the percentile interval of the paired bootstrap (Efron, 1979).

    Units are drawn with replacement within their stratum, each with both its values, so that what they share cancels.

    Args:
        one_U, other_U: a value of each unit under either model.
        weights_U: of the units, summing to 1.
        strata: of each unit.
        seed: of the drawing; the same seed gives the same interval.
        resamples: how many.
    """
    weighted_U = (other_U - one_U) * weights_U
    generator = np.random.default_rng(seed)
    names = np.array(strata)
    found_S = np.zeros(resamples)
    for stratum in dict.fromkeys(strata):
        values = weighted_U[names == stratum]
        for begin in range(0, resamples, AT_A_TIME):
            drawn = generator.integers(0, len(values), (min(AT_A_TIME, resamples - begin), len(values)), dtype=np.int32)
            found_S[begin : begin + len(drawn)] += values[drawn].sum(axis=1)
    low, high = np.quantile(found_S, (0.025, 0.975))
    beyond = min(float(np.mean(found_S <= 0)), float(np.mean(found_S >= 0)))
    return PairedDifference(float(weighted_U.sum()), float(low), float(high), min(1.0, 2 * beyond))
