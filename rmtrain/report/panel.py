"""The axes of a plot: margins with room for their labels, round values, and no two labels that touch.

Lengths are points of matplotlib and, in the report, CSS pixels. A plot is as wide as a phone, so its letters keep their size on any screen.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from rich.cells import cell_len

from rmtrain.files import atomic_write
from rmtrain.report.console import escape_invisible

WIDTH, HEIGHT = 360.0, 210.0
TOP, BOTTOM = 22.0, 38.0
FONT_SIZE = 11.0
LINE_HEIGHT = FONT_SIZE + 3
ROW_HEIGHT = 24.0
NUMBER_WIDTH = 50.0
NAME_CELLS = 16
COLORS = {
    "accent": "#0b63b5",
    "neutral": "#6f7782",
    "ink": "#1a1f26",
    "dim": "#55606d",
    "rule": "#dfe3e8",
    "paper": "#ffffff",
    "orange": "#b35300",
    "green": "#1a7f4b",
    "purple": "#7a3fb8",
    "pink": "#b3246f",
    "olive": "#6f6a00",
}
"""The light theme of `page.css`; in an SVG each is replaced by the CSS variable of that name, so that the dark theme applies."""
SERIES = ("accent", "orange", "green", "purple", "pink", "olive")
"""Colours of several lines of equal rank, in their order."""
DASHES = (0, (4, 3))
ROUND_STEPS = (1, 2, 2.5, 5, 10)

Canvas = Figure | SubFigure


def add_panel(
    figure: Canvas,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_name: str,
    right: float = 14.0,
    integer: bool = False,
) -> Axes:
    """Add axes that fill a figure, with thin lines at round values; their labels have room and do not touch.

    There are `right` points of room for labels on the right. With `integer`, only whole numbers are labelled on the horizontal axis.
    """
    total = height_of(figure)
    # margins are computed here, not by matplotlib's layout engines: those measure fonts that the reader may not have
    y_values = ticks(*y_range, 5)
    y_labels = tick_labels(y_values)
    left = 8 + max(map(text_width, y_labels))
    x_values = fitting_ticks(*x_range, WIDTH - left - right - 30, integer)
    x_labels = tick_labels(x_values)
    right = max(right, text_width(x_labels[-1]) / 2 + 2)
    box = (left / WIDTH, BOTTOM / total, (WIDTH - left - right) / WIDTH, (HEIGHT - TOP - BOTTOM) / total)
    panel = figure.add_axes(box, xlim=x_range, ylim=y_range)
    panel.patch.set_visible(False)
    panel.set_yticks(y_values, y_labels, size=FONT_SIZE, color=COLORS["dim"])
    panel.set_xticks(x_values, x_labels, size=FONT_SIZE, color=COLORS["dim"])
    panel.tick_params(axis="y", length=0, pad=5)
    panel.tick_params(axis="x", length=3, pad=3, color=COLORS["dim"])
    panel.grid(axis="y", color=COLORS["rule"], linewidth=1, clip_on=False)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(COLORS["dim"])
    panel.set_xlabel(x_name, size=FONT_SIZE, color=COLORS["dim"], labelpad=2)
    return panel


def add_rows(figure: Canvas, names: Sequence[str], x_range: tuple[float, float]) -> Axes:
    """Add axes with a row for each name, from the top, in a figure of `rows_height`; there is room for a number behind each row."""
    names = [escape_invisible(name).replace("\n", " ") for name in names]
    for number, name in enumerate(names):
        while cell_len(name) > NAME_CELLS:  # the end of a long name distinguishes files
            name = "…" + name[2:]
        names[number] = name
    total, height = height_of(figure), ROW_HEIGHT * len(names)
    left, width = 14 + max(map(text_width, names)), WIDTH - NUMBER_WIDTH
    box = (left / WIDTH, (BOTTOM - LINE_HEIGHT) / total, (width - left) / WIDTH, height / total)
    panel = figure.add_axes(box, xlim=x_range, ylim=(len(names) - 0.5, -0.5), frameon=False)
    values = fitting_ticks(*x_range, width - left)
    panel.set_xticks(values, tick_labels(values), size=FONT_SIZE, color=COLORS["dim"])
    # a dollar sign in a name does not start a formula
    panel.set_yticks(range(len(names)), names, size=FONT_SIZE, color=COLORS["ink"], parse_math=False)
    panel.tick_params(length=0, pad=5)
    panel.grid(axis="x", color=COLORS["rule"], linewidth=1, clip_on=False)
    panel.set_axisbelow(True)
    return panel


def rows_height(rows: int) -> float:
    """Return the height of a figure for `add_rows`, in points."""
    return ROW_HEIGHT * rows + BOTTOM - LINE_HEIGHT + 12


def height_of(figure: Canvas) -> float:
    """Return the height of a figure, or of a part of one, in points."""
    return 72 * float(figure.bbox.height) / float(figure.dpi)


def label_above(figure: Canvas, panel: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write words above a panel, near their value on the horizontal axis, never touching: each a value, a text and a colour."""
    box, (low, high) = panel.get_position(), panel.get_xlim()
    places = [WIDTH * (box.x0 + (x - low) / (high - low) * box.width) for x, _, _ in labels]
    widths = [text_width(label) + 10 for _, label, _ in labels]
    height = (HEIGHT - TOP + 8) / height_of(figure)
    for place, (_, label, color) in zip(spread_labels(places, widths, 0, WIDTH), labels, strict=True):
        figure.text(place / WIDTH, height, label, size=FONT_SIZE, weight="bold", color=COLORS[color], ha="center")


def label_right(panel: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write words to the right of a panel, at their value on the vertical axis, never touching: each a value, a text and a colour."""
    low, high = panel.get_ylim()
    height = HEIGHT - TOP - BOTTOM
    places = spread_labels([(y - low) / (high - low) * height for y, _, _ in labels], [LINE_HEIGHT] * len(labels), 0, height + 8)
    for place, (_, label, color) in zip(places, labels, strict=True):
        style: dict[str, Any] = {"color": COLORS[color], "weight": "bold", "size": FONT_SIZE, "va": "center", "parse_math": False}
        panel.annotate(label, (1, place / height), (6, 0), xycoords="axes fraction", textcoords="offset points", **style)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def spread_labels(centers: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels of these sizes apart as little as possible, in their order, so that none touch and all are within `low` and `high`."""
    order = sorted(range(len(centers)), key=lambda number: centers[number])
    placed, edge = list(centers), low
    for number in order:
        placed[number] = max(placed[number], edge + sizes[number] / 2)
        edge = placed[number] + sizes[number] / 2
    edge = high
    for number in reversed(order):
        placed[number] = min(placed[number], edge - sizes[number] / 2)
        edge = placed[number] - sizes[number] / 2
    return placed


def text_width(text: str) -> float:
    """Estimate the width of a text in points, for the widest usual fonts; a Chinese or Japanese character counts twice."""
    # DejaVu Sans, which matplotlib and many browsers on Linux use, has digits of 0.64 of the font size; others are narrower
    return 0.65 * FONT_SIZE * cell_len(text)


def ticks(low: float, high: float, most: int, integer: bool = False) -> list[float]:
    """Return at most `most` multiples of a round number within `low` and `high`, and at least one value."""
    locator = MaxNLocator(max(1, most - 1), steps=ROUND_STEPS, integer=integer)
    slack = 1e-9 * (high - low)
    inside = [float(value) for value in locator.tick_values(low, high) if low - slack <= value <= high + slack]
    return inside or [low]


def fitting_ticks(low: float, high: float, width: float, integer: bool = False) -> list[float]:
    """Return as many ticks as have room for their labels side by side in `width` points, up to seven."""
    for most in range(7, 1, -1):
        values = ticks(low, high, most, integer)
        widest = max(map(text_width, tick_labels(values)))
        if len(values) > 1 and (values[1] - values[0]) / (high - low) * width >= widest + 10:
            return values
    return ticks(low, high, 2, integer)[:1]


def round_range(values: Sequence[float], bins: int = 5) -> tuple[float, float]:
    """Return the smallest range between multiples of a round number that contains all values; of equal values, a range around them."""
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    edges = MaxNLocator(bins, steps=ROUND_STEPS).tick_values(low, high)
    return float(edges[0]), float(edges[-1])


def tick_labels(values: Sequence[float]) -> list[str]:
    """Write each value with just the digits that distinguish it from the next: 0.25, 12k, 5e−6."""
    largest = max(abs(value) for value in values)
    step = min((abs(b - a) for a, b in pairwise(values)), default=largest or 1.0)
    if 0 < largest < 1e-3:
        labels = [scientific(value) if value else "0" for value in values]
    elif step >= 1000:
        powers = [2 if abs(value) >= 1e6 else 1 if value else 0 for value in values]
        labels = [f"{value / 1000**power:,.6g}{('', 'k', 'M')[power]}" for value, power in zip(values, powers, strict=True)]
    else:
        digits = next((digits for digits in range(7) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6), 7)
        labels = [f"{value + 0.0:,.{digits}f}" for value in values]
    return [label.replace("-", "−") for label in labels]


def scientific(value: float) -> str:
    """Write a value with up to three significant digits and a power of ten."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
