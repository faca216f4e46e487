"""`rmtrain export`: the model of a run, or of any of its checkpoints, in a form that travels, and to the Hub if asked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.commands.result import CommandResult
from rmtrain.data.rows.dataset import tokenizer_fingerprint
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.checkpoint import STEP, Checkpoint, Checkpoints
from rmtrain.engine.run_dir import ENVIRONMENT, MARKER
from rmtrain.engine.run_dir import RECIPE as RECIPE_FILE
from rmtrain.engine.start import PACKAGES
from rmtrain.engine.state_dict import frozen_fingerprint, restore_model
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import check_reload, export_adapter, export_model, golden_texts
from rmtrain.model.hub import push
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import FACTS
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.report.card import card_of

Form = Literal["merged", "adapter"]
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is to be exported, and how.

    target: a run directory, or a checkpoint in one.
    overrides: of the run's recipe; only those of `hub`.
    output: where to; None: the run's `model`, or `exports/step-N` in the run for a checkpoint.
    form: `merged` weights with the adapter beside them, or the `adapter` alone.
    dtype: of all weights but the head; None: that of the run.
    push: whether to upload it.
    """

    target: Path
    overrides: Sequence[str] = ()
    output: Path | None = None
    form: Form = "merged"
    dtype: str | None = None
    push: bool = False

    def check(self) -> None:
        """Raise RecipeError for what no export can do."""
        foreign = [override for override in self.overrides if not override.startswith("hub.")]
        if foreign:
            raise RecipeError(
                *(f"{override}: an export can only be given keys of hub; the rest is the run's" for override in foreign)
            )
        if self.dtype not in (None, *PRECISIONS):
            raise RecipeError(f"--dtype {self.dtype}: expected one of {', '.join(PRECISIONS)}")
        if self.form == "adapter" and self.dtype is not None:
            raise RecipeError("--dtype is of merged weights; an adapter is float32")
        if self.form == "adapter" and self.push:
            raise RecipeError("--push uploads merged weights with their adapter beside them; leave out --adapter")


def export(request: ExportOptions) -> CommandResult:
    """Export, verify, and upload if asked.

    A run that is finished and asked for as it is, is only verified again: its `model` is the export.

    Raises:
        RecipeError: what is asked for is not possible.
        CheckpointError: no run there, a damaged checkpoint, another base model or tokenizer, or an export that does not load as it was.
        RmtrainError: the upload failed; the export is there, and the line says how to repeat the upload.
    """
    request.check()
    run, chosen = _find_run(request.target)
    recipe = load_recipe(run / RECIPE_FILE, list(request.overrides))
    as_it_is = chosen is None and request.output is None and request.dtype is None and request.form == "merged"
    if as_it_is and (run / "model").is_dir():
        directory, step = run / "model", None
        check_reload(directory)
    else:
        directory, step = _export_checkpoint(request, recipe, run, chosen)
    command = f"rmtrain export {request.target} --push" + "".join(f" {override}" for override in request.overrides)
    command += (f" --output {request.output}" if request.output else "") + (f" --dtype {request.dtype}" if request.dtype else "")
    url = push(directory, recipe.hub, recipe.run.name, command) if request.push else None
    return _outcome(directory, step, url)


def _find_run(target: Path) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint in it if one was named."""
    path = target.expanduser().resolve()
    is_checkpoint = STEP.fullmatch(path.name) is not None
    run = path.parent.parent if is_checkpoint else path
    if not (run / MARKER).is_file() or not (run / RECIPE_FILE).is_file():
        raise CheckpointError(f"{target}: expected the directory of a run, or a checkpoint such as RUN/checkpoints/step-00000120")
    return run, path if is_checkpoint else None


def _export_checkpoint(request: ExportOptions, recipe: Recipe, run: Path, chosen: Path | None) -> tuple[Path, int]:
    checkpoint = _read_checkpoint(recipe, run, chosen)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    _check_tokenizer(run, tokenizer)
    model = _restored(recipe, tokenizer, checkpoint)
    output = request.output or run / "exports" / _name(request, checkpoint.step)
    output.parent.mkdir(parents=True, exist_ok=True)
    golden = golden_texts(tokenizer, recipe.data.max_length)
    facts = {
        "recipe_sha256": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        "data_key": checkpoint.state["plan"]["data"],
        "max_length": recipe.data.max_length,
        "step": checkpoint.step,
    }
    if request.form == "adapter":
        return export_adapter(model, tokenizer, output, golden, facts), checkpoint.step
    dtype = None if request.dtype is None else getattr(torch, request.dtype)
    export_model(model, tokenizer, output, golden, facts, dtype)
    card = _card_of_run(run, checkpoint.step)
    if card is None:
        versions = {name: version(name) for name in PACKAGES}
        card = card_of(recipe, tokenizer, waterfall={}, evaluation=None, versions=versions)
    (output / "README.md").write_text(card, encoding="utf-8")
    return output, checkpoint.step


def _card_of_run(run: Path, step: int) -> str | None:
    """The card of the run's own model, where that has the weights of the same step."""
    facts, card = run / "model" / FACTS, run / "model/README.md"
    if not facts.is_file() or not card.is_file() or json.loads(facts.read_text(encoding="utf-8")).get("step") != step:
        return None
    return card.read_text(encoding="utf-8")


def _name(request: ExportOptions, step: int) -> str:
    return "-".join([f"step-{step:08d}", *filter(None, [request.dtype, "adapter" if request.form == "adapter" else None])])


def _read_checkpoint(recipe: Recipe, run: Path, chosen: Path | None) -> Checkpoint:
    """The chosen checkpoint, verified; else the one whose weights the run itself would export."""
    try:
        run_id = str(json.loads((run / MARKER).read_text(encoding="utf-8"))["run_id"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{run / MARKER}: damaged") from error
    checkpoints = Checkpoints(run / "checkpoints", run_id)
    if chosen is not None:
        return checkpoints.read(chosen)
    newest = checkpoints.newest()
    if newest is None:
        raise CheckpointError(f"{run}: it has no checkpoint yet")
    best = newest.state["position"]["best_step"]
    return checkpoints.read(checkpoints.path(best)) if recipe.checkpoints.load_best_at_end and best is not None else newest


def _check_tokenizer(run: Path, tokenizer: Any) -> None:
    hashes = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))["hashes"]
    if hashes["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise CheckpointError(f"{run}: the tokenizer that its recipe names is no longer the one it was trained with")


def _restored(recipe: Recipe, tokenizer: Any, checkpoint: Checkpoint) -> RewardModel:
    model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    try:
        if checkpoint.state["frozen"] != frozen_fingerprint(model):
            raise CheckpointError("the frozen weights of the base model are not those it was trained on")
        restore_model(model, checkpoint.tensors("model"))
    except CheckpointError as error:
        raise CheckpointError(*(f"{checkpoint.path}: {problem}" for problem in error.problems)) from error
    return model


def _outcome(directory: Path, step: int | None, url: str | None) -> CommandResult:
    where = "" if step is None else f", of step {step:,}"
    lines: list[RenderableType] = [Text(f"model         {directory}, reloaded and checked{where}")]
    lines += [Text(f"hub           {url}")] if url else []
    return CommandResult(Group(*lines), {"model": str(directory), "step": step, "hub": url})
