"""The report of a run or an evaluation: one HTML file with everything inside. It needs no script and asks nobody for anything.

`page.html` says what stands where; Jinja escapes every text that comes from data. `page.css` is the style.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rmtrain.data.waterfall import ASKED_FOR
from rmtrain.evaluation.history import Row, reward_drift, sample_histories
from rmtrain.recipe.redact import redact
from rmtrain.recipe.yaml import write_yaml
from rmtrain.report.diagnosis_figures import diagnosis_figures, drift_figure, source_figure
from rmtrain.report.evaluation import interval
from rmtrain.report.figures import Figure, Line, line_figure
from rmtrain.report.findings import ADVICE, RULES, is_extreme
from rmtrain.report.formats import decimal, percent, revealed
from rmtrain.report.passages import beginning, passages, prompt_end
from rmtrain.report.places import without_places
from rmtrain.report.training_figures import training_figures
from rmtrain.report.waterfall import total

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
    environment.filters |= {"decimal": decimal, "revealed": revealed, "interval": interval}
    template = environment.get_template("page.html")
    html = template.render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        name=revealed(without_places(evidence.name)),
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
        recipe=write_yaml(without_places(evidence.recipe)) if evidence.recipe else None,
        environment=without_places(evidence.environment) if evidence.environment else None,
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
            revealed(source),
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


def _figures(evidence: Evidence) -> list[Figure]:
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
    title = f"Rewards of {revealed(row['id'])}"
    return {
        "id": revealed(row["id"]),
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
        "id": revealed(row["id"]),
        "source": revealed(row["source"]),
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

    rows = [row(revealed(source), "source", read, 0)]
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: (item[0] not in ASKED_FOR, -item[1])):
        left -= count
        asked = ", as asked" if reason in ASKED_FOR else ""
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
                "; ".join(", ".join(map(revealed, example["ids"])) for example in numbers["examples"][:3]),
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
