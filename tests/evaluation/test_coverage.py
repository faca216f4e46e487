"""Intervals contain the truth as often as they promise, where naive ones do not: a fast form of `benchmarks/coverage.py`."""

import pytest

from benchmarks.coverage import CASES, coverage
from rmtrain import intervals

DRAWS, COMPARED = 600, 200


@pytest.mark.parametrize(
    ("case", "naive_below"),
    [
        ("500 pairs, accuracy .76", 1.0),
        ("600 pairs of 3 sources", 1.0),
        ("100 prompts of 5.5 pairs", 0.91),
        ("60 rankings of 2 to 6", 1.0),
    ],
)
def test_intervals_cover_as_often_as_promised(case: str, naive_below: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds leave room for two standard errors of the simulation, whose seed is fixed."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1_000)
    found = coverage(CASES[case], DRAWS, compared=COMPARED)
    assert set(found) >= {"accuracy", "difference"}
    for kind, (ours, naive, width) in found.items():
        error = 2 * (0.95 * 0.05 / (COMPARED if kind == "difference" else DRAWS)) ** 0.5
        assert 0.95 - error <= ours <= 0.95 + max(error, 0.02), kind
        assert naive < naive_below, kind
        assert width > 0.01, "guard"
