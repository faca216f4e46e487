"""The report of a run or an evaluation: one HTML file with everything inside. It needs no script and asks nobody for anything.

`page.html` says what stands where; Jinja escapes every text that comes from data. `page.css` is the style.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.samples import Row, hardest_rows, reward_drift, sample_histories
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.evaluation.scoring import EvaluationResult
from rmtrain.recipe.evaluation import EvaluationRecipe
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml import write_yaml
from rmtrain.redact import redact, redact_paths
from rmtrain.report.console import decimal, escape_invisible, percent
from rmtrain.report.diagnosis_figures import diagnosis_figures, drift_figure, source_figure
from rmtrain.report.figures import Figure as PageFigure
from rmtrain.report.figures import Line, line_figure
from rmtrain.report.plots import calibration_figure, plot_calibration, plot_rewards, reward_figure
from rmtrain.report.tables import ADVICE, RULES, interval, is_extreme, total
from rmtrain.report.text_diff import beginning, passages, prompt_end
from rmtrain.report.training_figures import training_figures

FOLDER = Path(__file__).parent
OWNER_ONLY = 0o600
"""The page holds rows of the data."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report is made of; a part that is empty or None is left out.

    name: of the run or the model.
    summary: what `summarize` returned; `diagnosis` what `diagnose` did of the same scores, `hardest` what `hardest_rows` did.
    gates: what `check_gates` returned.
    metrics, samples: the lines of `metrics.jsonl` and `samples.jsonl`.
    waterfall: rows read, dropped and kept of each source, by split.
    findings: `splits` of what `audit` returned.
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


def write_page(path: Path, evidence: Evidence) -> None:
    """Write the report, whole or not at all. Only the owner can read it, since it holds rows of the data."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(page(evidence))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def page(evidence: Evidence) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"decimal": decimal, "revealed": escape_invisible, "interval": interval}
    template = environment.get_template("page.html")
    html = template.render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        name=escape_invisible(redact_paths(evidence.name)),
        summary=evidence.summary,
        tiles=_tiles(evidence.summary) if evidence.summary else [],
        verdict=_verdict(evidence.summary) if evidence.summary else [],
        gates=[_gate(name, **gate) for name, gate in evidence.gates.items()],
        sources=source_figure(evidence.summary) if evidence.summary else None,
        source_rows=_sources(evidence.summary) if evidence.summary else [],
        curves=training_figures(evidence.metrics),
        figures=_figures(evidence),
        samples=[_sample(number, _redacted(row)) for number, row in enumerate(sample_histories(evidence.samples))],
        hardest=[_hard(_redacted(row)) for row in evidence.hardest],
        waterfalls={split: waterfall_rows(counts) for split, counts in evidence.waterfall.items()},
        findings={split: _findings(found) for split, found in evidence.findings.items()},
        recipe=write_yaml(redact_paths(evidence.recipe)) if evidence.recipe else None,
        environment=redact_paths(evidence.environment) if evidence.environment else None,
    )
    return html.lstrip()


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The headline numbers: name, value, and what it is to be read with."""
    return [
        ("accuracy", decimal(summary["accuracy"], 3), f"95 % in {interval(summary, 3)}"),
        ("longer wins", decimal(summary["longer_wins"], 3), "no model, only length"),
        ("loss", decimal(summary["loss"], 3), "a coin has 0.693"),
        ("ties", f"{summary['ties']:,}", f"of {summary['preferences']:,} preferences"),
        ("margin", decimal(summary["margin"], 3, sign=True), "chosen less rejected"),
        ("calibration error", decimal(summary["calibration_error"], 3), "0 is as sure as right"),
    ]


def _verdict(summary: Mapping[str, Any]) -> list[str]:
    """The same in a sentence or two."""
    if summary["accuracy"] is None:
        return [f"Nothing in these {summary['n']:,} comparisons has a winner."]
    bounds = f"{100 * summary['accuracy_low']:.1f} to {100 * summary['accuracy_high']:.1f} %"
    told = f"Right in {percent(summary['accuracy'], 1)} of {summary['preferences']:,} preferences (95 %: {bounds})."
    longer = summary["longer_wins"]
    return [told] if longer is None else [told, f"Preferring the longer response is right in {percent(longer, 1)}."]


def _gate(name: str, required: float, value: float | None, passed: bool) -> tuple[str, str, str, bool]:
    return name.replace("_", " "), decimal(required), decimal(value), passed


def _sources(summary: Mapping[str, Any]) -> list[list[str]]:
    shown = {**summary["sources"], "all": summary} if len(summary["sources"]) > 1 else summary["sources"]
    return [
        [
            escape_invisible(source),
            f"{numbers['n']:,}",
            decimal(numbers["accuracy"]),
            interval(numbers, 3),
            f"{numbers['ties']:,}",
            decimal(numbers["half_credit_accuracy"]),
            decimal(numbers["loss"]),
            decimal(numbers["longer_wins"]),
        ]
        for source, numbers in shown.items()
    ]


def _figures(evidence: Evidence) -> list[PageFigure]:
    figures = []
    if evidence.summary is not None and evidence.diagnosis is not None:
        figures = diagnosis_figures(evidence.summary, evidence.diagnosis)
    drift = reward_drift(evidence.metrics)
    return [*figures, drift_figure(drift)] if len(drift) > 1 else figures


def _redacted(row: Row) -> Row:
    """A row whose texts hold no secret."""
    return {**row, **{name: redact(row[name]) for name in ("id", "source", "prompt", "chosen", "rejected")}}


def _sample(number: int, row: Row) -> dict[str, Any]:
    """A sample comparison: its texts, and its rewards at each evaluation."""
    history = row["history"]
    lines = [
        Line("chosen", [(at["step"], at["rewards"][0]) for at in history], "accent", dots=True),
        Line("rejected", [(at["step"], at["rewards"][1]) for at in history], "neutral", dots=True),
    ]
    chosen, rejected = history[-1]["rewards"]
    verdict = "right" if chosen > rejected else "tied" if chosen == rejected else "wrong"
    note = f"At the end {verdict}, by {decimal(abs(chosen - rejected), 3)}."
    title = f"Rewards of {escape_invisible(row['id'])}"
    return {
        "id": escape_invisible(row["id"]),
        "verdict": verdict,
        "prompt": prompt_end(row["prompt"]),
        "chosen": beginning(row["chosen"]),
        "rejected": beginning(row["rejected"]),
        "figure": line_figure(f"sample-{number}", title, lines, x_name="step", note=note, digits=3),
    }


def _hard(row: Row) -> dict[str, Any]:
    """An error, with the first difference of its responses marked."""
    chosen, rejected = passages(row["chosen"], row["rejected"])
    return {
        "id": escape_invisible(row["id"]),
        "source": escape_invisible(row["source"]),
        "rewards": [decimal(reward, 3, sign=True) for reward in row["rewards"]],
        "margin": decimal(row["rewards"][0] - row["rewards"][1], 3, sign=True),
        "prompt": prompt_end(row["prompt"]),
        "chosen": chosen,
        "rejected": rejected,
    }


def waterfall_rows(waterfall: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table from read to kept: `name`, `kind`, `count`, `share`, and a bar's `begin` and `width` in percent."""
    parts = {**waterfall, "all sources": total(waterfall)} if len(waterfall) > 1 else waterfall
    return [row for source, counts in parts.items() for row in _source_rows(source, counts)]


def _source_rows(source: str, counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    read = left = counts["read"]

    def row(name: str, kind: str, count: int, begin: int) -> dict[str, Any]:
        begin_percent, width = (100 * part / read if read else 0.0 for part in (begin, count))
        words = {"name": name, "kind": kind, "count": f"{count:,}", "share": percent(count, read)}
        return words | {"begin": f"{begin_percent:.2f}", "width": f"{width:.2f}"}

    rows = [row(escape_invisible(source), "source", read, 0)]
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: (item[0] not in INTENTIONAL_DROPS, -item[1])):
        left -= count
        asked = ", as asked" if reason in INTENTIONAL_DROPS else ""
        rows.append(row(f"− {reason.replace('_', ' ')}{asked}", "asked" if asked else "dropped", count, left))
    if gathered := counts["gathered"]:
        rows.append(row("∪ gathered into others", "gathered", gathered, counts["kept"]))
    return [*rows, row("= comparisons kept", "kept", counts["kept"], 0)]


def _findings(split: Mapping[str, Any]) -> dict[str, Any]:
    """The faults of a split, and how far a rule that reads nothing gets."""
    return {
        "found": [
            (
                kind.replace("_", " "),
                f"{numbers['found']:,}",
                percent(numbers["share"], 1),
                "; ".join(", ".join(map(escape_invisible, example["ids"])) for example in numbers["examples"][:3]),
                ADVICE[kind],
            )
            for kind, numbers in split["found"].items()
        ],
        "baselines": [
            (
                RULES[rule],
                percent(numbers["wins"], numbers["wins"] + numbers["losses"]),
                f"{100 * numbers['low']:.1f} to {100 * numbers['high']:.1f} %" if numbers["share"] is not None else "–",
                f"{numbers['wins'] + numbers['losses']:,}",
                is_extreme(numbers),
            )
            for rule, numbers in split["baselines"].items()
        ],
    }


HARDEST = 12
"""Errors that a report shows."""


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
    """Write a report.

    Args:
        path: the HTML file; the PNGs of rewards and calibration are beside it, under its name.
        name: of the run or the model.
        evaluation: scores and numbers; None: there are none.
        gates: what `check_gates` returned.
        recipe: what was done.
        run: directory of a run, whose records become curves, samples and versions; None: there is none.
        waterfall: rows read, dropped and kept of each source, by split.
        findings: `splits` of what `audit` returned.

    Returns:
        The files that were written.
    """
    diagnosis = None if evaluation is None else diagnose(evaluation.scored)
    environment = run / "environment.json" if run is not None else None
    evidence = Evidence(
        name=name,
        summary=None if evaluation is None else evaluation.summary,
        diagnosis=diagnosis,
        hardest=() if evaluation is None else evaluation.hardest,
        gates=gates,
        metrics=_lines(run, "metrics.jsonl"),
        samples=_lines(run, "samples.jsonl"),
        waterfall=waterfall or {},
        findings=findings or {},
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment and environment.is_file() else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, evidence)
    if diagnosis is None or not diagnosis["preferences"]:
        return [path]
    pictures = [path.with_name(f"{path.stem}_{what}.png") for what in ("rewards", "calibration")]
    plot_rewards(diagnosis, pictures[0])
    plot_calibration(diagnosis["calibration"], pictures[1])
    return [path, *pictures]


def with_errors(evaluation: EvaluationResult, data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    """An evaluation with its hardest errors as text, for a report.

    Args:
        data: what was evaluated.
        tokenizer: decodes it.
    """
    return replace(evaluation, hardest=hardest_rows(data, evaluation.scored, tokenizer, HARDEST))


def pictures(scored: Sequence[ScoredComparison]) -> dict[str, Callable[[], Figure]]:
    """What draws the pictures of an evaluation, by the names that trackers show; nothing is drawn before that.

    There are none where no preference has a winner.
    """
    if not any(edge.probability > 0.5 for row in scored for edge in row.preferences):
        return {}
    return {
        "eval/rewards": lambda: reward_figure(diagnose(scored)),
        "eval/calibration": lambda: calibration_figure(diagnose(scored)["calibration"]),
    }


def _lines(run: Path | None, name: str) -> list[dict[str, Any]]:
    """A record of a run; none where it has none."""
    if run is None or not (run / name).is_file():
        return []
    with (run / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
