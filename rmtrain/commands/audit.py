"""`rmtrain audit`: rewards of all training rows from models that were not trained on them, and the labels that these models dispute.

Each fold is an ordinary run in a directory of its own, which holds out that part of the prompts.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from rmtrain.command_line.options import AuditOptions, CommandResult
from rmtrain.commands.sweep import plan_sweep, raise_worst, train_run
from rmtrain.data.comparison import is_held_out, place_of
from rmtrain.engine.run_check import run_path
from rmtrain.errors import CheckpointError, DataError, RecipeError
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.label_noise import KINDS, LabelAudit
from rmtrain.evaluation.scores_file import ScoredComparison, digest_of, read_scores, read_settings, write_scores
from rmtrain.files import expanded, unwritable, write_text
from rmtrain.recipe.combinations import SweptRun, run_in
from rmtrain.recipe.load import MARKER
from rmtrain.recipe.schema import ComparedSource, RankedSource, Recipe, TextSource
from rmtrain.recipe.variables import escape_variables
from rmtrain.report.audit_view import audit_commands, audit_report

SCORES, SUSPECTS = "scores.jsonl", "suspects.jsonl"
ALONE = ("hub.push=false", "evaluation.gates={}")
"""Overrides of all runs of an audit: none is a result that is published or has to pass."""
TREATMENTS = {"as_labelled": None, "dropped": "drop", "flipped": "flip"}
"""Runs of `--effect`, and what becomes of the suspects in each."""


@dataclass(frozen=True, slots=True)
class LabelRuns:
    """Everything that starts the runs of an audit.

    recipe: the recipe whose training labels are audited.
    load: returns the recipe with further overrides.
    arguments: recipe and overrides of the command line.
    options: further options of each run.
    """

    recipe: Recipe
    load: Callable[[Sequence[str]], Recipe]
    arguments: Sequence[str]
    options: Sequence[str]
    console: Console

    def make(self, directory: Path, name: str, overrides: Sequence[str]) -> SweptRun:
        """Return the run of the recipe with these overrides, in a directory of this name."""
        recipe = self.load(overrides)
        place = str(directory / name)
        return run_in(place, f"{recipe.run.name}-{name}", {"audit": name}, overrides, recipe)

    def train(self, runs: Sequence[SweptRun]) -> list[Path]:
        """Train the runs that are not finished, one after the other, and return their directories.

        Raises:
            RecipeError, CheckpointError: directories that are refused; nothing is trained.
            RmtrainError: a run failed, with its exit code. Stopped: a signal ended one, after it was saved.
        """
        try:
            planned = plan_sweep(runs)
        except CheckpointError as error:
            advice = "these are runs of an audit: change the keys back, set --output to another directory, or delete theirs"
            raise CheckpointError(*error.problems, advice) from None
        for number, run in enumerate(planned, start=1):
            code = train_run(run, f"run {number} of {len(planned)}", self.arguments, self.options, self.console)
            raise_worst({str(run.directory): code} if code else {})
        return [run.directory for run in planned]


def audit(runs: LabelRuns, options: AuditOptions) -> CommandResult:
    """Score each training row by a model that was trained on the other folds, and list the labels that are probably wrong.

    Writes `scores.jsonl`, the rewards of all training rows, and `suspects.jsonl`, which `suspects` of a source reads.

    Raises:
        RecipeError: rows without preferences, or a directory that no audit may have; and see `LabelRuns.train`.
        DataError: the runs scored different rows.
    """
    recipe = runs.recipe
    check_auditable(recipe, options.effect)
    directory = audit_directory(recipe, options.output)
    folds = [_fold_overrides(recipe, number, options.folds) for number in range(1, options.folds + 1)]
    made = [runs.make(directory, f"fold-{number}-of-{options.folds}", texts) for number, texts in enumerate(folds, start=1)]
    scored, settings = read_folds(made, runs.train(made))
    places = {source.title: number for number, source in enumerate(recipe.data.train)}
    in_order = sorted(chain.from_iterable(scored), key=lambda row: (places[row.source], place_of(row.id)))
    write_scores(directory / SCORES, in_order, settings)
    labels = LabelAudit.of(scored)
    suspects = [_suspect(labels, number) for number in labels.suspects()]
    write_text(directory / SUSPECTS, "".join(json.dumps(suspect, ensure_ascii=False) + "\n" for suspect in suspects))
    document = {
        "directory": str(directory.resolve()),
        "folds": options.folds,
        "scores": str((directory / SCORES).resolve()),
        "list": str((directory / SUSPECTS).resolve()),
        **labels.summary(),
        "most_suspect": suspects[:10],
        "effect": measure_effect(runs, directory, suspects) if options.effect and suspects else None,
    }
    key = f"data.train.{places[suspects[0]['source']]}" if suspects else ""
    finished = f"the audit is in {directory}"
    return CommandResult(audit_report(document), document, audit_commands(document, runs.arguments, key), finished)


def check_auditable(recipe: Recipe, effect: bool) -> None:
    """Raise RecipeError, a line for each problem, for sources whose rows cannot be audited; and for an effect without held-out pairs."""
    problems = []
    for number, source in enumerate(recipe.data.train):
        place = f"data.train.{number}"
        if not isinstance(source, ComparedSource):
            problems.append(
                f"{place}.format: an audit needs text with a better response, got {source.format}; use pair, ab or ranked"
            )
        elif isinstance(source, RankedSource) and source.group_by is not None:
            problems.append(
                f"{place}.group_by: an audit needs all responses of a label in one row; gather them into a list first"
            )
        elif source.suspects is not None:
            problems.append(f"{place}.suspects: an audit reads the labels as they are; remove it")
        if source.fold is not None:
            problems.append(f"{place}.fold: an audit has folds of its own; remove it")
    if effect and not recipe.data.eval and not any(source.holdout for source in recipe.data.train):
        problems.append("--effect: needs evaluation data; add data.eval, or set holdout of a source in data.train")
    if problems:
        raise RecipeError(*problems)


def audit_directory(recipe: Recipe, output: Path | None) -> Path:
    """Return the directory of an audit; raises RecipeError for one that is a run, no directory, or not writable."""
    given = f"{recipe.run.output_dir.rstrip('/')}-audit" if output is None else str(expanded(output, "--output"))
    path = run_path(given)
    if (path / MARKER).is_file():
        raise RecipeError(f"--output: {path} is the directory of a run; choose another one for the audit")
    if path.exists() and not path.is_dir():
        raise RecipeError(f"--output: {path} is a file; choose another directory")
    if problem := unwritable(path.resolve()):
        raise RecipeError(f"--output: {problem}; choose another directory")
    return path


def _fold_overrides(recipe: Recipe, number: int, folds: int) -> list[str]:
    """Return the overrides of a run that holds out a fold, and evaluates on nothing else but what the recipe holds out as well."""
    texts = [*ALONE, "data.eval=[]"]
    for place, source in enumerate(recipe.data.train):
        texts.append(f"data.train.{place}.fold={{number: {number}, of: {folds}}}")
        if isinstance(source, TextSource) and source.group_by_prompt:
            texts.append(f"data.train.{place}.group_by_prompt=false")  # each label is of one row
    return texts


def read_folds(runs: Sequence[SweptRun], directories: Sequence[Path]) -> tuple[list[list[ScoredComparison]], dict[str, Any]]:
    """Return the held-out rows of each fold with their rewards, and the settings of all scores together.

    Raises:
        DataError: a row is in two folds, or a file of scores is missing or malformed.
    """
    folds: list[list[ScoredComparison]] = []
    seen: set[str] = set()
    for run, directory in zip(runs, directories, strict=True):
        sources = {source.title: source for source in run.recipe.data.train}
        fold = [
            row
            for row in read_scores(directory / SCORES)
            if not is_held_out(int(row.prompt, 16), sources[row.source].holdout)  # the recipe's own evaluation rows
        ]
        if twice := next((row.id for row in fold if row.id in seen), None):
            raise DataError(
                f"{directory}: {twice} was also held out in another fold: the data changed; delete the directories of folds"
            )
        seen.update(row.id for row in fold)
        folds.append(fold)
    settings = [read_settings(directory / SCORES) or {} for directory in directories]
    together = {
        **settings[0],
        "model": [each.get("model") for each in settings],
        "rows": len(seen),
        "rows_sha256": digest_of([each.get("rows_sha256") for each in settings]),
    }
    together.pop("rows_dropped", None)
    return folds, together


def _suspect(labels: LabelAudit, number: int) -> dict[str, Any]:
    """Return the line of a suspect row."""
    row, kind = labels.rows[number], int(labels.kind_R[number])
    return {
        "id": row.id,
        "source": row.source,
        "prompt": row.prompt,
        "kind": next(name for name, sign in KINDS.items() if sign == kind),
        "margin": round(float(labels.margin_R[number]), 6),
        "agreement": round(float(labels.agreement_R[number]), 4),
    }


def measure_effect(runs: LabelRuns, directory: Path, suspects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train with all labels, without the suspects and with flipped ones, and compare the accuracies on the recipe's evaluation data.

    Returns:
        JSON-ready: for each of `TREATMENTS` the `accuracy`, and for those that change labels the `difference` from `as_labelled`, with
        `low`, `high` and `p`, as `rmtrain eval --compare` computes it.
    """
    made = [
        runs.make(directory, name, [*ALONE, *_treatment(runs.recipe, directory / SUSPECTS, suspects, labels)])
        for name, labels in TREATMENTS.items()
    ]
    first, *others = (run / SCORES for run in runs.train(made))
    effect: dict[str, Any] = {}
    for name, scores in zip(list(TREATMENTS)[1:], others, strict=True):
        compared = compare(first, scores)
        effect["as_labelled"] = {"accuracy": compared["one"]["value"]}
        effect[name] = {
            "accuracy": compared["other"]["value"],
            **{key: compared[key] for key in ("difference", "low", "high", "p")},
        }
    return effect


def _treatment(recipe: Recipe, path: Path, suspects: Sequence[dict[str, Any]], labels: str | None) -> Iterator[str]:
    tags = {suspect["source"] for suspect in suspects}
    for place, source in enumerate(recipe.data.train):
        if labels is not None and source.title in tags:
            written = json.dumps(escape_variables({"file": str(path), "labels": labels}), ensure_ascii=False)
            yield f"data.train.{place}.suspects={written}"
