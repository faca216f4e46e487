"""Effective sizes and the paired bootstrap: scipy as oracle, limits worked out by hand, and clusters that cost precision."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from rmtrain.intervals import RESAMPLES, Sample, paired_bootstrap, t_quantile_95, wilson_interval


def values(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    one = (generator.random(count) < 0.6).astype(float)
    other = np.where(generator.random(count) < 0.9, one, (generator.random(count) < 0.8).astype(float))
    return one, other


def drawn(count: int, strata: Sequence[str] | None = None, clusters: Sequence[int] | None = None) -> Sample:
    return Sample.of(np.ones(count), strata or ["all"] * count, np.arange(count) if clusters is None else np.array(clusters))


def test_one_stratum_is_the_ordinary_paired_bootstrap() -> None:
    one, other = values()
    ours = paired_bootstrap(one, other, drawn(200))
    theirs = bootstrap((other - one,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert ours.value == pytest.approx(float(np.mean(other - one)))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)
    assert ours.low <= ours.value <= ours.high


def test_seed_decides_and_pairing_narrows() -> None:
    one, other = values()
    sample = drawn(200, ["a"] * 120 + ["b"] * 80)
    first, again, seeded = (paired_bootstrap(one, other, sample, seed) for seed in (0, 0, 1))
    assert first == again != seeded
    unpaired = paired_bootstrap(one, np.random.default_rng(0).permutation(other), sample)
    assert unpaired.high - unpaired.low > 1.5 * (first.high - first.low)


def test_p_is_never_zero() -> None:
    """It is (k + 1) / (B + 1): 1 where there is no difference, and the least possible where no resample reaches the difference."""
    one, other = values()
    assert paired_bootstrap(one, one, drawn(200)).p == 1.0
    assert paired_bootstrap(0 * one, 0 * one + 1, drawn(200)).p == 1 / (RESAMPLES + 1)
    between = paired_bootstrap(one, other, drawn(200)).p * (RESAMPLES + 1)
    assert between == pytest.approx(round(between))


def test_equal_decisions_do_not_prove_models_equal() -> None:
    """A difference that few rows could miss is inside, and one that many rows would show is not."""
    one, _ = values()
    few, many = paired_bootstrap(one[:50], one[:50], drawn(50)), paired_bootstrap(one, one, drawn(200))
    assert few.low < many.low < 0 < many.high < few.high
    assert many.high < 0.02 < few.high < 0.06


@pytest.mark.parametrize("right", [0, 1, 60, 100])
def test_independent_pairs_count_once_each(right: int) -> None:
    credits = np.arange(100) < right
    assert drawn(100).effective_size(credits) == pytest.approx(100)
    twice = drawn(200, clusters=[n // 2 for n in range(200)]).effective_size(np.repeat(credits, 2))
    assert 90 < twice < 100.1, "a pair that is there twice counts once"


def test_prompts_that_decide_cost_precision() -> None:
    """If all rows of a prompt are right or wrong together, the effective number is that of the prompts; else up to that of the rows."""
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(200), 5).tolist()
    together = np.repeat(generator.random(200) < 0.7, 5)
    assert drawn(1000, clusters=clusters).effective_size(together) == pytest.approx(200, rel=0.03)
    apart = [drawn(1000, clusters=clusters).effective_size(generator.random(1000) < 0.7) for _ in range(40)]
    assert np.mean(apart) == pytest.approx(1000, rel=0.05)
    for sure in (np.zeros(1000), np.ones(1000)):
        assert drawn(1000, clusters=clusters).effective_size(sure) == pytest.approx(200, rel=0.01)
        low, high = wilson_interval(float(sure.mean()), 200)
        assert 0.01 < high - low < 0.02, "guard: never of width 0"


def test_prompt_of_two_strata_is_one_cluster() -> None:
    """The same prompts in both strata: what they say twice counts once."""
    right = (np.arange(60) % 3 > 0).tolist() * 2
    strata = ["pairs"] * 60 + ["best-of-n"] * 60
    shared = drawn(120, strata, [n % 60 for n in range(120)]).effective_size(np.array(right))
    assert drawn(120, strata).effective_size(np.array(right)) == pytest.approx(120, rel=0.02)
    assert shared == pytest.approx(60, rel=0.03)
    one, other = np.array(right, float), np.array(right[1:] + right[:1], float)
    widths = [
        difference.high - difference.low
        for sample in (drawn(120, strata, [n % 60 for n in range(120)]), drawn(120, strata))
        for difference in (paired_bootstrap(one, other, sample),)
    ]
    assert widths[0] == pytest.approx(widths[1] * 2**0.5, rel=0.1)


def test_strata_that_differ_narrow_the_interval() -> None:
    credits = np.concatenate([np.arange(100) < 95, np.arange(100) < 35])
    of_two = drawn(200, ["easy"] * 100 + ["hard"] * 100).effective_size(credits)
    variance = (0.95 * 0.05 + 0.35 * 0.65) / 4 / 100
    assert of_two == pytest.approx(0.65 * 0.35 / variance, rel=0.05)


@pytest.mark.parametrize("freedom", [2, 3, 4, 10, 30, 1000])
def test_quantile_is_scipys(freedom: int) -> None:
    assert t_quantile_95(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.01)
    assert t_quantile_95(1) == pytest.approx(t.ppf(0.975, 1))
