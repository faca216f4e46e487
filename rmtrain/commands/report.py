"""Everything known of a run or an evaluation as `report.html`, with its pictures beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.evaluate import Evaluation
from rmtrain.evaluation.hardest import hardest_rows
from rmtrain.evaluation.scores import ScoredComparison
from rmtrain.recipe.schema import Recipe
from rmtrain.report.page import Evidence, write_page
from rmtrain.report.plots import calibration_figure, plot_calibration, plot_rewards, reward_figure

HARDEST = 12
"""Errors that a report shows."""


def write_report(
    path: Path,
    name: str,
    evaluation: Evaluation | None,
    *,
    gates: Mapping[str, Mapping[str, Any]],
    recipe: Recipe | None = None,
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


def with_errors(evaluation: Evaluation, data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
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
