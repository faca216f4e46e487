"""Bins that people can read, whatever the values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.evaluation.diagnosis import ROUND, round_edges, round_width, share_with_interval
from rmtrain.intervals import wilson_interval

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(np.float32(value)))


@given(NUMBERS, NUMBERS, st.integers(2, 40))
def test_edges_hold_all_values_are_round_and_not_too_many(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    if 0 < high - low < 1e-3:
        high = low
    edges = round_edges(low, high, most)
    width = edges[1] - edges[0]
    assert 2 <= len(edges) <= most + 2, "a bin more where both ends are cut"
    assert edges[0] <= low + 1e-8 * width + 1e-6 * abs(low)
    assert edges[-1] >= high - 1e-8 * width - 1e-6 * abs(high)
    assert np.allclose(np.diff(edges), width)


def test_zero_is_an_edge_where_values_are_on_both_sides() -> None:
    assert 0.0 in round_edges(-3.7, 8.1, 30).tolist()
    assert round_edges(-3.7, 8.1, 30).tolist()[:3] == pytest.approx([-4.0, -3.5, -3.0])


@pytest.mark.parametrize(
    ("span", "most", "width"), [(10, 10, 1), (11, 10, 2), (0, 10, 1), (0.3, 30, 0.01), (23, 10, 2.5), (60, 10, 10)]
)
def test_widths_are_round(span: float, most: int, width: float) -> None:
    assert round_width(span, most) == pytest.approx(width)
    assert any(abs(width / 10**power - digits) < 1e-9 for digits in ROUND for power in range(-3, 3)), "guard"


def test_a_share_counts_each_comparison_as_one_trial() -> None:
    right = np.array([True, True, False, True])
    assert share_with_interval(right, np.array([0, 0, 0, 1])) == {
        "preferences": 4,
        "accuracy": 0.75,
        "accuracy_low": wilson_interval(0.75, 2)[0],
        "accuracy_high": wilson_interval(0.75, 2)[1],
    }
    assert share_with_interval(right[:0], np.array([], dtype=np.int64))["accuracy"] is None
