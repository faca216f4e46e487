"""The report of a run or an evaluation: one HTML file with everything inside, without scripts and without requests.

`page.html` is the template; Jinja escapes every text that comes from data. `page.css` is the style.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rmtrain.evaluation.diagnosis import Row, diagnose, reward_drift, sample_histories
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.files import write_text
from rmtrain.recipe.schema import EvaluationRecipe, Recipe
from rmtrain.recipe.yaml import write_yaml
from rmtrain.redact import redact, redact_paths
from rmtrain.report.console import apart, decimal, escape_invisible, percent
from rmtrain.report.evaluation_view import benchmark_table, interval, source_table
from rmtrain.report.panel import save_png
from rmtrain.report.plots import benchmark_plots, diagnosis_plots, drift_plot, pictures, sample_plot, source_plot, training_plots
from rmtrain.report.tables import Bar, baselines_table, findings_table, plain, waterfall_table
from rmtrain.report.text_diff import beginning, passages, prompt_end
from rmtrain.report.words import sentences

FOLDER = Path(__file__).parent
OWNER_ONLY = 0o600
"""Permissions of the page, since it has rows of the data."""


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
    benchmarks: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a report that only its owner can read, and next to it, under its name, the PNGs of an evaluation.

    `run` is the directory of a run, whose records become curves, samples and versions; see `page` for the rest.
    """
    environment = run / "environment.json" if run is not None else None
    html = page(
        name,
        summary=None if evaluation is None else evaluation.summary,
        diagnosis=None if evaluation is None else diagnose(evaluation.scored),
        hardest=() if evaluation is None else evaluation.hardest,
        gates=gates,
        metrics=_read_lines(run, "metrics.jsonl"),
        samples=_read_lines(run, "samples.jsonl"),
        waterfall=waterfall,
        findings=findings,
        benchmarks=benchmarks,
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment and environment.is_file() else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html, OWNER_ONLY)
    for key, draw in (pictures(evaluation) if evaluation is not None else {}).items():
        save_png(draw(), path.with_name(f"{path.stem}_{key.removeprefix('eval/')}.png"))


def _read_lines(run: Path | None, name: str) -> list[dict[str, Any]]:
    # From the files and not handed on: a resumed run has the records of its earlier processes nowhere else.
    if run is None or not (run / name).is_file():
        return []
    with (run / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def page(
    name: str,
    *,
    summary: Mapping[str, Any] | None = None,
    diagnosis: Mapping[str, Any] | None = None,
    hardest: Sequence[Row] = (),
    gates: Mapping[str, Mapping[str, Any]] | None = None,
    metrics: Sequence[Row] = (),
    samples: Sequence[Row] = (),
    waterfall: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    findings: Mapping[str, Mapping[str, Any]] | None = None,
    benchmarks: Mapping[str, Mapping[str, Any]] | None = None,
    recipe: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> str:
    """Return the report as HTML text, without secrets and paths of this machine; a part that is empty or None is left out.

    Args:
        name: of the run or the model.
        summary, diagnosis, hardest: as `summarize`, `diagnose` and `with_errors` return them for the same scores.
        gates: as `check_gates` returns them.
        metrics, samples: the lines of `metrics.jsonl` and `samples.jsonl`.
        waterfall: rows read, dropped and kept of each source, by split.
        findings: `splits` of what `findings_of` returns.
        benchmarks: the last numbers of each, as `measure` returns them.
        recipe: the resolved recipe as JSON values.
        environment: versions, hardware and hashes.
    """
    drift = reward_drift(metrics)
    plots = diagnosis_plots(summary, diagnosis) if summary is not None and diagnosis is not None else []
    if len(drift) > 1:
        plots.append(drift_plot(drift))
    return render_page(
        name,
        summary=summary,
        tiles=_tiles(summary) if summary else [],
        verdict=_verdict(summary) if summary else "",
        words=sentences(summary, (diagnosis or {}).get("calibration"), metrics) if summary else [],
        gates=gates,
        sources=source_plot(summary) if summary and summary["preferences"] else None,
        source_table=source_table(summary) if summary else None,
        curves=[*training_plots(metrics), *benchmark_plots(metrics)],
        benchmarks=[benchmark_table(numbers) for numbers in (benchmarks or {}).values()],
        plots=plots,
        samples=[_sample(number, _redacted(row)) for number, row in enumerate(sample_histories(samples))],
        hardest=[_hardest(_redacted(row)) for row in hardest],
        waterfalls={split: waterfall_table(counts) for split, counts in (waterfall or {}).items()},
        findings={
            split: (findings_table(found["found"]), baselines_table(found["baselines"]))
            for split, found in (findings or {}).items()
        },
        recipe=write_yaml(redact_paths(recipe)) if recipe else None,
        environment=redact_paths(environment) if environment else None,
    )


NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("summary", "verdict", "gates", "sources", "source_table", "recipe", "environment")),
    **dict.fromkeys(
        ("tiles", "words", "tables", "curves", "plots", "samples", "hardest", "waterfalls", "findings", "benchmarks"), ()
    ),
}
"""The parts of a page, for one that has none of them."""


def render_page(name: str, **parts: Any) -> str:
    """Return the HTML of a page with this title and these parts of `page.html`; those that are left out are not shown."""
    jinja = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"apart": apart, "decimal": decimal, "plain": plain}
    jinja.tests["bar"] = lambda cell: isinstance(cell, Bar)
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    html = jinja.get_template("page.html").render(style=style, name=redact_paths(name), **{**NOTHING, **parts})
    return html.lstrip()


def _visible(value: Any) -> Any:
    """Escape what is invisible in any text that the template prints; what is HTML already has passed here."""
    return escape_invisible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline numbers: name, value, and the number to compare it with."""
    loss = ("loss", decimal(summary["loss"], 3), f"chance is {decimal(summary['chance_loss'], 3)}")
    if not summary["preferences"]:
        named = (
            ("spearman", "rank correlation with the targets"),
            ("spearman_within", "among responses of a prompt"),
            ("mse", f"R² {decimal(summary['r2'], 3)}"),
            ("auc", "right against wrong"),
            ("accuracy_at_half", "on the right side of 0.5"),
            ("brier", "0 is perfect"),
            ("target_calibration_error", "0 is perfect"),
        )
        tiles = [
            (name.replace("_", " "), decimal(summary[name], 3), remark) for name, remark in named if summary[name] is not None
        ]
        return [*tiles, loss]
    return [
        ("accuracy", decimal(summary["accuracy"], 3), f"95 % in {interval(summary)}"),
        ("longer wins", decimal(summary["longer_wins"], 3), "baseline: only length"),
        loss,
        ("ties", f"{summary['ties']:,}", f"of {summary['preferences']:,} preferences"),
        ("margin", decimal(summary["margin"], 3, sign=True), "chosen minus rejected"),
        ("calibration error", decimal(summary["calibration_error"], 3), "0 is perfect"),
    ]


def _verdict(summary: Mapping[str, Any]) -> str:
    if not summary["preferences"]:
        within = summary["spearman_within"]
        among = "" if within is None else f", and {decimal(within, 3)} among the responses of a prompt"
        correlation = f"Spearman's correlation is {decimal(summary['spearman'], 3)}"
        return f"Rewards against the targets of {summary['targets']:,} responses: {correlation}{among}."
    if summary["accuracy"] is None:
        return f"None of these {summary['n']:,} comparisons has a winner."
    bounds = f"{100 * summary['accuracy_low']:.1f} to {100 * summary['accuracy_high']:.1f} %"
    verdict = f"Right in {percent(summary['accuracy'], 1)} of {summary['preferences']:,} preferences (95 %: {bounds})."
    longer = summary["longer_wins"]
    return verdict if longer is None else f"{verdict} Preferring the longer response is right in {percent(longer, 1)}."


def _redacted(row: Row) -> Row:
    return {**row, **{name: redact(row[name]) for name in ("id", "source", "prompt", "chosen", "rejected")}}


def _sample(number: int, row: Row) -> dict[str, Any]:
    return {
        "prompt": prompt_end(row["prompt"]),
        "chosen": beginning(row["chosen"]),
        "rejected": beginning(row["rejected"]),
        "plot": sample_plot(number, f"Rewards of {row['id']}", row["history"]),
    }


def _hardest(row: Row) -> dict[str, Any]:
    signed = partial(decimal, digits=3, sign=True)
    chosen, rejected = passages(row["chosen"], row["rejected"])
    return {
        "id": row["id"],
        "rewards": [signed(reward) for reward in row["rewards"]],
        "margin": signed(row["rewards"][0] - row["rewards"][1]),
        "prompt": prompt_end(row["prompt"]),
        "chosen": chosen,
        "rejected": rejected,
        "tokens": _tokens(row),
    }


def _tokens(row: Row) -> Any:
    """Return the tokens of an error for the template; None without any, or where they hold a secret, which is split between them."""
    tokens = row.get("tokens")
    texts = () if tokens is None else ["".join(span.text for span in side) for side in tokens.sides]
    return tokens if texts and all(redact(text) == text for text in texts) else None
