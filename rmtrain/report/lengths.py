"""Token lengths of prompts and responses on the terminal: percentiles, and their distribution drawn with characters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from rmtrain.report.tables import Column, Row, Table

PERCENTILES = (50, 90, 99)
COLORS = ("cyan", "green", "red")
MIN_COLUMNS = 16
BLOCKS = " ▁▂▃▄▅▆▇█"
"""A column of characters in eighths of its height."""

Lengths = Mapping[str, NDArray[Any]]


def length_table(lengths: Lengths) -> Table:
    """Return mean, median, p90, p99 and maximum of each named array of lengths, in tokens."""
    columns = (Column("tokens", "text"), *map(Column, ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")))
    rows = []
    for number, (name, values) in enumerate(lengths.items()):
        statistics = [f"{value:,}" for value in length_statistics(values).values()]
        rows.append(Row((Text(name, COLORS[number % len(COLORS)]), *statistics)))
    return Table("lengths", columns, rows, gap=3)


def length_statistics(values: NDArray[Any]) -> dict[str, int | float]:
    """Return mean (one digit), p50, p90, p99 and max of lengths.

    A percentile is a length that occurs: `p` % of rows are not longer.
    """
    points = np.percentile(values, PERCENTILES, method="inverted_cdf")
    percentiles = {f"p{percentile}": int(point) for percentile, point in zip(PERCENTILES, points, strict=True)}
    return {"mean": round(float(np.mean(values)), 1), **percentiles, "max": int(np.max(values))}


class LengthDistribution:
    """Histograms of lengths over one axis of tokens, as wide as the console allows.

    Args:
        lengths: named arrays, such as prompt, chosen and rejected.
        height: rows of characters of each histogram.
        max_columns: maximum width of a histogram.
    """

    def __init__(self, lengths: Lengths, height: int = 3, max_columns: int = 72) -> None:
        self.lengths, self.height, self.max_columns = lengths, height, max_columns

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
            style = Style.parse(COLORS[number % len(COLORS)])
            *upper, lowest = _bars(counts, self.height)
            for row in upper:
                yield Segment(" " * margin + row.rstrip() + "\n", style)
            yield Segment(f"{name:<{margin}}{lowest.rstrip()}\n", style)
        yield Segment(" " * margin + _axis(end, len(edges) - 1, cut=end < longest) + "\n", Style(dim=True))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(20, options.max_width)


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
