"""Axes: round values, labels with just enough digits, and no two labels that touch."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.report.page import FOLDER
from rmtrain.report.panel import COLORS, fitting_ticks, round_range, spread_labels, text_width, tick_labels, ticks

VALUES = st.floats(-1e5, 1e5, allow_nan=False).map(lambda value: round(value, 3))


@pytest.mark.parametrize(
    ("values", "labels"),
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
def test_labels_distinguish_values_and_no_more(values: list[float], labels: list[str]) -> None:
    assert tick_labels(values) == labels


@given(VALUES, VALUES, st.integers(2, 8))
def test_ticks_are_round_inside_and_few(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    if high - low < 0.01:
        high = low + 1
    values = ticks(low, high, most)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert 1 <= len(values) <= most + 1
    assert all(low - slack <= value <= high + slack for value in values)
    assert len(set(tick_labels(values))) == len(values), "no two have the same label"


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(2, 7))
def test_integer_ticks_are_whole_numbers(low: int, span: int, most: int) -> None:
    assert all(value == round(value) for value in ticks(low, low + span, most, integer=True))


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_round_range_contains_all_values(values: list[float]) -> None:
    low, high = round_range(values)
    assert low < high
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert all(low - slack <= value <= high + slack for value in values)


@given(VALUES, st.floats(0.01, 1e5), st.floats(60, 400))
def test_labels_side_by_side_never_touch(low: float, span: float, width: float) -> None:
    values = fitting_ticks(low, low + span, width)
    centers = [(value - low) / span * width for value in values]
    halves = [text_width(label) / 2 for label in tick_labels(values)]
    edges = [(center - half, center + half) for center, half in zip(centers, halves, strict=True)]
    assert all(right + 10 <= left + 0.01 for (_, right), (left, _) in pairwise(edges))
    assert values


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_spread_labels_move_apart_and_stay_inside(positions: list[float]) -> None:
    placed = spread_labels(positions, [14.0] * len(positions), 0, 100)
    ordered = sorted(placed)
    assert all(b - a >= 14 - 1e-6 for a, b in pairwise(ordered))
    assert ordered[0] >= 7 - 1e-6
    assert ordered[-1] <= 93 + 1e-6
    by_position = [place for _, place in sorted(zip(positions, placed, strict=True), key=lambda pair: pair[0])]
    assert by_position == sorted(by_position)


def test_labels_with_room_stay_in_place() -> None:
    assert spread_labels([20.0, 80.0], [10.0, 10.0], 0, 100) == [20.0, 80.0]


def test_wide_characters_take_more_room() -> None:
    assert text_width("東京") == text_width("abcd") > text_width("ab")


def test_colors_are_the_light_theme() -> None:
    """Each colour of a plot is a variable of the page, of the same value in the light theme and another in the dark one."""
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block)) for block in css.split("@media (prefers-color-scheme")[:2]
    )
    assert light.items() >= COLORS.items()
    assert all(dark[name] != color for name, color in COLORS.items())
