"""`rmtrain export`: write the model of a run, or of any of its checkpoints, in a portable form, and optionally push it to the Hub."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rmtrain.command_line.model_options import ExportOptions
from rmtrain.command_line.options import CommandResult
from rmtrain.data.rows.fingerprint import tokenizer_fingerprint
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.checkpoint import Checkpoint, Checkpoints
from rmtrain.engine.checkpoint_manager import check_frozen
from rmtrain.engine.distributed import versions
from rmtrain.engine.run_check import ENVIRONMENT, STEP
from rmtrain.engine.state_dict import frozen_fingerprint, restore_model
from rmtrain.errors import CheckpointError
from rmtrain.evaluation.scores_file import OBJECTIVE
from rmtrain.files import expanded, read_json, write_text
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import Golden, check_reload, export_adapter, export_model, golden_texts
from rmtrain.model.hub import check_push, push
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import FACTS
from rmtrain.objective import with_scale_of
from rmtrain.recipe.load import MARKER, RECIPE, dump_recipe, load_recipe
from rmtrain.recipe.schema import Objectives, Recipe
from rmtrain.report.card import card_of


def export(options: ExportOptions) -> CommandResult:
    """Export, verify, and upload if requested.

    The model of a finished run is not written again, only verified.

    Raises:
        RecipeError: options that cannot be combined, or an upload that is bound to fail.
        CheckpointError: not a run, a checkpoint is damaged, the base model or tokenizer changed, or the export does not reload.
        RmtrainError: the upload failed; the export is kept, and the message has the command that repeats the upload.
    """
    options.check()
    path = expanded(options.target).resolve()
    chosen = path if STEP.fullmatch(path.name) else None
    run = path.parent.parent if chosen else path
    if not (run / MARKER).is_file() or not (run / RECIPE).is_file():
        raise CheckpointError(f"{options.target}: not a run; name a run directory, or RUN/checkpoints/step-00000120")
    recipe = load_recipe(run / RECIPE, list(options.overrides))
    if options.push:
        check_push(recipe.hub, recipe.run.name)
    is_changed = chosen or options.output or options.dtype or options.adapter
    directory, step = run / "model", None
    if directory.is_dir() and not is_changed:
        check_reload(directory)
    else:
        directory, step = _export_checkpoint(options, recipe, run, _read_checkpoint(recipe, run, chosen))
    report = f"model         {directory}, reloaded and checked" + ("" if step is None else f", of step {step:,}")
    url = None
    if options.push:
        words = ["rmtrain", "export", str(options.target), "--push", *options.overrides]
        words += ["--output", str(options.output)] if options.output else []
        words += ["--dtype", options.dtype] if options.dtype else []
        url = push(directory, recipe.hub, recipe.run.name, shlex.join(words))
        report += f"\nhub           {url}"
    return CommandResult(Text(report), {"model": str(directory), "step": step, "hub": url})


def _read_checkpoint(recipe: Recipe, run: Path, chosen: Path | None) -> Checkpoint:
    """Return the chosen checkpoint, verified, or the one whose weights the run itself would export."""
    try:
        run_id = str(json.loads((run / MARKER).read_text(encoding="utf-8"))["run_id"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{run / MARKER}: damaged") from error
    checkpoints = Checkpoints(run / "checkpoints", run_id)
    if chosen is not None:
        return checkpoints.read(chosen)
    newest = checkpoints.newest()
    if newest is None:
        raise CheckpointError(f"{run}: no checkpoint yet")
    best = newest.state["train_state"]["best_step"]
    return checkpoints.read(checkpoints.path(best)) if recipe.checkpoints.load_best_at_end and best is not None else newest


def _export_checkpoint(options: ExportOptions, recipe: Recipe, run: Path, checkpoint: Checkpoint) -> tuple[Path, int]:
    """Return the directory of the export, and the step of its weights."""
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    environment = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    trained = OBJECTIVE.validate_python(environment["objective"])
    if environment["hashes"]["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise CheckpointError(f"{run}: the tokenizer of its recipe has changed since the run was trained")
    model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    try:
        check_frozen(checkpoint.state, frozen_fingerprint(model))
        restore_model(model, checkpoint.tensors("model"))
    except CheckpointError as error:
        raise CheckpointError(*(f"{checkpoint.path}: {problem}" for problem in error.problems)) from error

    name = [f"step-{checkpoint.step:08d}", options.dtype, "adapter" if options.adapter else None]
    output = options.output or run / "exports" / "-".join(filter(None, name))
    output.parent.mkdir(parents=True, exist_ok=True)
    data, golden = checkpoint.state["plan"]["data"], golden_texts(tokenizer, recipe.data.max_length)
    origin = provenance(recipe, with_scale_of(recipe.objective, trained), data, checkpoint.step)
    if options.adapter:
        export_adapter(model, tokenizer, output, golden, origin)
        return output, checkpoint.step
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    facts, card = run / "model" / FACTS, run / "model/README.md"
    own = read_json(facts, dict) if facts.is_file() and card.is_file() else {}
    # The run's own model may have the same weights: then its facts and card also have the waterfall and the evaluation.
    is_same = own.get("step") == checkpoint.step
    rewards = own.get("rewards") if is_same else None
    export_with_card(model, tokenizer, recipe, output, golden, origin, dtype=dtype, rewards=rewards)
    if is_same:
        write_text(output / "README.md", card.read_text(encoding="utf-8"))
    return output, checkpoint.step


def export_with_card(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    directory: Path,
    golden: Golden,
    origin: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    rewards: Mapping[str, float] | None = None,
    waterfall: Mapping[str, Mapping[str, Any]] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Export a model that a recipe trained with `export_model`, whose errors are raised, and write its model card next to it.

    Args:
        origin: see `provenance`.
        rewards: those of the last evaluation, see `reward_statistics`.
        waterfall, evaluation: of the run, for the card; None if unknown.
    """
    export_model(model, tokenizer, directory, golden, {**origin, "rewards": rewards}, dtype)
    facts = read_json(directory / FACTS, dict)
    card = card_of(recipe, tokenizer, facts, waterfall=waterfall or {}, evaluation=evaluation, versions=versions())
    write_text(directory / "README.md", card)


def provenance(recipe: Recipe, objective: Objectives, data: str, step: int) -> dict[str, Any]:
    """Return what `rmtrain.json` of an export says about the run it comes from.

    Args:
        objective: that of the recipe, with what it took from the training data.
        data: key of the training data.
        step: optimizer steps of the weights.
    """
    return {
        "objective": objective.model_dump(mode="json"),
        "recipe_sha256": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        "data_key": data,
        "max_length": recipe.data.max_length,
        "step": step,
    }
