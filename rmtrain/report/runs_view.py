"""Several runs in tables: what differs and what came out, the means over seeds, and the best run against each other one."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.engine.run_records import RunRecord
from rmtrain.engine.run_set import METRICS, Mean, RunSet, SeedGroup
from rmtrain.recipe.differences import short_values
from rmtrain.redact import redact
from rmtrain.report.console import NoWrap, decimal, duration, one_line
from rmtrain.report.tables import Column, Row, Table

MAX_KEYS = 8
"""Keys that are columns of the table; the names of the others are listed below it."""
STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "damaged": "red"}
FORMULA = ("=", "+", "-", "@")
"""Characters with which a spreadsheet begins a formula."""


def runs_report(runs: RunSet) -> RenderableType:
    """Return the table of runs, and that of the means over seeds where several runs differ only in their seed."""
    place = os.path.relpath(runs.folder)
    headline = f"{runs_headline(runs)}, in {one_line(str(runs.folder) if place.startswith('..') else place)}"
    parts: list[RenderableType] = [Text(headline, style="bold"), Text(), runs_table(runs)]
    hidden = list(runs.columns)[MAX_KEYS:]
    if hidden:
        parts.append(Text(f"also different: {', '.join(map(one_line, hidden))}", style="dim"))
    if runs.seeds:
        parts += [Text(), Text("mean over seeds ± standard deviation, of finished runs", style="bold"), Text(), seeds_table(runs)]
    return NoWrap(Group(*parts))


def runs_headline(runs: RunSet) -> str:
    """Return how many runs there are, of each state."""
    states = Counter[str](run.state for run in runs.runs)
    counts = ", ".join(f"{count} {state}" for state in STYLES if (count := states[state]))
    return f"{len(runs.runs)} run{'s' if len(runs.runs) != 1 else ''}: {counts}"


def runs_table(runs: RunSet) -> Table:
    """Return a row for each run: its state, the keys in which the recipes differ, its last evaluation, steps and time."""
    shown = list(runs.columns)[:MAX_KEYS]
    metrics = [metric for metric in METRICS[:-1] if any(run.metric(metric) is not None for run in runs.runs)]
    notes = [_note(run) for run in runs.runs]
    columns = [Column("run", "text"), Column("state", "text"), *_key_columns(runs, shown)]
    for metric in metrics:
        columns.append(Column(metric, style="bold" if metric == runs.ranked_by else ""))
        columns += [Column("95 % interval", optional=True)] if metric == "accuracy" else []
    columns += [Column("steps", optional=True), Column("time", optional=True)]
    columns += [Column("note", "text")] if any(notes) else []
    rows = []
    for number, run in enumerate(runs.runs):
        cells: list[Any] = [one_line(runs.label(run)), Text(run.state, STYLES[run.state])]
        cells += [runs.columns[name][number] for name in shown]
        for metric in metrics:
            cells.append(decimal(run.metric(metric)))
            cells += [_interval(run)] if metric == "accuracy" else []
        cells += [_steps(run), _time(run.seconds), *([notes[number]] if any(notes) else [])]
        rows.append(Row(tuple(cells)))
    return Table("Runs", tuple(columns), rows)


def _key_columns(runs: RunSet, names: Iterable[str]) -> list[Column]:
    """Return a column for each key by its short name: of numbers, if all its values are numbers."""
    values = dict(zip(runs.columns, runs.keys.values(), strict=True))
    is_number = {name: all(isinstance(value, int | float | None) for value in values[name]) for name in names}
    return [Column(one_line(name), "number" if is_number[name] else "text") for name in names]


def _note(run: RunRecord) -> str:
    missed = [f"gate {name} missed" for name in run.gates_missed]
    return redact(one_line("; ".join([*missed, *run.problems])))


def _interval(run: RunRecord) -> str:
    low, high = run.metric("accuracy_low"), run.metric("accuracy_high")
    return "–" if low is None or high is None else f"[{decimal(low, 3)}, {decimal(high, 3)}]"


def _steps(run: RunRecord) -> str:
    return f"{run.step:,}" if run.steps is None else f"{run.step:,} of {run.steps:,}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def seeds_table(runs: RunSet) -> Table:
    """Return a row for each group of runs that differ only in their seed, with the mean of each metric."""
    metrics = [metric for metric in METRICS if any(group.mean(metric) for group in runs.seeds)]
    names = group_columns(runs)
    first = _key_columns(runs, names) or [Column("run")]
    columns = (
        replace(first[0], kind="text"),
        *first[1:],
        Column("seeds", "text"),
        *(Column("time" if metric == "seconds" else metric) for metric in metrics),
    )
    rows = []
    for group in runs.seeds:
        cells = [runs.columns[name][runs.runs.index(group.runs[0])] for name in names] or [one_line(group.runs[0].name)]
        means = [_mean(group.mean(metric), metric) for metric in metrics]
        rows.append(Row((*cells, ", ".join(short_values(group.seeds)), *means)))
    return Table("Means over seeds", columns, rows)


def group_columns(runs: RunSet) -> list[str]:
    """Return the short names of the keys in which groups of seeds differ."""
    return [name for name, key in zip(runs.columns, runs.keys, strict=True) if key != "run.seed"][:MAX_KEYS]


def setting_label(runs: RunSet, run: RunRecord) -> str:
    """Return in a few words how a run differs from the others, except for its seed: `lr 3e-6, rank 8`; its name where it does not."""
    number = runs.runs.index(run)
    return ", ".join(f"{name} {runs.columns[name][number]}" for name in group_columns(runs)) or run.name


def _mean(mean: Mean | None, metric: str) -> str:
    if mean is None:
        return "–"
    show = _time if metric == "seconds" else decimal
    return show(mean.mean) if mean.std is None else f"{show(mean.mean)} ± {show(mean.std)}"


def comparison_report(compared: Mapping[str, Any], runs: RunSet) -> RenderableType:
    """Return the best run and a row for each other one: by how much the best one is better, as `compare_with_best` returns it."""
    return NoWrap(Group(Text(best_line(compared, runs), style="bold"), Text(), comparison_table(compared, runs)))


def best_line(compared: Mapping[str, Any], runs: RunSet) -> str:
    """Return the best run and its accuracy."""
    best = next(run for run in runs.runs if str(run.path) == compared["best"])
    return f"best: {one_line(runs.label(best))}, accuracy {decimal(best.metric('accuracy'))}, 95 % in {_interval(best)}"


def comparison_table(compared: Mapping[str, Any], runs: RunSet) -> Table:
    """Return a row for each run that was compared with the best one; see `comparison_report`."""
    columns = (
        Column("the best one against", "text"),
        Column("accuracy"),
        Column("difference", style="bold"),
        Column("95 % interval"),
        Column("p", optional=True),
        Column("rows better, worse", optional=True),
        Column("verdict", "text"),
    )
    by_path = {str(run.path): run for run in runs.runs}
    rows = []
    for other in compared["others"]:
        run = by_path[other["path"]]
        first = (one_line(runs.label(run)), decimal(run.metric("accuracy")))
        if other["problem"] is not None:
            rows.append(Row((*first, "–", "–", "–", "–", redact(one_line(other["problem"])))))
            continue
        is_better = other["low"] > 0
        bounds = f"[{decimal(other['low'], sign=True)}, {decimal(other['high'], sign=True)}]"
        counts = f"{other['better']:,}, {other['worse']:,} of {other['units']:,}"
        verdict = Text("better", "green") if is_better else "may be equal"
        rows.append(Row((*first, decimal(other["difference"], sign=True), bounds, f"{other['p']:.2g}", counts, verdict)))
    return Table("The best run against the others", columns, rows)


def runs_document(runs: RunSet) -> dict[str, Any]:
    """Return the same as JSON values."""
    return {
        "runs": [_run_document(runs, number) for number in range(len(runs.runs))],
        "differing": list(runs.keys),
        "seeds": [_group_document(runs, group) for group in runs.seeds],
        "best": None if runs.best is None else str(runs.best.path),
        "compared": None,
        "report": None,
    }


def _run_document(runs: RunSet, number: int) -> dict[str, Any]:
    run = runs.runs[number]
    return {
        "path": str(run.path),
        "name": run.name,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "keys": _key_values(runs, number, runs.keys),
        **{name: run.metric(name) for name in ("accuracy", "accuracy_low", "accuracy_high", *METRICS[1:])},
        "evaluation": dict(run.evaluation),
        "training": dict(run.training),
        "gates_missed": list(run.gates_missed),
        "problems": [redact(problem) for problem in run.problems],
    }


def _key_values(runs: RunSet, number: int, keys: Iterable[str]) -> dict[str, Any]:
    values = {key: runs.keys[key][number] for key in keys}
    return {key: redact(value) if isinstance(value, str) else value for key, value in values.items()}


def _group_document(runs: RunSet, group: SeedGroup) -> dict[str, Any]:
    means = {metric: group.mean(metric) for metric in METRICS}
    return {
        "runs": [str(run.path) for run in group.runs],
        "seeds": group.seeds,
        "keys": _key_values(runs, runs.runs.index(group.runs[0]), (key for key in runs.keys if key != "run.seed")),
        **{name: None if mean is None else {"mean": mean.mean, "std": mean.std, "n": mean.n} for name, mean in means.items()},
    }


def runs_csv(document: Mapping[str, Any]) -> str:
    """Return the runs of a document as CSV: a line for each, with a column for each key that differs."""
    fields = ("path", "name", "state", "step", "steps", "accuracy", "accuracy_low", "accuracy_high", *METRICS[1:])
    keys: Sequence[str] = document["differing"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in (*fields, *keys, "gates_missed", "problems")])
    for run in document["runs"]:
        listed = ("; ".join(run["gates_missed"]), "; ".join(run["problems"]))
        values = (*(run[name] for name in fields), *(run["keys"][key] for key in keys), *listed)
        writer.writerow(map(_csv_cell, values))
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a value for CSV. What a spreadsheet would take for a formula gets an apostrophe."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = one_line(value if isinstance(value, str) else short_values([value])[0])
    return f"'{text}" if text.startswith(FORMULA) else text
