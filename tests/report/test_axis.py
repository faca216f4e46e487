"""Axes: round values, names with just enough digits, and no two that touch."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.report.axis import GAP, Scale, fitting_ticks, rounded_range, spread, text_width, tick_names, ticks

VALUES = st.floats(-1e5, 1e5, allow_nan=False).map(lambda value: round(value, 3))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([-1.0, 0.0, 1.0], ["−1", "0", "1"]),
        ([0.0, 1000.0, 2000.0], ["0", "1k", "2k"]),
        ([0.0, 1500.0, 3000.0], ["0", "1.5k", "3k"]),
        ([0.0, 2e6], ["0", "2M"]),
        ([0.0, 2e-4, 4e-4], ["0", "2e−4", "4e−4"]),
        ([-0.0, 0.5], ["0.0", "0.5"]),
        ([7.0], ["7"]),
    ],
)
def test_names_tell_values_apart_and_no_more(values: list[float], names: list[str]) -> None:
    assert tick_names(values) == names


@given(VALUES, VALUES, st.integers(2, 8))
def test_ticks_are_within_round_and_not_too_many(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    if high - low < 0.01:
        high = low + 1
    found = ticks(low, high, most)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert 1 <= len(found) <= most + 1
    assert all(low - slack <= value <= high + slack for value in found)
    assert len(set(tick_names(found))) == len(found), "no two have the same name"


@given(st.lists(VALUES, max_size=6))
def test_a_rounded_range_holds_all_and_is_never_empty(values: list[float]) -> None:
    low, high = rounded_range(values, 5)
    assert low < high
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert all(low - slack <= value <= high + slack for value in values)


@given(VALUES, st.floats(0.01, 1e5), st.floats(60, 400))
def test_names_side_by_side_never_touch(low: float, span: float, width: float) -> None:
    scale = Scale(low, low + span, 0, width)
    found = fitting_ticks(low, low + span, width)
    edges = [
        (scale(value) - text_width(name) / 2, scale(value) + text_width(name) / 2)
        for value, name in zip(found, tick_names(found), strict=True)
    ]
    assert all(right + GAP <= left + 0.01 for (_, right), (left, _) in pairwise(edges))
    assert found


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_labels_are_moved_apart_and_stay_inside(positions: list[float]) -> None:
    placed = spread(positions, [14.0] * len(positions), 0, 100)
    ordered = sorted(placed)
    assert all(b - a >= 14 - 1e-6 for a, b in pairwise(ordered))
    assert ordered[0] >= 7 - 1e-6
    assert ordered[-1] <= 93 + 1e-6
    by_position = [place for _, place in sorted(zip(positions, placed, strict=True), key=lambda pair: pair[0])]
    assert by_position == sorted(by_position)


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([20.0, 80.0], [10.0, 10.0], 0, 100) == [20.0, 80.0]


def test_wide_characters_take_more_room() -> None:
    assert text_width("東京") == 22
    assert text_width("ab") < 14
