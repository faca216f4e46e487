"""Pictures for a file. Drawn without a window and without global state."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

COLORS = ("#3b6fb6", "#2f8f5b", "#c4473a")
INK, FAINT = "#222222", "#9a9a9a"
FARTHEST_LIMIT = 3
BINS = 80
DOTS_PER_INCH = 150
PERCENTILES = (50, 90, 99)


def plot_lengths(lengths: Mapping[str, NDArray[Any]], path: Path, max_length: int | None) -> None:
    """Draw the distribution of token lengths, one panel for each name over a shared axis, with lines at p50, p90 and p99.

    Args:
        lengths: named arrays, such as prompt, chosen and rejected, in tokens.
        path: the PNG to write; it appears complete or not at all.
        max_length: the limit in tokens, drawn as a dashed line, or named at the edge where it is far off; None: no limit.
    """
    longest = max(int(values.max()) for values in lengths.values())
    near = max_length is not None and max_length <= FARTHEST_LIMIT * longest
    end = max(longest, max_length) if max_length is not None and near else longest
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(8, 0.9 + 1.35 * len(lengths)), layout=layout, facecolor="white")
    panels = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(0, end + 1, min(BINS, end + 1) + 1).tolist()
    for number, (panel, (name, values)) in enumerate(zip(panels, lengths.items(), strict=True)):
        _draw_histogram(panel, name, values, edges, COLORS[number % len(COLORS)])
        if max_length is not None and near:
            panel.axvline(max_length, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if max_length is not None:
        panels[0].set_title(f"limit {max_length:,}{'' if near else ' →'}", loc="right", fontsize=8, color=INK)
    panels[-1].set_xlabel("tokens", color=INK)
    panels[-1].set_xlim(0, 1.01 * (end + 1))
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    _save(figure, path)


def _draw_histogram(panel: Axes, name: str, values: NDArray[Any], edges: list[float], color: str) -> None:
    percentiles = np.percentile(values, PERCENTILES, method="inverted_cdf").astype(int)
    panel.hist(values, bins=edges, color=color, linewidth=0)
    for value in percentiles:
        panel.axvline(value, ymax=0.92, color=INK, linewidth=0.8)
    panel.set_title(name, loc="left", fontsize=10, color=color, weight="bold")
    marked = [f"p{percentile} {value:,}" for percentile, value in zip(PERCENTILES, percentiles, strict=True)]
    panel.set_title("    ".join([*marked, f"longest {int(values.max()):,}"]), fontsize=9, color=INK)
    for spine in ("top", "right", "left"):
        panel.spines[spine].set_visible(False)
    panel.spines["bottom"].set_color(FAINT)
    panel.tick_params(colors=INK, labelsize=8, left=False, labelleft=False)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
