"""`rmtrain runs --compare` and `--report`: whether the best run is better than the others, and a page for all of them."""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.command_line.options import CommandResult, RunsOptions
from rmtrain.commands.runs import read_runs
from rmtrain.engine.run_records import RunRecord
from rmtrain.engine.run_set import RunSet
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.evaluation.compare import compare
from rmtrain.files import expanded, write_text
from rmtrain.report.runs_page import runs_page
from rmtrain.report.runs_view import comparison_report, runs_document, runs_report


def compare_runs(options: RunsOptions) -> CommandResult:
    """Return the tables of runs, with the best run against each other one, and write the page, as the options ask."""
    runs = read_runs(options)
    compared = compare_with_best(runs) if options.compare else None
    parts: list[RenderableType] = [runs_report(runs)]
    if compared is not None:
        parts += [Text(), comparison_report(compared, runs)]
    page = None if options.report is None else expanded(options.report, "--report")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, runs_page(runs, compared))
        parts += [Text(), Text(f"report  {page}")]
    document = runs_document(runs) | {"compared": compared, "report": None if page is None else str(page)}
    return CommandResult(Group(*parts), document)


def compare_with_best(runs: RunSet) -> dict[str, Any]:
    """Compare the run of the highest accuracy with each other one, row by row, as `rmtrain eval --compare` does.

    Returns:
        JSON-ready: `best`, the path of the best run, and `others`, one for each other run with its `path`, the `difference` of the best
        run's accuracy from its own, `low`, `high` and `p`, numbers of rows (`units`, `better`, `worse`, `equal`), and a `problem` instead
        if it cannot be compared.

    Raises:
        RecipeError: no finished run has an accuracy and the scores of its last evaluation.
    """
    able = [run for run in runs.runs if _obstacle(run) is None]
    if not able:
        raise RecipeError(f"--compare: no finished run in {runs.folder} has an accuracy and scores.jsonl; evaluate one on pairs")
    best = max(able, key=lambda run: run.evaluation["accuracy"])
    others = [_compared(best, run) for run in runs.runs if run is not best]
    return {"best": str(best.path), "metric": "accuracy", "others": others}


NUMBERS = ("difference", "low", "high", "p", "units", "better", "worse", "equal")


def _compared(best: RunRecord, other: RunRecord) -> dict[str, Any]:
    result: dict[str, Any] = {"path": str(other.path), **dict.fromkeys(NUMBERS), "problem": _obstacle(other)}
    if result["problem"] is not None:
        return result
    try:
        found = compare(_scores(other), _scores(best))
    except RmtrainError as error:
        return result | {"problem": error.problems[0]}
    return result | {name: found[name] for name in NUMBERS}


def _obstacle(run: RunRecord) -> str | None:
    """Return why a run cannot be compared; None if it can."""
    if run.state != "finished":
        return f"not compared: the run is {run.state}"
    if run.metric("accuracy") is None:
        return "not compared: the run has no accuracy"
    return None if _scores(run).is_file() else "not compared: scores.jsonl is missing"


def _scores(run: RunRecord) -> Path:
    return run.path / "scores.jsonl"
