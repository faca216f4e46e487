"""The paired bootstrap against scipy's, and the narrower intervals that pairing gives."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from rmtrain.intervals import paired_bootstrap


def values(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    one = (generator.random(count) < 0.6).astype(float)
    other = np.where(generator.random(count) < 0.9, one, (generator.random(count) < 0.8).astype(float))
    return one, other


def test_one_stratum_is_the_ordinary_paired_bootstrap() -> None:
    one, other = values()
    ours = paired_bootstrap(one, other, np.full(200, 1 / 200), ["all"] * 200)
    theirs = bootstrap((other - one,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert ours.value == pytest.approx(float(np.mean(other - one)))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)
    assert ours.low <= ours.value <= ours.high


def test_seed_decides_and_pairing_narrows() -> None:
    one, other = values()
    weights, strata = np.full(200, 1 / 200), ["a"] * 120 + ["b"] * 80
    first, again, seeded = (paired_bootstrap(one, other, weights, strata, seed) for seed in (0, 0, 1))
    assert first == again != seeded
    unpaired = paired_bootstrap(one, np.random.default_rng(0).permutation(other), weights, strata)
    assert unpaired.high - unpaired.low > 1.5 * (first.high - first.low)


def test_equal_values_do_not_differ() -> None:
    """A stratum of one unit does not vary."""
    one, _ = values()
    weights = np.full(200, 1 / 200)
    same = paired_bootstrap(one, one, weights, ["a"] * 200)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = paired_bootstrap(one, one + 1, weights, [str(n) for n in range(200)])
    assert (shifted.low, shifted.high) == pytest.approx((1.0, 1.0))
    assert shifted.p == 0.0
