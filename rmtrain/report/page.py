"""The report of a run or an evaluation: one HTML file with everything inside, without scripts and without requests.

`page.html` is the template; Jinja escapes every text that comes from data. `page.css` is the style.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData
from rmtrain.evaluation.diagnosis import Row, diagnose, hardest_rows, reward_drift, sample_histories
from rmtrain.evaluation.scoring import EvaluationResult
from rmtrain.files import write_text
from rmtrain.recipe.schema import EvaluationRecipe, Recipe
from rmtrain.recipe.yaml import write_yaml
from rmtrain.redact import redact, redact_paths
from rmtrain.report.console import decimal, escape_invisible, percent
from rmtrain.report.evaluation_view import interval
from rmtrain.report.plots import (
    calibration_plot,
    diagnosis_plots,
    drift_plot,
    margin_plot,
    reward_plot,
    sample_plot,
    save_png,
    source_plot,
    stacked,
    training_plots,
)
from rmtrain.report.tables import Bar, baselines_table, findings_table, plain, waterfall_table
from rmtrain.report.text_diff import beginning, passages, prompt_end

FOLDER = Path(__file__).parent
OWNER_ONLY = 0o600
"""Permissions of the page, since it has rows of the data."""
HARDEST = 12
"""Errors that a report lists."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """The content of a report; a part that is empty or None is left out.

    name: of the run or the model.
    summary, diagnosis, hardest: as `summarize`, `diagnose` and `hardest_rows` return them for the same scores.
    gates: as `check_gates` returns them.
    metrics, samples: the lines of `metrics.jsonl` and `samples.jsonl`.
    waterfall: rows read, dropped and kept of each source, by split.
    findings: `splits` of what `audit` returns.
    recipe: the resolved recipe as JSON values.
    environment: versions, hardware and hashes.
    """

    name: str
    summary: Mapping[str, Any] | None = None
    diagnosis: Mapping[str, Any] | None = None
    hardest: Sequence[Row] = ()
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    waterfall: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None


def write_report(
    path: Path,
    name: str,
    evaluation: EvaluationResult | None,
    *,
    gates: Mapping[str, Mapping[str, Any]],
    recipe: Recipe | EvaluationRecipe | None = None,
    run: Path | None = None,
    waterfall: Mapping[str, Mapping[str, Any]] | None = None,
    findings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write a report, and next to it, under its name, the PNGs of rewards and calibration.

    Args:
        path: the HTML file; only its owner can read it.
        name: of the run or the model.
        evaluation: scores and numbers, if any.
        gates: as `check_gates` returns them.
        recipe: of the run.
        run: directory of a run, whose records become curves, samples and versions.
        waterfall: rows read, dropped and kept of each source, by split.
        findings: `splits` of what `audit` returns.

    Returns:
        The files that were written.
    """
    environment = run / "environment.json" if run is not None else None
    data = ReportData(
        name=name,
        summary=None if evaluation is None else evaluation.summary,
        diagnosis=None if evaluation is None else diagnose(evaluation.scored),
        hardest=() if evaluation is None else evaluation.hardest,
        gates=gates,
        metrics=_read_lines(run, "metrics.jsonl"),
        samples=_read_lines(run, "samples.jsonl"),
        waterfall=waterfall or {},
        findings=findings or {},
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment and environment.is_file() else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(data), OWNER_ONLY)
    written = [path]
    if evaluation is not None:
        for key, draw in pictures(evaluation).items():
            written.append(path.with_name(f"{path.stem}_{key.removeprefix('eval/')}.png"))
            save_png(draw(), written[-1])
    return written


def pictures(evaluation: EvaluationResult) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw the pictures of an evaluation, under the names that trackers show.

    Nothing is drawn before one is called. There are none if no preference has a winner.
    """
    if not any(edge.probability > 0.5 for row in evaluation.scored for edge in row.preferences):
        return {}
    summary, scored = evaluation.summary, evaluation.scored

    def draw_rewards() -> Figure:
        diagnosis = diagnose(scored)
        return stacked([reward_plot(diagnosis["rewards"], summary["rewards"]), margin_plot(diagnosis["margins"])])

    return {
        "eval/rewards": draw_rewards,
        "eval/calibration": lambda: stacked([calibration_plot(diagnose(scored)["calibration"])]),
    }


def with_errors(evaluation: EvaluationResult, data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    """Return an evaluation with the text of its hardest errors, for a report.

    Args:
        data: the comparisons that were evaluated.
        tokenizer: decodes them.
    """
    return replace(evaluation, hardest=hardest_rows(data, evaluation.scored, tokenizer, HARDEST))


def _read_lines(run: Path | None, name: str) -> list[dict[str, Any]]:
    if run is None or not (run / name).is_file():
        return []
    with (run / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def page(data: ReportData) -> str:
    """Return the report as HTML text, without secrets and without paths of this machine."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"decimal": decimal, "visible": escape_invisible, "plain": plain}
    environment.tests["bar"] = lambda cell: isinstance(cell, Bar)
    summary, diagnosis, drift = data.summary, data.diagnosis, reward_drift(data.metrics)
    plots = diagnosis_plots(summary, diagnosis) if summary is not None and diagnosis is not None else []
    if len(drift) > 1:
        plots.append(drift_plot(drift))
    html = environment.get_template("page.html").render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        name=escape_invisible(redact_paths(data.name)),
        summary=summary,
        tiles=_tiles(summary) if summary else [],
        verdict=_verdict(summary) if summary else "",
        gates=data.gates,
        sources=source_plot(summary) if summary else None,
        curves=training_plots(data.metrics),
        plots=plots,
        samples=[_sample(number, _redacted(row)) for number, row in enumerate(sample_histories(data.samples))],
        hardest=[_hardest(_redacted(row)) for row in data.hardest],
        waterfalls={split: waterfall_table(counts) for split, counts in data.waterfall.items()},
        findings={
            split: (findings_table(found["found"]), baselines_table(found["baselines"])) for split, found in data.findings.items()
        },
        recipe=write_yaml(redact_paths(data.recipe)) if data.recipe else None,
        environment=redact_paths(data.environment) if data.environment else None,
    )
    return html.lstrip()


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline numbers: name, value, and the number to compare it with."""
    return [
        ("accuracy", decimal(summary["accuracy"], 3), f"95 % in {interval(summary)}"),
        ("longer wins", decimal(summary["longer_wins"], 3), "baseline: only length"),
        ("loss", decimal(summary["loss"], 3), "chance is 0.693"),
        ("ties", f"{summary['ties']:,}", f"of {summary['preferences']:,} preferences"),
        ("margin", decimal(summary["margin"], 3, sign=True), "chosen minus rejected"),
        ("calibration error", decimal(summary["calibration_error"], 3), "0 is perfect"),
    ]


def _verdict(summary: Mapping[str, Any]) -> str:
    if summary["accuracy"] is None:
        return f"None of these {summary['n']:,} comparisons has a winner."
    bounds = f"{100 * summary['accuracy_low']:.1f} to {100 * summary['accuracy_high']:.1f} %"
    verdict = f"Right in {percent(summary['accuracy'], 1)} of {summary['preferences']:,} preferences (95 %: {bounds})."
    longer = summary["longer_wins"]
    return verdict if longer is None else f"{verdict} Preferring the longer response is right in {percent(longer, 1)}."


def _redacted(row: Row) -> Row:
    """Return a row without secrets in its texts."""
    return {**row, **{name: redact(row[name]) for name in ("id", "source", "prompt", "chosen", "rejected")}}


def _sample(number: int, row: Row) -> dict[str, Any]:
    """Return a sample comparison: its texts, and the plot of its rewards at each evaluation."""
    return {
        "prompt": prompt_end(row["prompt"]),
        "chosen": beginning(row["chosen"]),
        "rejected": beginning(row["rejected"]),
        "plot": sample_plot(number, f"Rewards of {row['id']}", row["history"]),
    }


def _hardest(row: Row) -> dict[str, Any]:
    """Return an error with the differences of its responses marked."""
    signed = partial(decimal, digits=3, sign=True)
    chosen, rejected = passages(row["chosen"], row["rejected"])
    return {
        "id": row["id"],
        "rewards": [signed(reward) for reward in row["rewards"]],
        "margin": signed(row["rewards"][0] - row["rewards"][1]),
        "prompt": prompt_end(row["prompt"]),
        "chosen": chosen,
        "rejected": rejected,
    }
