"""Every picture of a run, drawn once with matplotlib: as SVG in the report, as PNG next to it, and in trackers.

Nothing is drawn through pyplot or a style sheet, which are global state: trackers draw in a thread of their own.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from rmtrain.evaluation.benchmarks.measure import BENCHMARKS
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.report.console import decimal, escape_invisible, percent
from rmtrain.report.evaluation_view import calibration_table, difference_words, length_difference_table, source_table
from rmtrain.report.panel import (
    COLORS,
    DASHES,
    FONT_SIZE,
    HEIGHT,
    WIDTH,
    Canvas,
    add_panel,
    add_rows,
    label_above,
    label_right,
    round_range,
    rows_height,
    scientific,
    text_width,
)
from rmtrain.report.tables import Column, Numbers, Row, Table

TITLE_HEIGHT = 22.0
PNG_DPI = 200
MAX_POINTS = 150
"""Points of a curve that are drawn."""
MAX_SOURCES = 30

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture with its words: `description` replaces it for screen readers, `note` explains it, `table` has its numbers.

    name: unique in a page; letters, digits and hyphens.
    draw: draws it on an empty figure, of `height` points from the bottom edge.
    """

    name: str
    title: str
    description: str
    note: str
    table: Table
    draw: Callable[[Canvas], None]
    height: float = HEIGHT

    def svg(self) -> Markup:
        """Return it as an SVG element for HTML: without fonts, in the colours of the page, the same bytes for the same numbers."""
        figure = Figure(figsize=(WIDTH / 72, self.height / 72), dpi=72, frameon=False)
        self.draw(figure)
        buffer = io.StringIO()
        # ids are salted with the name, so that no two pictures of a page share one; a date would change the bytes
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text
            figure.savefig(buffer, format="svg", metadata=no_metadata)
        text = buffer.getvalue()
        inside = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]  # the first <defs> styles the whole page
        ids = set(re.findall(r'(?:url\(|href=")#([^")]+)', inside))
        inside = re.sub("<[^>]*>", lambda tag: _page_tag(tag[0], ids), re.sub(r">\s+<", "><", inside))
        return Markup(
            '<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-labelledby="{name}-title {name}-text">'
            '<title id="{name}-title">{}</title><desc id="{name}-text">{}</desc>{}</svg>'
        ).format(
            WIDTH,
            self.height,
            escape_invisible(self.title),
            escape_invisible(self.description),
            Markup(inside),
            name=escape(self.name),
        )


def _page_tag(tag: str, ids: set[str]) -> str:
    """Return a tag of an SVG for a page with several: with the ids that are referred to, and the fonts and colours of the page."""
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in ids else "", " ".join(tag.split()))
    tag = re.sub(r'font-size: 11px; font-family: [^;]*; | transform="rotate\(-0 [^"]*"', "", tag)
    for name, color in COLORS.items():
        tag = tag.replace(color, f"var(--{name})")
    return tag


def stacked(plots: Sequence[Plot]) -> Figure:
    """Return plots one below the other on white, each under its title, for a PNG or a tracker."""
    heights = [plot.height + TITLE_HEIGHT for plot in plots]
    figure = Figure(figsize=(WIDTH / 72, sum(heights) / 72), dpi=PNG_DPI, facecolor=COLORS["paper"])
    parts = figure.subfigures(len(plots), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, plot in zip(parts, plots, strict=True):
        part.set_facecolor(COLORS["paper"])
        part.text(6 / WIDTH, 1 - 8 / (plot.height + TITLE_HEIGHT), plot.title, va="top", size=13, weight="bold")
        plot.draw(part)
    return figure


def pictures(evaluation: EvaluationResult) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw the pictures of an evaluation, under the names that trackers show, as far as it has any."""
    summary, scored = evaluation.summary, evaluation.scored
    drawn: dict[str, Callable[[], Figure]] = {}
    if summary["targets"]:
        drawn["eval/targets"] = lambda: stacked([target_plot(diagnose(scored)["reward_by_target"], summary)])
    if not any(edge.probability > 0.5 for row in scored for edge in row.preferences):
        return drawn

    def draw_rewards() -> Figure:
        diagnosis = diagnose(scored)
        return stacked([reward_plot(diagnosis["rewards"], summary["rewards"]), margin_plot(diagnosis["margins"])])

    return drawn | {
        "eval/rewards": draw_rewards,
        "eval/calibration": lambda: stacked([calibration_plot(diagnose(scored)["calibration"])]),
    }


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line of a plot in one of `COLORS`; `dots` mark values that were measured one by one, a `thin` line is one of several."""

    name: str
    points: Sequence[Point]
    color: str
    dots: bool = False
    thin: bool = False


def curve_plot(
    name: str,
    title: str,
    curves: Sequence[Curve],
    *,
    note: str,
    x_name: str = "step",
    reference: float | None = None,
    include: Sequence[float] = (),
    table: Table | None = None,
) -> Plot:
    """Plot curves over a common axis of whole numbers, each with its name and last value at its end; one without a name has neither.

    Args:
        reference: value of a dashed line, drawn where it is within reach of the curves.
        include: values that the vertical axis must reach.
        table: the numbers; None: about twenty points of each curve.
    """
    shown = [(curve, downsample(curve.points)) for curve in curves if curve.points]
    values = [y for _, points in shown for _, y in points]
    y_range = round_range([*values, *include])
    if reference is not None:
        # a reference farther away than the curves' own span would flatten them
        span = y_range[1] - y_range[0]
        if y_range[0] - span <= reference <= y_range[1] + span:
            y_range = round_range([*values, *include, reference])
    xs = [x for _, points in shown for x, _ in points]
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    labels = [f"{curve.name} {_number(points[-1][1])}" if curve.name else "" for curve, points in shown]

    def draw(figure: Canvas) -> None:
        right = 14 + max(text_width(label) for label in labels)
        panel = add_panel(figure, x_range, y_range, x_name, right=right, integer=True)
        if reference is not None and y_range[0] <= reference <= y_range[1]:
            panel.axhline(reference, color=COLORS["dim"], linewidth=1, linestyle=DASHES)
        for curve, points in shown:
            # not clipped: dots at the edges would be halved
            marker = "o" if (curve.dots and not curve.thin) or len(points) == 1 else ""
            width = 0.8 if curve.thin else 2.0 if curve.color == "accent" else 1.6
            color = COLORS[curve.color]
            panel.plot(*zip(*points, strict=True), color=color, linewidth=width, marker=marker, markersize=5, clip_on=False)
        ends = zip(shown, labels, strict=True)
        label_right(panel, [(points[-1][1], label, curve.color) for (curve, points), label in ends if label])

    parts = []
    for curve, points in [one for one in shown if not one[0].thin]:
        ys = [y for _, y in points]
        start, end, low, high = (_number(y) for y in (ys[0], ys[-1], min(ys), max(ys)))
        parts.append(f"{curve.name or 'it'} starts at {start} and ends at {end}, minimum {low}, maximum {high}")
    rows = [
        Row((curve.name or title, f"{x:,.6g}", _number(y)))
        for curve, _ in shown
        for x, y in list(curve.points)[:: -max(1, -(-len(curve.points) // 20))][::-1]
    ]
    numbers = table or Table(title, (Column("line", "text"), Column(x_name), Column("value")), rows)
    return Plot(name, title, "; ".join(parts), note, numbers, draw)


def share_plot(name: str, title: str, shares: Sequence[tuple[str, Numbers, float | None]], *, note: str, table: Table) -> Plot:
    """Plot a row for each share: a dot on a line as long as its 95 % interval, its value, and a diamond at another value, if any.

    A share is a name, `accuracy`, `accuracy_low` and `accuracy_high`, and the place of the diamond.
    """
    bounds = [numbers[key] for _, numbers, _ in shares for key in ("accuracy_low", "accuracy_high")]
    values = [value for value in (0.5, *bounds, *(mark for _, _, mark in shares)) if value is not None]
    low, high = round_range(values, bins=10)

    def draw(figure: Canvas) -> None:
        panel = add_rows(figure, [share_name for share_name, _, _ in shares], (max(0.0, low), min(1.0, high)))
        panel.axvline(0.5, color=COLORS["dim"], linewidth=1, linestyle=DASHES)
        style: dict[str, Any] = {"color": COLORS["accent"], "clip_on": False}
        value_style: dict[str, Any] = {"weight": "bold", "size": FONT_SIZE, "ha": "right", "va": "center_baseline"}
        end = (WIDTH - 2) / WIDTH  # of the figure, whose rows are those of the panel
        place = blended_transform_factory(figure.transSubfigure, panel.transData)
        for row, (_, numbers, mark) in enumerate(shares):
            if mark is not None:
                edge, inside = COLORS["neutral"], COLORS["paper"]
                panel.plot(mark, row, "D", color=inside, markeredgecolor=edge, markeredgewidth=1.6, markersize=6, clip_on=False)
            if numbers["accuracy"] is not None:
                interval = (numbers["accuracy_low"], numbers["accuracy_high"])
                panel.plot(interval, (row, row), linewidth=2, solid_capstyle="round", **style)
                panel.plot(numbers["accuracy"], row, "o", markersize=8, **style)
            panel.text(end, row, decimal(numbers["accuracy"], 3), transform=place, **value_style, **style)

    description = "; ".join(f"{share_name} {decimal(numbers['accuracy'])}" for share_name, numbers, _ in shares)
    return Plot(name, title, description, note, table, draw, rows_height(len(shares)))


CURVES = (
    ("loss", "Loss", None, (), "Dashed: chance, the loss of equal rewards."),
    ("accuracy", "Accuracy", 0.5, (), "Dashed: 0.5, chance. A tie counts as wrong."),
    ("margin", "Margin", None, (0.0,), "Mean reward of the preferred response minus that of the other."),
    ("learning_rate", "Learning rate", None, (0.0,), "As scheduled."),
    ("grad_norm", "Gradient norm", None, (0.0,), "Before clipping, of the last step before each log line."),
)


def training_plots(metrics: Sequence[Numbers]) -> list[Plot]:
    """Plot loss, accuracy, margin, learning rate and gradient norm by step, as far as a run's `metrics.jsonl` has them."""
    plots = []
    chance_loss = next((row["eval/chance_loss"] for row in metrics if "eval/chance_loss" in row), None)
    for key, title, reference, include, note in CURVES:
        train, evaluation = (
            # of a step with several lines the last counts
            sorted({float(row["step"]): float(row[name]) for row in metrics if row.get(name) is not None}.items())
            for name in (f"train/{key}", f"eval/{key}")
        )
        curves = [Curve("train", train, "neutral"), Curve("eval", evaluation, "accent", dots=True)]
        if key in ("learning_rate", "grad_norm"):
            curves = [Curve("", train, "accent")]
        if any(curve.points for curve in curves):
            dashed = chance_loss if key == "loss" else reference
            plots.append(curve_plot(f"curve-{key}", title, curves, note=note, reference=dashed, include=include))
    return plots


def benchmark_plots(metrics: Sequence[Numbers]) -> list[Plot]:
    """Plot the score of each benchmark that was evaluated on during a run, by step."""
    plots = []
    for name, benchmark in BENCHMARKS.items():
        points = {float(row["step"]): float(row[f"eval/{name}"]) for row in metrics if row.get(f"eval/{name}") is not None}
        if points:
            note = "Its score by its own rule, on the rows of the benchmark; nothing was trained or chosen by it."
            curve = Curve("", sorted(points.items()), "accent", dots=True)
            plots.append(curve_plot(f"benchmark-{name}", benchmark.title, [curve], note=note))
    return plots


def sample_plot(number: int, title: str, history: Sequence[Numbers]) -> Plot:
    """Plot the rewards of a sample comparison at each evaluation, from its `step` and `rewards`, chosen first."""
    curves = [
        Curve(side, [(at["step"], at["rewards"][place]) for at in history], color, dots=True)
        for place, (side, color) in enumerate((("chosen", "accent"), ("rejected", "neutral")))
    ]
    chosen, rejected = history[-1]["rewards"]
    verdict = "right" if chosen > rejected else "tied" if chosen == rejected else "wrong"
    note = f"At the end {verdict}, by {decimal(abs(chosen - rejected), 3)}."
    return curve_plot(f"sample-{number}", title, curves, note=note)


def drift_plot(drift: Sequence[Mapping[str, float]]) -> Plot:
    """Plot the mean rewards of both sides at each evaluation, as `reward_drift` returns them."""
    sides = (("chosen", "accent"), ("rejected", "neutral"))
    curves = [Curve(side, [(row["step"], row[side]) for row in drift], color, dots=True) for side, color in sides]
    note = "Mean rewards on the evaluation data. Only their distance is trained; both may drift together."
    return curve_plot("drift", "Reward drift", curves, note=note)


def source_plot(summary: Numbers) -> Plot:
    """Plot the accuracy of each source, and the accuracy of preferring the longer response."""
    sources = list(summary["sources"].items())
    shares = [(name, numbers, numbers["longer_wins"]) for name, numbers in sources[:MAX_SOURCES]]
    if len(sources) > 1:
        shares.insert(0, ("all", summary, summary["longer_wins"]))
    note = "Dot and line: accuracy and its 95 % interval. Diamond: preferring the longer response. Dashed: chance."
    if len(sources) > MAX_SOURCES:
        note += f" {len(sources) - MAX_SOURCES:,} more sources are in the table only."
    return share_plot("sources", "Accuracy by source", shares, note=note, table=source_table(summary))


def diagnosis_plots(summary: Numbers, diagnosis: Numbers) -> list[Plot]:
    """Plot rewards, margins, lengths and calibration, as far as `summarize` and `diagnose` have numbers of the same scores."""
    plots = []
    if diagnosis["rewards"] is not None:
        plots += [reward_plot(diagnosis["rewards"], summary["rewards"]), margin_plot(diagnosis["margins"])]
    if diagnosis["length_difference"]:
        plots += [length_plot(diagnosis["length_difference"]), reward_length_plot(diagnosis["reward_by_length"], summary)]
    if diagnosis["calibration"] is not None:
        plots.append(calibration_plot(diagnosis["calibration"]))
    if diagnosis["reward_by_target"] is not None:
        plots.append(target_plot(diagnosis["reward_by_target"], summary))
    return plots


def reward_plot(histograms: Numbers, rewards: Numbers) -> Plot:
    """Plot the rewards of chosen and rejected responses over each other; `rewards` is that of `summarize`."""
    edges, winners, losers = histograms["edges"], histograms["winners"], histograms["losers"]
    chosen, rejected = (rewards[side]["mean"] for side in ("winners", "losers"))

    def draw(figure: Canvas) -> None:
        panel = add_panel(figure, (edges[0], edges[-1]), (0, max(*winners, *losers)), "reward")
        for counts, color in ((losers, COLORS["neutral"]), (winners, COLORS["accent"])):
            panel.stairs(counts, edges, fill=True, color=color, alpha=0.16, linewidth=0)
            panel.stairs(counts, edges, color=color, linewidth=1.8, clip_on=False)
        label_above(figure, panel, [(rejected, "rejected", "neutral"), (chosen, "chosen", "accent")])

    rows = [
        Row((_bin(edges, number), f"{right:,}", f"{wrong:,}"))
        for number, (right, wrong) in enumerate(zip(winners, losers, strict=True))
        if right or wrong
    ]
    table = Table("Rewards by side", (Column("reward"), Column("chosen"), Column("rejected")), rows)
    description = f"mean reward of chosen responses {decimal(chosen, 3)}, of rejected ones {decimal(rejected, 3)}"
    note = "The farther apart, the better. Only differences count, not the position."
    return Plot("rewards", table.title, description, note, table, draw)


def margin_plot(margins: Numbers) -> Plot:
    """Plot the margins; right of zero the model agrees with the label."""
    edges, counts = margins["edges"], margins["counts"]
    right, wrong, tied = (percent(margins[key], 1) for key in ("right", "wrong", "tied"))

    def draw(figure: Canvas) -> None:
        panel = add_panel(figure, (edges[0], edges[-1]), (0, max(counts)), "reward of chosen − reward of rejected")
        # the edge at zero has a rounding error
        colors = [COLORS["accent"] if low >= -1e-12 else COLORS["neutral"] for low in edges[:-1]]
        panel.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors, edgecolor=COLORS["paper"], linewidth=1)
        panel.axvline(0, color=COLORS["dim"], linewidth=1)
        label_above(figure, panel, [(edges[0] / 2, f"wrong {wrong}", "neutral"), (edges[-1] / 2, f"right {right}", "accent")])

    rows = [Row((_bin(edges, number), f"{count:,}")) for number, count in enumerate(counts) if count]
    table = Table("Margins", (Column("margin"), Column("preferences")), rows)
    description = f"{right} of preferences have a margin above 0, {wrong} below, {tied} are ties"
    note = "The errors far left are those the model is most sure of; they are listed below."
    return Plot("margins", table.title, description, note, table, draw)


def length_plot(bins: Sequence[Numbers]) -> Plot:
    """Plot the accuracy by the number of tokens that the chosen response is longer than the rejected one."""
    note = (
        "Rows: tokens by which the chosen response is longer (+) or shorter (−). "
        "A slope shows a length bias: the model prefers longer responses, or shorter ones, whichever is better. "
        "To train against it, set balance: longer, or augment, on a training source."
    )
    shares = [(difference_words(row["low"], row["high"]), row, None) for row in bins]
    table = length_difference_table(bins)
    return share_plot("length-difference", "Accuracy by difference in length", shares, note=note, table=table)


def reward_length_plot(bins: Sequence[Numbers], summary: Numbers) -> Plot:
    """Plot the mean reward by length."""
    overall, within = (decimal(summary[key], 3, sign=True) for key in ("spearman_length", "spearman_length_within"))
    note = (
        f"Rank correlation of reward and length: {within} within a prompt, {overall} over all responses; 0 means no length bias."
    )
    rows, points = [], []
    for row in bins:
        tokens, responses = f"{row['low']:,} to {row['high']:,}", f"{row['responses']:,}"
        rows.append(Row((tokens, responses, decimal(row["reward"], 3), decimal(row["deviation"], 3))))
        points.append(((row["low"] + row["high"]) / 2, row["reward"]))
    table = Table("Reward by length", tuple(map(Column, ("tokens", "responses", "mean reward", "deviation"))), rows)
    curves, x_name = [Curve("", points, "accent", dots=True)], "tokens, with the prompt"
    return curve_plot("reward-length", table.title, curves, x_name=x_name, note=note, table=table)


def target_plot(bins: Sequence[Numbers], summary: Numbers) -> Plot:
    """Plot the mean reward by target, with the standard deviation of the rewards of each bin."""
    centers = [(row["low"] + row["high"]) / 2 for row in bins]
    ends = [row["reward"] + sign * row["deviation"] for row in bins for sign in (-1, 1)]

    def draw(figure: Canvas) -> None:
        panel = add_panel(figure, round_range(centers), round_range(ends), "target")
        style: dict[str, Any] = {"color": COLORS["accent"], "clip_on": False}
        panel.plot(centers, [row["reward"] for row in bins], "o-", linewidth=1.8, markersize=6, **style)
        for x, row in zip(centers, bins, strict=True):
            panel.plot(
                (x, x), (row["reward"] - row["deviation"], row["reward"] + row["deviation"]), linewidth=1.5, alpha=0.6, **style
            )

    rows = [Row((_range(row), f"{row['responses']:,}", decimal(row["reward"], 3), decimal(row["deviation"], 3))) for row in bins]
    table = Table("Reward by target", tuple(map(Column, ("target", "responses", "mean reward", "deviation"))), rows)
    correlation = decimal(summary["spearman"], 3, sign=True)
    description = "; ".join(f"target {_range(row)}: mean reward {decimal(row['reward'], 3)}" for row in bins)
    note = f"The line should rise; bars are one standard deviation of the rewards. Rank correlation of reward and target {correlation}."
    return Plot("targets", table.title, description, note, table, draw)


def _range(row: Numbers) -> str:
    low, high = (f"{row[end]:.4g}" for end in ("low", "high"))
    return low if low == high else f"{low} to {high}"


def calibration_plot(curve: Numbers) -> Plot:
    """Plot the accuracy by confidence, as `calibration_curve` returns it, with 95 % intervals; larger dots are more preferences."""
    bins = curve["bins"]
    lowest, most = min(0.5, *(row["accuracy_low"] for row in bins)), max(row["preferences"] for row in bins)

    def draw(figure: Canvas) -> None:
        y_range = (0.5 if lowest >= 0.5 else int(lowest * 10) / 10, 1.0)
        panel = add_panel(figure, (0.5, 1.0), y_range, "confidence, σ(|margin|)")
        style: dict[str, Any] = {"color": COLORS["accent"], "clip_on": False}
        panel.plot((0.5, 1), (0.5, 1), color=COLORS["dim"], linewidth=1, linestyle=DASHES)
        for row in bins:
            x = row["confidence"]
            panel.plot((x, x), (row["accuracy_low"], row["accuracy_high"]), linewidth=1.5, alpha=0.7, **style)
            panel.plot(x, row["accuracy"], "o", markersize=4 + 8 * (row["preferences"] / most) ** 0.5, **style)
        label_above(figure, panel, [(0.5, "accuracy", "neutral")])

    error = decimal(curve["error"], 3)
    points = [f"at confidence {row['confidence']:.2f} the accuracy is {row['accuracy']:.2f}" for row in bins]
    note = (
        "On the dashed line confidence equals accuracy; below it the model is too sure. Larger dots are more preferences. "
        f"Expected calibration error {error}."
    )
    description = f"expected calibration error {error}; {'; '.join(points)}"
    return Plot("calibration", f"Calibration, error {error}", description, note, calibration_table(curve), draw)


def downsample(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return at most `most` points, each the mean of as many neighbours."""
    size = max(1, -(-len(points) // most))
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def _number(value: float) -> str:
    """Write a value with three digits, or with two or three significant ones where those would be too few or too many."""
    if not value or 5e-3 <= abs(value) < 1e6:
        return decimal(value, 3)
    return (f"{value:.2g}" if 1e-3 <= abs(value) < 1 else scientific(value)).replace("-", "−")


def _bin(edges: Sequence[float], number: int) -> str:
    return f"{decimal(edges[number], 3)} to {decimal(edges[number + 1], 3)}"
