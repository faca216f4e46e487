"""Intervals contain the truth as often as they promise, where naive ones do not: a fast form of `benchmarks/coverage.py`."""

import pytest

from benchmarks.coverage import CASES, coverage
from rmtrain import intervals

DRAWS = 500
ERROR = (0.95 * 0.05 / DRAWS) ** 0.5
"""The standard error of a coverage."""


@pytest.mark.parametrize("case", ["200 pairs, accuracy .98", "100 prompts of 5.5 pairs", "60 rankings of 2 to 6"])
def test_intervals_cover_as_often_as_promised(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within three standard errors of the simulation, whose seed is fixed; naive intervals do not, where pairs share prompts."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1_000)
    found = coverage(CASES[case], DRAWS)
    assert set(found) == {"accuracy", "difference"}
    for kind, (ours, naive, width) in found.items():
        assert ours == pytest.approx(0.95, abs=3 * ERROR), kind
        assert (naive < 0.95 - 3 * ERROR) == ("prompts" in case), kind
        assert 0.01 < width < 0.5, "guard"
