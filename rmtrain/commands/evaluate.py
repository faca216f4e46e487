"""`rmtrain eval`: numbers of a model on pairs or on public benchmarks. For numbers of scores alone see evaluate_scores.py."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from rmtrain.batching.plan import Costs
from rmtrain.command_line.model_options import EvalOptions, checked_precision, parse_gates
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.evaluate_scores import benchmarks_result, gate_names, pairs_result, run_scores
from rmtrain.data.prepare import prepare, prepare_evaluation
from rmtrain.data.text.tokenizer import replaced_pad_token
from rmtrain.engine.distributed import run_on_main, start_evaluation, stopping
from rmtrain.engine.memory import scoring_budget
from rmtrain.engine.strategy import model_device
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.evaluation.benchmarks.encoded import EncodedBenchmark
from rmtrain.evaluation.benchmarks.measure import measure, named
from rmtrain.evaluation.benchmarks.published import read_items
from rmtrain.evaluation.gates import check_gates
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scores_file import (
    OBJECTIVE,
    ScoredComparison,
    pair_settings,
    write_scores,
)
from rmtrain.evaluation.scoring import ScoringPlan
from rmtrain.evaluation.scoring import evaluate as evaluate_plan
from rmtrain.evaluation.token_rewards import TokenReader
from rmtrain.files import expanded, unwritable
from rmtrain.model.layout_probe import choose_layout, probing_comparisons
from rmtrain.model.model_files import ModelRef
from rmtrain.model.reward_model import RewardModel, computing_type
from rmtrain.model.saved_model import FACTS, load_reward_model, model_of, template_hash, tokenizer_for_data
from rmtrain.objective import with_scale_of
from rmtrain.recipe.load import MARKER, RECIPE, data_overrides, evaluation_recipe, load_recipe
from rmtrain.recipe.schema import Data, EvaluationRecipe, Objectives, Recipe
from rmtrain.report.console import compact, one_line
from rmtrain.report.hardest_errors import with_errors
from rmtrain.report.page import write_report
from rmtrain.report.progress import ReadingProgress, ScoringProgress
from rmtrain.report.terminal import TerminalConsole


def run_eval(options: EvalOptions, console: Console) -> CommandResult:
    """Do what the options of `rmtrain eval`, which `EvalOptions.check` has checked, ask for; see the functions below for the errors."""
    if options.needs_no_model:
        return run_scores(options)
    if options.report is not None:
        options = replace(options, report=expanded(options.report, "--report"))
    if options.output is not None:
        options = replace(options, output=expanded(options.output, "--output"))
    if options.benchmark is not None:
        target = find_model(options)
        folder = output_folder(options, target, "benchmarks")
        return evaluate_benchmarks(options, options.benchmark, target.model, folder, console)
    return _evaluate_pairs(options, console)


@dataclass(frozen=True, slots=True)
class EvalTarget:
    """The model to evaluate, by directory or Hub id; the run it belongs to, and the recipe that was named, if any.

    by_recipe: the recipe was named in place of a model, and stands for the model of its run.
    """

    model: str
    run: Path | None
    recipe: Recipe | None
    by_recipe: bool


def find_model(options: EvalOptions, overrides: Sequence[str] = ()) -> EvalTarget:
    """Find the model that a recipe, a run directory or a model names; raises CheckpointError for a run that has no model yet."""
    target = options.target
    is_recipe = target is not None and target.endswith((".yaml", ".yml"))
    files = [str(options.recipe)] if options.recipe else [str(target), *options.parts] if is_recipe else []
    if options.parts and (options.recipe or not is_recipe):
        raise RecipeError(f"{options.parts[0]}: expected one model, or only recipes; leave out all others")
    recipe = load_recipe(files, overrides) if files else None
    if recipe is not None and target in (None, files[0]):
        run = expanded(recipe.run.output_dir)
        if not (run / MARKER).is_file() and not (run / "model").is_dir():
            raise CheckpointError(f"{run / 'model'}: no such model; run `{shlex.join(['rmtrain', 'train', *files])}` first")
        return EvalTarget(model_of(str(run)), run, recipe, by_recipe=True)
    if target is None:
        raise RecipeError("expected a recipe, a run directory or a model; see `rmtrain eval --help`")
    path = expanded(target)
    for run in (path, path.parent) if path.name == "model" else (path,):
        if (run / RECIPE).is_file() and (run / "model").is_dir():
            return EvalTarget(str(run / "model"), run, recipe, by_recipe=False)
    return EvalTarget(model_of(target), None, recipe, by_recipe=False)


def find_data(options: EvalOptions) -> tuple[EvalTarget, Recipe | EvaluationRecipe]:
    """Find the model to evaluate, and the recipe of the data: that of its run, the one that is named, or `--data` alone.

    Raises:
        RecipeError: an invalid recipe, or no data. CheckpointError: as `find_model`.
    """
    overrides = list(options.overrides)
    if options.data is not None:
        overrides = [*data_overrides(options.data), *overrides]
    target = find_model(options, overrides)
    recipe: Recipe | EvaluationRecipe
    if target.recipe is not None:
        recipe = target.recipe
    elif target.run is not None:
        recipe = load_recipe(target.run / RECIPE, overrides)
    elif options.data is not None:
        recipe = evaluation_recipe(options.data, options.overrides)
    else:
        raise RecipeError(f"{target.model}: name the data to evaluate on, with --data FILE or --recipe RECIPE")
    if options.data is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": ()})})
    return target, recipe


def output_folder(options: EvalOptions, target: EvalTarget, name: str | None) -> Path:
    """Return the folder for scores: `--output`, or `name` in the run or the directory of the model, None: the run itself.

    A model of the Hub has its folder in the cache of tokenized data. Raises RecipeError, before anything is scored, if it is not writable.
    """
    home = target.run or expanded(target.model)
    if target.run is None and not home.is_dir():
        cache = str(Data.model_fields["cache_dir"].get_default(call_default_factory=True))
        home = expanded(cache, "data.cache_dir") / "evaluations" / target.model.replace("/", "--")
    folder = options.output or (home if name is None else home / name)
    if problem := unwritable(folder):
        raise RecipeError(f"--output: {problem}; set --output to another directory")
    return folder


def _evaluate_pairs(options: EvalOptions, console: Console) -> CommandResult:
    """Evaluate a model on the evaluation data of its own recipe, of a recipe that is named, or on `--data`.

    A run's own recipe brings its gates, and the scores go into the run directory; scores of other data or with overrides go to
    `evaluations/NAME` in it, or in the directory of the model.
    """
    accelerator = start_evaluation()
    target, recipe = find_data(options)
    is_own = options.data is None and (target.by_recipe or (target.run is not None and target.recipe is None))
    gates = parse_gates(options.fail_under)
    if is_own and isinstance(recipe, Recipe):
        gates = recipe.evaluation.pair_gates | gates
    name = recipe.data.eval[0].title if options.data is not None else recipe.run.name if isinstance(recipe, Recipe) else ""
    part = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "data"
    unchanged = is_own and (target.by_recipe or not options.overrides)
    folder = output_folder(options, target, None if unchanged else f"evaluations/{part}")

    result = evaluate(target.model, recipe, console, allow_template_change=options.allow_template_change)
    scores = folder / "scores.jsonl"
    passed = check_gates(result.summary, gates)

    def write() -> None:
        write_scores(scores, result.scored, result.settings)
        if options.report is not None:
            run = target.run
            title = recipe.run.name if run is not None and isinstance(recipe, Recipe) else Path(target.model).name
            write_report(options.report, title, result, gates=passed, recipe=recipe, run=run)

    run_on_main(accelerator, write)
    return pairs_result(result, passed, scores, options.report)


def evaluate(
    model: str | Path,
    recipe: Recipe | EvaluationRecipe | str | Path | None = None,
    console: Console | None = None,
    *,
    data: str | Path | None = None,
    allow_template_change: bool = False,
) -> EvaluationResult:
    """Evaluate a reward model on the evaluation data of a recipe: `data.eval`, and the held-out rows of `data.train`.

    Processes that are launched together share the rows, and each gets all of the numbers. Nothing is written.

    Args:
        model: directory or Hub id of a model with one output, or of an adapter; a run; or the file of a recipe, for the model of its run.
        recipe: its sections data, batching, objective and training.precision are used; None: that of the run.
        console: shows progress; None: stderr.
        data: file, directory or Hub dataset to evaluate on in place of the recipe's data.
        allow_template_change: score with a chat template that is not the model's.

    Raises:
        CheckpointError: no model, no head, or another chat template than the model was trained with.
        RecipeError, DataError: see `prepare` and `start_evaluation`; or there is nothing to evaluate on.
        Stopped: a signal came to one of several processes.
    """
    if not isinstance(recipe, Recipe | EvaluationRecipe):
        file = None if recipe is None else Path(recipe)
        target, recipe = find_data(EvalOptions(target=str(model), recipe=file, data=None if data is None else str(data)))
        model = target.model
    elif data is not None:
        raise RecipeError("data: a recipe as an object has its own; leave one out")
    model = model_of(str(model))
    accelerator = start_evaluation()
    console = (console or TerminalConsole(stderr=True)) if accelerator.is_main_process else TerminalConsole(quiet=True)
    reward_model, tokenizer = load_reward_model(model, model_device(accelerator), allow_template_change=allow_template_change)
    reward_model.computing = computing_type(recipe.training.precision, reward_model.device)
    data_tokenizer = tokenizer_for_data(model, tokenizer, recipe.data, allow_template_change)
    template = template_hash(data_tokenizer)
    with ReadingProgress(console) as progress:
        if any(source.holds_out for source in recipe.data.train):
            rows = prepare(recipe.data, data_tokenizer, progress).eval
        else:
            rows = prepare_evaluation(recipe.data.eval, recipe.data, data_tokenizer, progress)
    for source, problem in rows.waterfall.unset_variables():
        console.print(Text(one_line(f"note: {source}: {problem}")))
    if not len(rows):
        raise RecipeError("nothing to evaluate on; set data.eval or a holdout in data.train, or pass --data")

    objective = objective_of_model(model, recipe)
    layout = choose_layout(reward_model, recipe.batching.layout, probing_comparisons(rows), tokenizer.pad_token_id)
    costs = Costs.of(rows, layout)
    budget = scoring_budget(recipe.batching.max_tokens, costs)
    plan = ScoringPlan.of(rows, layout, costs, budget, tokenizer.pad_token_id)
    with stopping(accelerator) as stop:
        result = evaluate_plan(reward_model, plan, accelerator, objective, stop.check)
    settings = pair_settings(model, rows, recipe.data, objective, reward_model.computing, template)
    reader = TokenReader(reward_model, layout, tokenizer.pad_token_id, budget)
    return replace(with_errors(result, rows, tokenizer, reader), settings=settings, pad_token=replaced_pad_token(tokenizer))


def objective_of_model(model: str, recipe: Recipe | EvaluationRecipe) -> Objectives:
    """Return the objective of an evaluation: that of the recipe, with the scale of targets that the model was trained with.

    Where the recipe is only `--data`, and names none, it is the one that the model was trained with.
    """
    facts = ModelRef(model, None, "model").read_json(FACTS) or {}
    try:
        trained = OBJECTIVE.validate_python(facts["objective"])
    except (KeyError, ValidationError):  # a model that was not trained by rmtrain, or by an older version
        return recipe.objective
    if isinstance(recipe, EvaluationRecipe) and "objective" not in recipe.model_fields_set:
        return trained
    return with_scale_of(recipe.objective, trained)


def evaluate_benchmarks(options: EvalOptions, names: str, model: str, folder: Path, console: Console) -> CommandResult:
    """Score benchmarks with a model, and write `NAME/scores.jsonl` and `NAME/scores.settings.json` of each into a folder.

    A row that is too long loses its beginning, as in RewardBench's script; none is left out.

    Raises:
        RecipeError: an unknown benchmark or gate. DataError: rows that are missing, or not of the benchmark.
        CheckpointError: no model, or no score head. Stopped: a signal came to one of several processes.
    """
    benchmarks = named(names)
    gates = parse_gates(options.fail_under, gate_names(benchmarks))
    items_of = {benchmark.name: read_items(benchmark, options.data_dir) for benchmark in benchmarks}
    accelerator = start_evaluation()
    console = console if accelerator.is_main_process else TerminalConsole(quiet=True)
    scorer = RewardScorer(
        model,
        device=model_device(accelerator),
        precision=checked_precision(options.precision),
        max_length=options.max_length,
        overlong="cut",
        allow_template_change=options.allow_template_change,
    )
    numbers: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        encoded = EncodedBenchmark.of(benchmark, items_of[benchmark.name], scorer.encoder)
        plan = scorer.plan(encoded.comparisons)
        scored = _score(encoded, scorer.model, plan, accelerator, console)
        path, settings = folder / benchmark.name / "scores.jsonl", encoded.settings(scorer.path, plan.layout, scorer.settings)
        run_on_main(accelerator, partial(write_scores, path, scored, settings))
        measured = measure(benchmark, scored)
        measured["warnings"] += encoded.warnings(settings["max_length"])
        pad_token = replaced_pad_token(scorer.tokenizer)
        numbers[benchmark.name] = {**measured, "pad_token": pad_token, "settings": settings, "scores": str(path)}
    return benchmarks_result(numbers, benchmarks, gates)


def _score(
    encoded: EncodedBenchmark, model: RewardModel, plan: ScoringPlan, accelerator: Accelerator, console: Console
) -> list[ScoredComparison]:
    """Score the rows of a benchmark on all ranks, and show the progress."""
    tokens = compact(int(plan.costs.tokens.sum()))
    console.print(f"scoring {encoded.benchmark.title}: {len(encoded.items):,} rows, {tokens} tokens as {plan.layout}")
    with stopping(accelerator) as stop, ScoringProgress(console, "micro-batches", len(plan.micro_batches)) as progress:

        def check() -> None:
            stop.check()
            progress.step(accelerator.num_processes)

        return encoded.score(model, plan, accelerator, check)
