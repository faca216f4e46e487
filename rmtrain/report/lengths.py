"""Token lengths of prompts and responses: percentiles, and their distribution, drawn with characters and as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from rmtrain.report.panel import COLORS, DASHES, save_png
from rmtrain.report.tables import Column, Row, Table

PERCENTILES = (50, 90, 99)
TERMINAL_COLORS = ("cyan", "green", "red")
LENGTH_COLORS = ("#0b63b5", "#2f8f5b", "#c4473a")
MIN_COLUMNS = 16
FARTHEST_LIMIT = 3
LENGTH_BINS = 80
BLOCKS = " ▁▂▃▄▅▆▇█"
"""A column of characters in eighths of its height."""

Lengths = Mapping[str, NDArray[Any]]
"""Named arrays of lengths in tokens, such as prompt, chosen and rejected."""


def length_table(lengths: Lengths) -> Table:
    """Return mean, median, p90, p99 and maximum of each named array of lengths, in tokens."""
    columns = (Column("tokens", "text"), *map(Column, ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")))
    rows = []
    for number, (name, values) in enumerate(lengths.items()):
        statistics = [f"{value:,}" for value in length_statistics(values).values()]
        rows.append(Row((Text(name, TERMINAL_COLORS[number % len(TERMINAL_COLORS)]), *statistics)))
    return Table("lengths", columns, rows, gap=3)


def length_statistics(values: NDArray[Any]) -> dict[str, int | float]:
    """Return mean (one digit), p50, p90, p99 and max of lengths.

    A percentile is a length that occurs: `p` % of rows are not longer.
    """
    points = np.percentile(values, PERCENTILES, method="inverted_cdf")
    percentiles = {f"p{percentile}": int(point) for percentile, point in zip(PERCENTILES, points, strict=True)}
    return {"mean": round(float(np.mean(values)), 1), **percentiles, "max": int(np.max(values))}


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Histograms of `height` rows of characters over one axis of tokens, as wide as the console allows."""

    lengths: Lengths
    height: int = 3
    max_columns: int = 72

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = max(map(len, self.lengths)) + 2
        columns = max(MIN_COLUMNS, min(self.max_columns, options.max_width - margin))
        longest = max(int(np.max(values)) for values in self.lengths.values())
        # one long row must not squeeze the rest: longer rows are counted in the last column, and the axis is labelled with a +
        end = min(longest, int(1.1 * max(np.percentile(values, 99) for values in self.lengths.values())) + 1)
        width = -(-(end + 1) // columns)
        edges = np.arange(0, end + 1 + width, width)
        for number, (name, values) in enumerate(self.lengths.items()):
            counts, _ = np.histogram(np.minimum(values, end), bins=edges)
            style = Style.parse(TERMINAL_COLORS[number % len(TERMINAL_COLORS)])
            *upper, lowest = _bars(counts, self.height)
            for row in upper:
                yield Segment(" " * margin + row.rstrip() + "\n", style)
            yield Segment(f"{name:<{margin}}{lowest.rstrip()}\n", style)
        yield Segment(" " * margin + _axis(end, len(edges) - 1, cut=end < longest) + "\n", Style(dim=True))


def _bars(counts: NDArray[np.int64], height: int) -> list[str]:
    """Return rows of block characters, top first; every column that is not empty shows. The top row stays low, to part the names."""
    steps = len(BLOCKS) - 1
    eighths = np.ceil(counts / max(counts.max(), 1) * ((height - 1) * steps + 1)).astype(int)
    return ["".join(BLOCKS[np.clip(level - row * steps, 0, steps)] for level in eighths) for row in reversed(range(height))]


def _axis(end: int, columns: int, cut: bool) -> str:
    """Label the start, the middle where there is room, and the end: `0 ... 128 ... 256 tokens`."""
    middle, last = f"{end // 2:,}", f"{end:,}{'+' if cut else ''} tokens"
    left = columns // 2 - len(middle) // 2
    right = columns - left - len(middle)
    if right <= len(last):
        return f"0{last:>{columns - 1}}"
    return f"0{middle:>{left + len(middle) - 1}}{last:>{right}}"


def plot_lengths(lengths: Lengths, path: Path, max_length: int | None) -> None:
    """Draw the lengths as a PNG: one panel for each name over a shared axis, with lines at p50, p90 and p99.

    The limit of `max_length` tokens is a dashed line, or named at the edge where it is far off.
    """
    longest = max(int(values.max()) for values in lengths.values())
    near = max_length is not None and max_length <= FARTHEST_LIMIT * longest
    end = max(longest, max_length) if max_length is not None and near else longest
    edges = np.linspace(0, end + 1, min(LENGTH_BINS, end + 1) + 1).tolist()
    figure = Figure(figsize=(8, 0.9 + 1.35 * len(lengths)), dpi=150, layout="constrained", facecolor=COLORS["paper"])
    panels = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]
    for number, (panel, (name, values)) in enumerate(zip(panels, lengths.items(), strict=True)):
        color = LENGTH_COLORS[number % len(LENGTH_COLORS)]
        percentiles = np.percentile(values, PERCENTILES, method="inverted_cdf").astype(int)
        panel.hist(values, bins=edges, color=color, linewidth=0)
        for value in percentiles:
            panel.axvline(value, ymax=0.92, color=COLORS["ink"], linewidth=0.8)
        if max_length is not None and near:
            panel.axvline(max_length, color=COLORS["ink"], linewidth=1, linestyle=DASHES)
        marks = [f"p{percentile} {value:,}" for percentile, value in zip(PERCENTILES, percentiles, strict=True)]
        panel.set_title(name, loc="left", size=10, color=color, weight="bold")
        panel.set_title("    ".join([*marks, f"longest {int(values.max()):,}"]), size=9, color=COLORS["ink"])
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.spines["bottom"].set_color(COLORS["dim"])
        panel.tick_params(colors=COLORS["ink"], labelsize=8, left=False, labelleft=False)
    if max_length is not None:
        panels[0].set_title(f"limit {max_length:,}{'' if near else ' →'}", loc="right", size=8, color=COLORS["ink"])
    panels[-1].set_xlabel("tokens", color=COLORS["ink"])
    panels[-1].set_xlim(0, 1.01 * (end + 1))
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    save_png(figure, path)
