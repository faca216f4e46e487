"""`rmtrain train`: the whole run, read from top to bottom."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import set_seed
from rich.console import Console, Group, RenderableType
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs, Plan, StepLoader, check_budget
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.evaluate_scores import gate_values
from rmtrain.commands.evaluator import Evaluator, read_benchmarks
from rmtrain.commands.export import export_with_card, provenance
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks.findings import check_rankings, findings_of
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer, replaced_pad_token
from rmtrain.engine.checkpoint_manager import CheckpointManager
from rmtrain.engine.distributed import (
    environment,
    graceful_shutdown,
    leave_group,
    run_on_main,
    start,
)
from rmtrain.engine.loop import build_optimizer, learning_rate, warn_of_lost_updates
from rmtrain.engine.loop import train as run_loop
from rmtrain.engine.memory import peak_memory, token_budget
from rmtrain.engine.run_check import check_output_dir
from rmtrain.engine.run_dir import RunDirectory, checkpoint_of_other_length
from rmtrain.engine.run_log import Meter, RunLog, start_trackers
from rmtrain.engine.state_dict import restore_model
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError, RecipeError, RmtrainError, Stopped
from rmtrain.evaluation.benchmarks.base import Item
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS, prompt_sources
from rmtrain.evaluation.gates import check_gates
from rmtrain.evaluation.metrics import EvaluationResult, reward_statistics
from rmtrain.evaluation.scores_file import pair_settings, write_scores
from rmtrain.evaluation.token_rewards import TokenReader
from rmtrain.model.build import build_reward_model, check_forward
from rmtrain.model.export_dir import Golden, check_exportable, golden_texts
from rmtrain.model.hub import check_push, push
from rmtrain.model.layout_probe import choose_layout, probing_comparisons
from rmtrain.model.mixture import check_balance
from rmtrain.model.reward_model import (
    Adapted,
    RewardModel,
    adapted,
    computing_type,
    trainable_summary,
)
from rmtrain.model.saved_model import template_hash
from rmtrain.objective import for_training
from rmtrain.recipe.load import as_recipe
from rmtrain.recipe.schema import Objectives, PlackettLuce, PretrainedModel, Recipe, objective_for
from rmtrain.report.console import compact
from rmtrain.report.hardest_errors import with_errors
from rmtrain.report.page import write_report
from rmtrain.report.progress import ReadingProgress, TrainingProgress
from rmtrain.report.run_view import adapters_line, next_steps, python_command, rmtrain_command, run_header
from rmtrain.report.tables import findings_notes, waterfall_table
from rmtrain.report.terminal import TerminalConsole

logger = logging.getLogger("rmtrain")

OPTIMIZER_STATE = {"adamw": 2.0, "adamw_8bit": 0.5}
"""Size of the optimizer state, as a multiple of the size of the trained weights."""


class Inputs(NamedTuple):
    """Everything that a run reads before it builds its model."""

    recipe: Recipe
    objective: Objectives
    tokenizer: PreTrainedTokenizerBase
    golden: Golden
    data: PreparedData
    findings: Mapping[str, Mapping[str, Any]]
    benchmarks: Mapping[str, Sequence[Item]]


def train(
    recipe: Recipe | str | Path, console: Console | None = None, *, fresh: bool = False, resume: Path | None = None
) -> CommandResult:
    """Train, evaluate and export a reward model. An interrupted run resumes from its last checkpoint.

    Args:
        recipe: the run, or the file of its recipe.
        console: where progress is shown; None: stderr.
        fresh: start over; an existing run in `run.output_dir` is renamed.
        resume: checkpoint to resume from; None: the newest valid one.

    Raises:
        RmtrainError: one line per problem; nothing is written before recipe, data and model have been accepted.
        Stopped: a signal ended the run after a step, and a checkpoint was saved.
    """
    recipe = as_recipe(recipe)
    strategy = start(recipe)
    accelerator = strategy.accelerator
    console = (console or TerminalConsole(stderr=True)) if accelerator.is_main_process else TerminalConsole(quiet=True)
    run_on_main(accelerator, partial(check_outputs, recipe, fresh, resume))

    # Rows to tokens, and what is wrong with them.
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        data = prepare(recipe.data, tokenizer, progress)
    findings = findings_of(data, recipe.data, tokenizer, prompt_sources(recipe.data.benchmarks))["splits"]
    for note in findings_notes(findings):
        console.print(Text(f"note: {note}"))
    objective = for_training(recipe.objective, data.train)
    golden = golden_texts(tokenizer, recipe.data.max_length)
    inputs = Inputs(recipe, objective, tokenizer, golden, data, findings, read_benchmarks(recipe.evaluation))

    # The model, and the micro-batches it computes.
    model = build_model(recipe, tokenizer, inputs.golden, int(data.train.longest.max()), strategy)
    meter = Meter(accelerator, flos_per_token(model))
    parameters, changed = trainable_summary(model), adapted(model)
    layout = prepare_model(model, recipe, data.train, tokenizer, strategy)
    budget = token_budget(recipe, data.train, layout, tokenizer, strategy)
    plan = make_plan(recipe, data, layout, budget, accelerator.num_processes)
    loader = StepLoader(data.train, plan, layout, tokenizer.pad_token_id, accelerator.process_index)
    run_on_main(accelerator, partial(check_length, recipe, plan, fresh, resume))

    hashes = {"data": data.train.key, "tokenizer": data.tokenizer_fingerprint, "template": str(template_hash(tokenizer))}
    facts = {"objective": objective.model_dump(mode="json"), "steps": plan.total_steps}
    record = environment(strategy, model.computing, hashes) | facts
    directory = run_on_main(accelerator, partial(RunDirectory.open, recipe, record, fresh, resume))
    keys = recipe.training.model_dump(include={"batch_size", "epochs", "max_steps"})
    order = {"data": data.train.key, "seed": recipe.run.seed, **keys}
    checkpoints = CheckpointManager(strategy, meter, directory, recipe.checkpoints, order, recipe.evaluation.early_stopping)
    display = TrainingProgress(console, len(loader), accelerator.num_processes)
    if model.new_head and not directory.continues:
        logger.info("new head, seed %d", recipe.run.seed)
    with closing(directory), graceful_shutdown(accelerator) as shutdown:
        console.print(header(inputs, loader, strategy, directory, parameters, changed))
        if directory.continues:
            checkpoints.resume(resume)
        if checkpoints.state.step < plan.total_steps:
            checkpoints.check_room(OPTIMIZER_STATE[recipe.optimizer.name])
        try:
            with start_trackers(accelerator, recipe, directory) as trackers, display:
                log = RunLog(accelerator, directory.path, trackers, display)
                evaluator = Evaluator(
                    *(recipe, objective, tokenizer, data.eval, inputs.benchmarks, model, layout, strategy, log, shutdown),
                    last=plan.total_steps,
                )
                evaluate_at = evaluator if evaluator.has_data else None
                last = run_loop(recipe, objective, strategy, loader, meter, log, evaluate_at, checkpoints, shutdown)
                step = trained = checkpoints.state.step
                log_early_end(recipe, trained, plan.total_steps)
                if recipe.checkpoints.load_best_at_end and (best := checkpoints.load_best()) is not None:
                    logger.info("exporting the weights of step %d, the best by %s", best, recipe.checkpoints.best)
                    step, last = best, evaluator(step, final=True)
                else:
                    evaluator.finish(step, last)
                last = read_errors(inputs, last, TokenReader(strategy.model, layout, tokenizer.pad_token_id, budget))
                weights = strategy.weights() if strategy.shards else None
                peaks = peak_memory(accelerator)
                leave_group(accelerator)  # nobody waits for the export, which the main process does alone
                upload: Mapping[str, Any] = {"hub": None, "hub_problem": None}
                if accelerator.is_main_process:
                    with shutdown.raise_immediately():
                        if weights is not None:
                            model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
                            restore_model(model, weights)
                        write_results(inputs, model, directory, last, evaluator, step, record["computing"])
                        directory.finish()
                        upload = push_if_enabled(recipe, directory.model)
                return result(inputs, directory, last, evaluator.numbers, trained, trained < plan.total_steps, peaks, upload)
        except Stopped as stopped:
            raise Stopped(stopped.signal, how_to_resume(stopped, directory, checkpoints)) from None
        except RmtrainError as error:
            directory.fail(error)
            raise


def check_outputs(recipe: Recipe, fresh: bool, resume: Path | None) -> None:
    """Raise what would otherwise fail after the data is prepared, or after training: the run directory, and the upload."""
    if fresh and resume is not None:
        raise RecipeError("--fresh and --resume are mutually exclusive; leave one out")
    check_output_dir(recipe, fresh, resume)
    if recipe.hub.push:
        check_push(recipe.hub, recipe.run.name)


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, golden: Golden, longest: int, strategy: Strategy
) -> RewardModel:
    """Build the model on the CPU, computing in the recipe's precision; its layers are left unread if the strategy loads them one by one.

    Args:
        longest: tokens of the longest sequence of the training data.

    Raises:
        RecipeError: see `build_reward_model`; or what would fail after training: `data.max_length` is above the positions of the
            model, or an export could not be loaded.
    """
    set_seed(recipe.run.seed)
    model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed, strategy.by_layer)
    model.computing = computing_type(recipe.training.precision, strategy.accelerator.device)
    if recipe.objective.router_balance is not None:
        check_balance(model.backbone)
    positions, max_length = model.max_positions, recipe.data.max_length
    if positions is not None and max_length > positions:
        raise RecipeError(f"data.max_length: the model has {positions} positions, got {max_length}; set {positions} or less")
    made_for = model.declared_positions
    if made_for is not None and longest > made_for:
        problem = (
            "the model is made for %d tokens, rows have up to %d: benchmarks and servers will cut them; set data.max_length to %d"
        )
        logger.warning(problem, made_for, longest, made_for)
    check_exportable(model, tokenizer, golden)
    return model


def prepare_model(
    model: RewardModel, recipe: Recipe, rows: TokenizedData, tokenizer: PreTrainedTokenizerBase, strategy: Strategy
) -> Layout:
    """Hand the model to the strategy, which may load and shard it, and return the layout for training and scoring.

    Raises `CheckpointError` or `RecipeError` for wrong weights or a wrong forward, and as `choose_layout`.
    """
    by_layer = model.layer_weights is not None
    strategy.place(model)
    warn_of_lost_updates(model, recipe.training, recipe.optimizer.lr)
    strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
    if by_layer:
        check_forward(model.backbone, model.head, tokenizer, model.run)
    return choose_layout(model, recipe.batching.layout, probing_comparisons(rows), tokenizer.pad_token_id)


def flos_per_token(model: RewardModel) -> int:
    """Return 6 operations for each parameter that is not an embedding: forward and backward (arXiv:2001.08361, section 2.1)."""
    return 6 * int(model.backbone.num_parameters(exclude_embeddings=True))


def make_plan(recipe: Recipe, data: PreparedData, layout: Layout, max_tokens: int, world: int) -> Plan:
    """Plan the steps of a recipe on `world` processes.

    Raises:
        RecipeError: a comparison of either split is above the budget, or warm-up and decay of the learning rate are longer than the run.
        DataError: `plackett_luce` and preferences that do not rank all responses.
    """
    costs = Costs.of(data.train, layout)
    check_budget(costs, data.train.ids, max_tokens)
    if len(data.eval) and recipe.batching.max_tokens != "auto":
        check_budget(Costs.of(data.eval, layout), data.eval.ids, max_tokens)
    ranked = [tag for tag in data.train.waterfall.sources if isinstance(objective_for(recipe.objective, tag), PlackettLuce)]
    for tag in ranked:
        check_rankings(data.train[int(number)] for number in np.flatnonzero(data.train.is_of_source(tag)))
    plan = Plan.of(recipe, costs, max_tokens, world)
    learning_rate(recipe.optimizer, plan.total_steps)  # raises where the run is too short for it
    return plan


def check_length(recipe: Recipe, plan: Plan, fresh: bool, resume: Path | None) -> None:
    """Raise CheckpointError if the run in `run.output_dir` cannot be resumed with other `training.epochs` or `max_steps`.

    It can where the steps that are done had the learning rates that they would have in a run of the new length. Both runs are equal then.
    """
    changes, checkpoint = ([], None) if fresh else checkpoint_of_other_length(recipe, resume)
    if checkpoint is None:
        return
    saved, done, place = checkpoint.state["plan"], checkpoint.step, ", ".join(changes)
    older = replace(plan, epochs=saved["epochs"], max_steps=saved["max_steps"])
    if plan.total_steps < done:
        raise CheckpointError(
            f"{checkpoint.path}: {place}: {done} steps are done, and the run would have {plan.total_steps}; set more"
        )
    before, now = (learning_rate(recipe.optimizer, each.total_steps) for each in (older, plan))
    differs = next((step + 1 for step in range(done) if before(step) != now(step)), None)
    if differs is not None:
        settings = recipe.optimizer
        reason = f"step {differs} would have had another learning rate (schedule {settings.schedule}, warm-up {settings.warmup})"
        raise CheckpointError(
            f"{checkpoint.path}: {place}: {reason}; change it back, choose another run.output_dir, or use --fresh"
        )


def header(
    inputs: Inputs,
    loader: StepLoader,
    strategy: Strategy,
    directory: RunDirectory,
    parameters: Mapping[str, Mapping[str, int]],
    changed: Adapted | None,
) -> RenderableType:
    """Describe what is about to be trained, on what data, and how it is packed."""
    recipe, data, accelerator = inputs.recipe, inputs.data, strategy.accelerator
    plan, model = loader.plan, recipe.model
    padded, computed = plan.padded_epoch(), plan.computed_epoch()
    packing = (
        f"{loader.layout}: {compact(computed)} tokens an epoch, {padded / computed:.1f} times fewer than {compact(padded)} in padded "
        f"batches; about {plan.micro_batches_per_step():.1f} micro-batches a step of at most {plan.max_tokens:,}"
    )
    computing = computing_type(recipe.training.precision, accelerator.device)
    facts = run_header(
        name=recipe.run.name,
        directory=str(directory.path),
        device=f"{accelerator.num_processes} × {accelerator.device.type}, {strategy.name}, computing in {computing}",
        model=model.path if isinstance(model, PretrainedModel) else f"{model.scratch.architecture} from scratch",
        parameters=sum(parameters["total"].values()),
        trainable=sum(parameters["trainable"].values()),
        comparisons=len(data.train),
        tokens=int(data.train.total_tokens.sum()),
        steps=plan.total_steps,
        batch_size=plan.batch_size,
        notes={**({} if changed is None else {"adapters": adapters_line(*changed)}), "layout": packing},
    )
    return Group(waterfall_table(data.train.waterfall.to_json()), Text(), facts, Text())


def read_errors(inputs: Inputs, last: EvaluationResult | None, reader: TokenReader) -> EvaluationResult | None:
    """Return the last evaluation with its hardest errors, for the report; all ranks, because a sharded model reads them again."""
    return None if last is None else with_errors(last, inputs.data.eval, inputs.tokenizer, reader)


def write_results(
    inputs: Inputs,
    model: RewardModel,
    directory: RunDirectory,
    last: EvaluationResult | None,
    evaluator: Evaluator,
    step: int,
    computing: str,
) -> None:
    """Write the scores of the last evaluation and of benchmarks, the exported model with its card, and the report.

    Raises:
        CheckpointError: the export does not reload, or reloads with other rewards.
    """
    recipe, objective, tokenizer, golden, data, findings, _ = inputs
    path, summary = directory.path, None if last is None else last.summary
    if last is not None:
        template = template_hash(tokenizer)
        settings = pair_settings(str(directory.model), data.eval, recipe.data, objective, computing, template)
        write_scores(path / "scores.jsonl", last.scored, settings)
    evaluator.write_scores(path)
    waterfalls = {name: split.waterfall.to_json() for name, split in (("train", data.train), ("eval", data.eval)) if len(split)}
    export_with_card(
        *(model, tokenizer, recipe, directory.model, golden, provenance(recipe, objective, data.train.key, step)),
        rewards=None if last is None else reward_statistics(last.scored),
        waterfall=waterfalls["train"],
        evaluation=summary,
    )
    shutil.copyfile(directory.model / "golden.json", path / "golden.json")
    write_report(
        path / "report.html",
        recipe.run.name,
        last,
        gates=passed_gates(recipe, summary, evaluator.numbers),
        benchmarks=evaluator.numbers,
        recipe=recipe,
        run=path,
        waterfall=waterfalls,
        findings=findings,
    )


def passed_gates(
    recipe: Recipe, summary: Mapping[str, Any] | None, benchmarks: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the gates of a recipe, see `check_gates`, given the last evaluation and the last numbers of its benchmarks."""
    values = gate_values([BENCHMARKS[name] for name in benchmarks], benchmarks)
    return check_gates({**(summary or {}), **values}, recipe.evaluation.gates)


def push_if_enabled(recipe: Recipe, model: Path) -> dict[str, Any]:
    """Upload the model if `hub.push` is set; return its address, or the problem. A failed upload does not undo the run."""
    if not recipe.hub.push:
        return {"hub": None, "hub_problem": None}
    try:
        return {"hub": push(model, recipe.hub, recipe.run.name), "hub_problem": None}
    except RmtrainError as error:
        return {"hub": None, "hub_problem": "; ".join(error.problems)}


def log_early_end(recipe: Recipe, step: int, steps: int) -> None:
    """Print why a run ended before its last step, if it did."""
    if step < steps and (stopping := recipe.evaluation.early_stopping) is not None:
        evaluations = f"{stopping.patience} evaluations" if stopping.patience > 1 else "1 evaluation"
        logger.info("early stopping after step %d of %d: %s has not improved in %s", step, steps, stopping.metric, evaluations)


def result(
    inputs: Inputs,
    directory: RunDirectory,
    last: EvaluationResult | None,
    benchmarks: Mapping[str, Mapping[str, Any]],
    steps: int,
    stopped_early: bool,
    peaks: Sequence[int],
    upload: Mapping[str, Any],
) -> CommandResult:
    """Summarize a finished run, given the number of steps that it trained."""
    path, summary = directory.path, None if last is None else last.summary
    recipe = inputs.recipe
    document = {
        "directory": str(path.resolve()),
        "model": str(directory.model.resolve()),
        "steps": steps,
        "stopped_early": stopped_early,
        "evaluation": summary,
        "benchmarks": dict(benchmarks),
        "gates": passed_gates(recipe, summary, benchmarks),
        **upload,
        "pad_token": replaced_pad_token(inputs.tokenizer),
        "peak_memory": peaks,
    }
    by_rank = ", ".join(f"{peak / 1e9:.2f}" for peak in peaks)
    ranks = f" on ranks 0 to {len(peaks) - 1}" if len(peaks) > 1 else ""
    lines = (
        f"\nmodel         {directory.model}, reloaded and checked\nreport        {path / 'report.html'}: how good it is, and where it "
        f"fails\nmemory        at most {by_rank} GB{ranks}"
    )
    # In JSON's quotes, since the shell's are single ones.
    model = json.dumps(str(directory.model), ensure_ascii=False)
    code = f'from rmtrain import RewardScorer; print(RewardScorer({model})(["2 + 2 = ?"], ["4"]))'
    commands = [("score in Python; transformers loads it as well", python_command(code))]
    if last is not None:
        commands.insert(
            0, ("evaluate it again; --data FILE for other pairs, --fail-under for CI", rmtrain_command("eval", str(path)))
        )
    finished = f"the run in {path} is finished, and its model is in {directory.model}"
    return CommandResult(Text(lines), document, next_steps(commands), finished)


def how_to_resume(stopped: Stopped, directory: RunDirectory, checkpoints: CheckpointManager) -> str:
    """Return the last line of a run that was stopped by a signal."""
    signal = stopped.signal.name
    if directory.is_finished:
        return f"stopped by {signal} during the upload; the run is finished, and its model is in {directory.model}"
    if checkpoints.saved_step is None:
        return f"stopped by {signal} before the first checkpoint; run the same command to start over"
    return f"stopped by {signal} after step {checkpoints.saved_step}, saved in {directory.path}; run the same command to resume"
