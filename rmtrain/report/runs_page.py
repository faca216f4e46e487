"""Several runs in one HTML page: their curves in one figure each, their accuracies, and the tables of `runs_view`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rmtrain.engine.run_records import METRICS as METRICS_FILE
from rmtrain.engine.run_records import RunRecord, read_metrics
from rmtrain.engine.run_set import LOWER, RunSet, recipe_without_seed
from rmtrain.redact import redact_paths
from rmtrain.report.console import decimal, one_line
from rmtrain.report.page import render_page
from rmtrain.report.panel import NAME_CELLS, SERIES
from rmtrain.report.plots import MAX_SOURCES, Curve, Plot, Point, curve_plot, share_plot
from rmtrain.report.runs_view import best_line, comparison_table, runs_headline, runs_table, seeds_table, setting_label
from rmtrain.report.tables import Column, Row, Table

CURVES = (
    ("eval/accuracy", "Evaluation accuracy", 0.5),
    ("eval/spearman", "Evaluation rank correlation", None),
    ("eval/loss", "Evaluation loss", None),
    ("train/loss", "Training loss", None),
)
"""Metrics that are drawn, with their titles and a value to compare them with."""
SHARE = ("accuracy", "accuracy_low", "accuracy_high")


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs of one recipe, whatever their seeds, in the colour of their curves."""

    label: str
    runs: Sequence[RunRecord]
    color: str = "neutral"


def runs_page(runs: RunSet, compared: Mapping[str, Any] | None = None) -> str:
    """Return the page as HTML text, without secrets and absolute paths.

    Args:
        compared: as `compare_with_best` returns it.
    """
    lines = {run.path: read_metrics(run.path / METRICS_FILE) for run in runs.runs}
    settings = _settings(runs)
    plots = [_curves(name, title, reference, settings, lines, runs) for name, title, reference in CURVES]
    shares = _shares(runs)
    tables = [runs_table(runs), *([seeds_table(runs)] if runs.seeds else [])]
    tables += [comparison_table(compared, runs)] if compared is not None else []
    headline = runs_headline(runs)
    verdict = headline if compared is None else f"{headline}; {best_line(compared, runs)}"
    return render_page(
        f"Runs in {runs.folder.name or 'a directory'}",
        verdict=redact_paths(verdict),
        tables=[_without_paths(table) for table in tables],
        curves=[plot for plot in (shares, *plots) if plot is not None],
    )


def _without_paths(table: Table) -> Table:
    rows = [
        replace(row, cells=tuple(redact_paths(cell) if isinstance(cell, str) else cell for cell in row.cells))
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _settings(runs: RunSet) -> list[Setting]:
    """Return the settings of these runs, the best first: by the mean of what ranks them. The first ones have colours of their own."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs.runs:
        groups[recipe_without_seed(run.recipe) if run.recipe and runs.seeds else str(run.path)].append(run)

    def rank(group: Sequence[RunRecord]) -> tuple[bool, float]:
        metric = runs.ranked_by
        values = [value for run in _counted(group) if metric is not None and (value := run.metric(metric)) is not None]
        mean = fmean(values) if values else 0.0
        return not values, mean if metric in LOWER else -mean

    ranked = sorted(groups.values(), key=rank)
    labels = [setting_label(runs, group[0]) if runs.seeds else runs.label(group[0]) for group in ranked]
    colors = [*SERIES, *["neutral"] * len(ranked)]
    return [Setting(_cut(label), group, color) for label, group, color in zip(labels, ranked, colors, strict=False)]


def _cut(label: str) -> str:
    """Return the end of a long label, which is what distinguishes directories."""
    label = one_line(redact_paths(label))
    return label if len(label) <= NAME_CELLS else f"…{label[1 - NAME_CELLS :]}"


def _curves(
    name: str,
    title: str,
    reference: float | None,
    settings: Sequence[Setting],
    lines: Mapping[Any, Sequence[Mapping[str, float]]],
    runs: RunSet,
) -> Plot | None:
    """Plot a metric of all runs by step: a line for each setting, the mean over its seeds, and a thin one for each seed."""
    curves, rows = [], []
    for setting in settings:
        is_named = setting.color != "neutral"
        of_runs = [(run, points) for run in setting.runs if (points := _points(lines[run.path], name))]
        rows += [Row((redact_paths(runs.label(run)), f"{points[-1][0]:,.0f}", decimal(points[-1][1]))) for run, points in of_runs]
        series = [points for _, points in of_runs]
        if not series:
            continue
        means = _means([_points(lines[run.path], name) for run in _counted(setting.runs)])
        label = setting.label if is_named else ""
        if len(series) > 1:
            curves += [Curve("", points, setting.color, thin=True) for points in series]
        if is_named or len(series) == 1:
            is_measured = name.startswith("eval/")
            curves.append(Curve(label, means or series[0], setting.color, dots=is_measured, thin=not is_named))
    if not curves:
        return None
    curves.sort(key=lambda curve: (curve.color != "neutral", not curve.thin))  # what is drawn last is on top
    table = Table(f"Last values of {title.lower()}", (Column("run", "text"), Column("step"), Column("value")), rows)
    key = name.replace("/", "-")
    return curve_plot(f"runs-{key}", title, curves, note=_note(settings, runs), reference=reference, table=table)


def _note(settings: Sequence[Setting], runs: RunSet) -> str:
    note = (
        "Each line is the mean over the seeds of a setting, of finished runs; thin lines are the seeds."
        if runs.seeds
        else "Each line is a run."
    )
    others = sum(setting.color == "neutral" for setting in settings)
    return f"{note} Grey: the {others:,} others." if others else note


def _points(lines: Sequence[Mapping[str, float]], name: str) -> list[Point]:
    """Return the values of a metric by step; of a step with several lines the last counts."""
    return sorted({float(line["step"]): float(line[name]) for line in lines if name in line}.items())


def _counted(runs: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """Return the runs that count in a mean: those that are finished, or all if none is."""
    return [run for run in runs if run.state == "finished"] or runs


def _means(series: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the means of several series at the steps that all of them have."""
    values = [dict(points) for points in series]
    common = sorted(set(values[0]).intersection(*values[1:]))
    return [(step, fmean(of_run[step] for of_run in values)) for step in common]


def _shares(runs: RunSet) -> Plot | None:
    """Plot the accuracy of each run with its interval, the best first."""
    measured = [run for run in runs.runs if all(run.metric(key) is not None for key in SHARE)]
    if not measured:
        return None
    measured.sort(key=lambda run: -float(run.evaluation["accuracy"]))
    shares = [(runs.label(run), run.evaluation, None) for run in measured]
    note = "Dot and line: accuracy of the last evaluation and its 95 % interval. Dashed: chance."
    if len(shares) > MAX_SOURCES:
        note += f" {len(shares) - MAX_SOURCES:,} more runs are in the table only."
    rows = [Row((redact_paths(name), *(decimal(numbers[key]) for key in SHARE))) for name, numbers, _ in shares]
    table = Table("Accuracy by run", (Column("run", "text"), *map(Column, ("accuracy", "low", "high"))), rows)
    return share_plot("runs-accuracy", "Accuracy by run", shares[:MAX_SOURCES], note=note, table=table)
