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


def plot_rewards(diagnosis: Mapping[str, Any], path: Path) -> None:
    """Draw rewards by side and, below, margins.

    Args:
        diagnosis: what `diagnose` returned, of at least one preference.
        path: the PNG to write.
    """
    _save(reward_figure(diagnosis), path)


def reward_figure(diagnosis: Mapping[str, Any]) -> Figure:
    """The picture of `plot_rewards`."""
    figure = Figure(figsize=(8, 5.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    above, below = figure.subplots(2, 1)
    rewards, margins = diagnosis["rewards"], diagnosis["margins"]
    for side, color, name in (("losers", FAINT, "rejected"), ("winners", COLORS[0], "chosen")):
        above.stairs(rewards[side], rewards["edges"], fill=True, color=color, alpha=0.35)
        above.stairs(rewards[side], rewards["edges"], color=color, linewidth=1.6, label=name)
    above.legend(frameon=False, fontsize=9, labelcolor="linecolor", loc="upper right")
    edges = margins["edges"]
    colors = [COLORS[0] if low >= -1e-12 else FAINT for low in edges[:-1]]
    below.bar(
        edges[:-1], margins["counts"], width=edges[1] - edges[0], align="edge", color=colors, edgecolor="white", linewidth=0.5
    )
    below.axvline(0, color=INK, linewidth=0.8)
    _dress(above, "rewards", "reward", "responses")
    _dress(below, f"margins, {100 * margins['right']:.1f} % right", "reward of chosen − reward of rejected", "preferences")
    return figure


def plot_calibration(curve: Mapping[str, Any], path: Path) -> None:
    """Draw how often the model is right where it is so sure.

    Args:
        curve: what `calibration_curve` returned.
        path: the PNG to write.
    """
    _save(calibration_figure(curve), path)


def calibration_figure(curve: Mapping[str, Any]) -> Figure:
    """The picture of `plot_calibration`."""
    figure = Figure(figsize=(5.2, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    panel = figure.subplots()
    bins = curve["bins"]
    share, low, high = (np.array([row[key] for row in bins]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    panel.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    confidence = [row["confidence"] for row in bins]
    panel.errorbar(confidence, share, yerr=np.clip([share - low, high - share], 0, None), fmt="o", color=COLORS[0], linewidth=1.2)
    panel.set_xlim(0.49, 1.01)
    _dress(panel, f"calibration error {curve['error']:.3f}", "confidence, σ(|margin|)", "share right")
    return figure


def _dress(panel: Axes, title: str, x_name: str, y_name: str) -> None:
    panel.set_title(title, loc="left", fontsize=10, color=INK, weight="bold")
    panel.set_xlabel(x_name, color=INK, fontsize=9)
    panel.set_ylabel(y_name, color=INK, fontsize=9)
    for spine in ("top", "right"):
        panel.spines[spine].set_visible(False)
    for spine in ("left", "bottom"):
        panel.spines[spine].set_color(FAINT)
    panel.tick_params(colors=INK, labelsize=8)


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
