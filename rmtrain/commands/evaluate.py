"""`rmtrain eval --compare`: whether one of two models is better on the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from rmtrain.batching.plan import Costs
from rmtrain.commands.result import CommandResult
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.prepare import prepare, prepare_evaluation
from rmtrain.data.text.tokenizer import open_tokenizer
from rmtrain.engine.distributed import model_device, run_on_main, start_evaluation, stopping
from rmtrain.engine.memory import token_budget
from rmtrain.engine.start import uses_bfloat16
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.evaluation.benchmarks.registry import named
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.score import Evaluation, check_gates
from rmtrain.evaluation.score import evaluate as evaluate_model
from rmtrain.evaluation.scores_file import TIES, digest_of, read_scores, write_scores, write_settings
from rmtrain.model.layout_probe import choose_layout, probing_comparisons
from rmtrain.model.saved_model import load_reward_model, template_hash
from rmtrain.recipe.load import load_recipe, parse_recipe
from rmtrain.recipe.schema import Gate, Recipe
from rmtrain.report.diagnosis import diagnosis_view
from rmtrain.report.page import with_errors, write_report
from rmtrain.report.progress import ReadingDisplay
from rmtrain.report.tables import difference_report, evaluation_summary

PACKAGES = ("rmtrain", "torch", "transformers")


def pair_settings(model: str, recipe: Recipe, data: TokenizedData, template_sha256: str | None) -> dict[str, Any]:
    """JSON-ready settings; rows are the same where their prompts and responses are, whatever the tokenizer.

    Args:
        model: what was evaluated.
        recipe: what of.
        data: the comparisons.
        template_sha256: of the chat template they were written with.
    """
    counts = data.waterfall.sources.values()
    return {
        "model": model,
        "dtype": "bfloat16" if uses_bfloat16(recipe.training.precision) else "float32",
        "max_length": recipe.data.max_length,
        "overlong": recipe.data.overlong,
        "template_sha256": template_sha256,
        "ties": TIES,
        "rows": len(data),
        "rows_dropped": sum(count.read - count.kept - count.gathered for count in counts),
        "rows_sha256": digest_of([data.prompt_hashes.tolist(), data.response_hashes.tolist()]),
        "versions": {name: version(name) for name in PACKAGES},
    }


def evaluate(model: str, recipe: Recipe, console: Console | None = None, *, allow_template_change: bool = False) -> Evaluation:
    """Evaluate a reward model on the evaluation data of a recipe: `data.eval`, and what is held out of `data.train`.

    Several processes that are launched together share the rows, and each gets all of the numbers.

    Args:
        model: directory or Hub id of a model with one output, or of an adapter.
        recipe: its data, batching and training.precision sections are used.
        console: shows progress; None: stderr.
        allow_template_change: score with a chat template that is not the model's.

    Raises:
        CheckpointError: no model, no head, or another chat template than the model was trained with.
        RecipeError, DataError: as `prepare` says, or there is nothing to evaluate on. RecipeError, RmtrainError: as `start_evaluation`.
        Stopped: a signal, of several processes.
    """
    accelerator = start_evaluation()
    console = (console or Console(stderr=True)) if accelerator.is_main_process else Console(quiet=True)
    reward_model, tokenizer = load_reward_model(model, model_device(accelerator), allow_template_change=allow_template_change)
    reward_model.autocast = uses_bfloat16(recipe.training.precision)
    encoder = _tokenizer(model, recipe, template_hash(tokenizer), allow_template_change)
    data = _evaluation_data(recipe, encoder, console)
    layout = choose_layout(reward_model, recipe.batching.layout, probing_comparisons(data), tokenizer.pad_token_id)
    max_tokens, costs = recipe.batching.max_tokens, Costs.of(data, layout)
    budget = run_on_main(accelerator, partial(token_budget, max_tokens, costs, reward_model))  # each GPU has other memory free
    with stopping(accelerator) as stop:
        check = partial(stop.check, accelerator)
        evaluation = evaluate_model(reward_model, data, layout, accelerator, tokenizer.pad_token_id, budget, check)
    settings = pair_settings(model, recipe, data, template_hash(encoder))
    return replace(with_errors(evaluation, data, tokenizer), settings=settings)


def _tokenizer(model: str, recipe: Recipe, trained_template: str | None, allow_template_change: bool) -> PreTrainedTokenizerFast:
    tokenizer = open_tokenizer(model, recipe.data.chat_template)
    if template_hash(tokenizer) != trained_template and recipe.data.chat_template != "tokenizer" and not allow_template_change:
        raise CheckpointError(
            f"template hash differs: {model} has another chat template than data.chat_template: {recipe.data.chat_template[:40]!r}; "
            "set it to tokenizer, or give --allow-template-change"
        )
    return tokenizer


def _evaluation_data(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, console: Console) -> TokenizedData:
    with ReadingDisplay(console) as progress:
        if any(source.holdout for source in recipe.data.train):
            data = prepare(recipe.data, tokenizer, progress).eval
        else:
            data = prepare_evaluation(recipe.data.eval, recipe.data, tokenizer, progress)
    if not len(data):
        raise RecipeError("nothing to evaluate on: name data.eval, a holdout in data.train, or --data")
    return data


@dataclass(frozen=True, slots=True)
class Target:
    """What is evaluated, on what, and where its scores go."""

    model: str
    recipe: Recipe
    output: Path
    gates: Mapping[Gate, float]


def resolve_target(target: str | None, recipe_path: Path | None, overrides: Sequence[str], data: str | None) -> Target:
    """Find model and recipe from what was named: a recipe, a run directory, or a model with a recipe or with data.

    A run's own recipe brings its gates, and its scores go into the run directory; with other data they go into the current one.

    Raises:
        RecipeError: it is not clear what to evaluate, or on what.
        CheckpointError: a recipe whose run has no model yet.
    """
    if data is not None:
        overrides = [f"data.eval=[{{path: {_quoted(data)}}}]", *overrides]
    named_recipe = recipe_path or (Path(target) if target is not None and target.endswith((".yaml", ".yml")) else None)
    if target is None or (named_recipe is not None and str(named_recipe) == target):
        if named_recipe is None:
            raise RecipeError("expected a recipe, a run directory or a model; see `rmtrain eval --help`")
        recipe = load_recipe(named_recipe, overrides)
        run = Path(recipe.run.output_dir).expanduser()
        if not (run / "model").is_dir():
            raise CheckpointError(f"{run}/model: there is no model; run `rmtrain train {named_recipe}` first")
        return Target(str(run / "model"), recipe, Path() if data else run, recipe.evaluation.gates)
    directory = run_directory(Path(target).expanduser())
    model = target if directory is None else str(directory / "model")
    if named_recipe is not None:
        return Target(model, load_recipe(named_recipe, overrides), Path(), {})
    if directory is not None:
        recipe = load_recipe(directory / "recipe.yaml", overrides)
        return Target(model, recipe, Path() if overrides else directory, {} if data else recipe.evaluation.gates)
    if data is None:
        raise RecipeError(f"{target}: name what to evaluate on, by --data FILE or --recipe RECIPE")
    return Target(model, parse_recipe(_bare_recipe(model, data), "--data", overrides), Path(), {})


def run_directory(path: Path) -> Path | None:
    """The run directory that a path is, or whose exported model it is."""
    for run in (path, path.parent if path.name == "model" else path):
        if (run / "recipe.yaml").is_file() and (run / "model").is_dir():
            return run
    return None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _bare_recipe(model: str, data: str) -> str:
    """A recipe that says no more than which model and which rows; it is only evaluated with."""
    rows = f"[{{path: {_quoted(data)}}}]"
    return (
        f"run: {{name: eval, output_dir: .}}\nmodel: {{path: {_quoted(model)}}}\noptimizer: {{lr: 1.0e-5}}\n"
        f"data: {{train: {rows}, eval: {rows}}}\n"
    )


def eval_command(
    console: Console,
    *,
    target: str | None,
    recipe_path: Path | None,
    overrides: Sequence[str],
    data: str | None,
    output: Path | None,
    scores: Path | None,
    gates: Mapping[Gate, float],
    allow_template_change: bool,
    report: Path | None = None,
) -> CommandResult:
    """Everything behind `rmtrain eval`; see `resolve_target` for what may be named, `scores` needs no model at all.

    With `report` the page is written there, too; of a run with its curves and samples. Of several processes the main one writes.
    """
    accelerator = start_evaluation()
    if scores is not None:
        if target or recipe_path or data or overrides:
            raise RecipeError("--scores computes from the file alone; name no recipe, model, data or override beside it")
        rows = read_scores(scores)
        read = Evaluation(rows, summarize(rows), seconds=0.0, micro_batches=0)
        if report is not None:
            run_on_main(accelerator, partial(write_report, report, scores.name, read, gates=check_gates(read.summary, gates)))
        return _outcome(read, gates, scores, report)
    found = resolve_target(target, recipe_path, overrides, data)
    evaluation = evaluate(found.model, found.recipe, console, allow_template_change=allow_template_change)
    directory = output or found.output
    wanted = {**found.gates, **gates}
    run_on_main(accelerator, partial(_leave, found, evaluation, directory, check_gates(evaluation.summary, wanted), report))
    return _outcome(evaluation, wanted, directory / "scores.jsonl", report)


def _leave(
    found: Target, evaluation: Evaluation, directory: Path, gates: Mapping[str, Mapping[str, Any]], report: Path | None
) -> None:
    """Write the scores, what they depend on, and the report."""
    directory.mkdir(parents=True, exist_ok=True)
    write_scores(directory / "scores.jsonl", evaluation.scored)
    write_settings(directory / "scores.jsonl", evaluation.settings)
    if report is not None:
        run = run_directory(Path(found.model).expanduser())
        name = found.recipe.run.name if run else Path(found.model).name
        write_report(report, name, evaluation, gates=gates, recipe=found.recipe, run=run)


def _outcome(evaluation: Evaluation, gates: Mapping[Gate, float], scores: Path, page: Path | None) -> CommandResult:
    summary, diagnosis = evaluation.summary, diagnose(evaluation.scored)
    results = check_gates(summary, gates)
    lines = [Text(f"gate          {name} {'passed' if result['passed'] else 'missed'}") for name, result in results.items()]
    lines += [Text(f"scores        {scores}"), *([Text(f"report        {page}")] if page else [])]
    report = Group(evaluation_summary(summary), Text(), diagnosis_view(diagnosis), Text(), *lines)
    document = {
        **summary,
        "diagnosis": diagnosis,
        "gates": results,
        "scores": str(scores),
        "report": None if page is None else str(page),
    }
    return CommandResult(report, document)


def compare_command(one: Path, other: Path, benchmarks: str | None, allow_different: bool) -> CommandResult:
    """The difference of two files of scores; see `evaluation.compare.compare`.

    Args:
        one, other: the files.
        benchmarks: name of the one they are of; None: as the settings beside them say.
        allow_different: compare whatever settings differ.

    Raises:
        RecipeError: a file that is not there, or more than one benchmark.
        DataError: settings or rows differ.
    """
    missing = [path for path in (one, other) if not path.exists()]
    if missing:
        raise RecipeError(*(f"--compare: {path} is not there" for path in missing))
    chosen = named(benchmarks) if benchmarks else []
    if len(chosen) > 1:
        raise RecipeError("--compare is of one benchmark; name one in --benchmark")
    compared = compare(one, other, chosen[0] if chosen else None, allow_different)
    return CommandResult(difference_report(compared), {**compared, "gates": {}})
