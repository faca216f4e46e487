"""`train --dry-run`: it has the plan of the run, starts and writes nothing, and reports which strategies would fit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from rmtrain.command_line.options import TrainOptions
from rmtrain.commands.dry_run import _row, dry_run, launch_of
from rmtrain.commands.train import make_plan
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.memory import token_budget
from rmtrain.engine.memory_estimate import MemoryEstimate
from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import BradleyTerry, Recipe
from rmtrain.report.run_view import CONFIGS
from tests.forks import rmtrain
from tests.model.builders import make_base, make_tokenizer
from tests.runs import ROOT, tiny_recipe

QUIET = Console(quiet=True)
LARGE = {"scratch": {"architecture": "llama", "hidden_size": 2048, "layers": 8, "heads": 16, "vocab_size": 300}}


def document_of(recipe: Recipe, **options: Any) -> dict[str, Any]:
    return dry_run(recipe, QUIET, TrainOptions(**options)).document


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in document["strategies"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """53 rows, in seven steps an epoch."""
    return tiny_recipe(tmp_path_factory.mktemp("dry"), rows=53, training={"epochs": 2, "max_steps": 11})


@pytest.mark.parametrize(("layout", "world"), [("shared_prefix", 1), ("padded", 1), ("padded", 3)])
def test_numbers_are_those_of_the_plan(recipe: Recipe, layout: Any, world: int) -> None:
    """Steps, tokens and micro-batches are those that a run would follow."""
    changed = recipe.model_copy(update={"batching": recipe.batching.model_copy(update={"layout": layout, "max_tokens": 200})})
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    prepared = prepare(recipe.data, tokenizer)
    plan = make_plan(changed, prepared, layout, 200, world)
    document = document_of(changed, processes=world)
    assert (document["steps"], document["batch_size"]) == (plan.total_steps, plan.batch_size)
    assert document["tokens_per_epoch"] == plan.computed_epoch()
    assert document["tokens"] == plan.computed_epoch() * plan.total_steps // plan.steps_per_epoch
    pieces = [piece for n in range(plan.total_steps) for rank in plan.step(n).micro_batches for piece in rank if len(piece)]
    assert document["largest_micro_batch"] == max(map(plan.costs.of_micro_batch, pieces)) <= 200
    assert document["micro_batches_per_step"] == plan.micro_batches_per_step() > 1, "guard: steps were cut"


def test_only_the_configuration_is_read(tmp_path: Path) -> None:
    """A pretrained model needs no weights for a dry run, which writes nothing."""
    base = make_base(tmp_path / "base", make_tokenizer())
    weights = base / "model.safetensors"
    size, _ = weights.stat().st_size, weights.unlink()
    recipe = tiny_recipe(tmp_path, data={"max_length": 128}).model_dump()
    recipe["model"] = {"path": str(base)}
    document = document_of(Recipe.model_validate(recipe))
    assert not (tmp_path / "run").exists()
    assert 0.5 < document["parameters"] * 4 / size < 1.5, "guard: the weights that were there are those that were counted"


def test_json_names_what_would_fit(tmp_path: Path) -> None:
    """The command prints one document, starts no process, and ends with 0 also where nothing fits."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(tiny_recipe(tmp_path, model=LARGE, optimizer={"lr": 1e-4})))
    options = ("--dry-run", "--gpu-memory", "9", "--processes", "4", "--accelerate-config")
    result = rmtrain("train", str(file), *options, "ddp", "--json")
    document = json.loads(result.stdout)
    rows = by_name(document)
    assert result.returncode == 0, "a report does not gate"
    assert (document["strategy"], document["processes"], document["fits"]) == ("ddp", 4, False)
    assert not rows["ddp"]["fits"]
    assert rows["fsdp2"]["fits"]
    assert rows["fsdp2"]["processes"] == 4
    assert rows["fsdp2_offload"]["host"] > rows["fsdp2"]["host"] == 0
    assert "--processes 4 --accelerate-config fsdp2" in " ".join(result.stderr.split())
    assert "joined" not in result.stderr
    assert not (tmp_path / "run").exists()
    assert all(row["memory"] == 9 * 10**9 for row in rows.values())
    for row in rows.values():
        assert row["total"] == sum(row[key] for key in ("weights", "gradients", "optimizer", "buffers", "activations"))
        assert row["fits"] == (max(row["total"], row["start"]) <= 0.9 * row["memory"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--measure",), ("--measure", "--dry-run")),
        (("--dry-run", "--fresh"), ("--dry-run", "--fresh", "--resume")),
    ],
)
def test_conflicting_options_are_refused(recipe: Recipe, tmp_path: Path, options: Any, named: Any) -> None:
    """One line that names them, and exit code 2."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    result = rmtrain("train", str(file), *options)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert all(name in errors[0] for name in named)
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_measuring_needs_the_device(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are computed here, so they show nothing about a GPU elsewhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError) as refused:
        document_of(recipe, gpu_memory=80.0, measure=True)
    assert refused.value.problems[0].startswith("--measure:")
    assert "--gpu-memory" in refused.value.problems[0]


def test_unknown_configurations_are_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError) as refused:
        document_of(recipe, accelerate_config="nowhere")
    assert all(name in refused.value.problems[0] for name in ("--accelerate-config", "nowhere", "fsdp2"))


@pytest.mark.parametrize("name", sorted(CONFIGS.values()))
def test_each_configuration_means_its_strategy(name: str) -> None:
    assert launch_of(TrainOptions(processes=2, accelerate_config=name)) == (name.removeprefix("deepspeed_"), 2, 1)
    assert CONFIGS[name.removeprefix("deepspeed_")] == name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("offload_param_device: none", "zero3_offload_optimizer"),
        ("offload_optimizer_device: none", "offload_param_device: "),
        ("offload_param_device: nvme", "offload_param_device: "),
        ("zero_stage: 2", "offload_param_device: "),
        ("zero_stage: 0", "zero_stage: "),
    ],
)
def test_own_offload_is_read_or_refused(change: str, expected: str, tmp_path: Path) -> None:
    """As by a run, with the file and the key."""
    text, key = (ROOT / "configs/accelerate/deepspeed_zero3_offload.yaml").read_text(), change.partition(":")[0]
    own = tmp_path / "own.yaml"
    own.write_text(re.sub(rf"^  {key}: .*", f"  {change}", text, flags=re.MULTILINE))
    options = TrainOptions(processes=2, accelerate_config=str(own))
    if expected.startswith("zero3"):
        assert launch_of(options) == (expected, 2, 1)
        return
    with pytest.raises(RecipeError) as refused:
        launch_of(options)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{own}: deepspeed_config: {expected}")


def test_offload_needs_main_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of a machine share it; of other machines, whose GPUs `--gpu-memory` describes, it is only printed."""
    one = MemoryEstimate("fsdp2_offload", 8, 0, 0, 0, 10**9, 10**9, 0, host=5 * 10**9)
    monkeypatch.setattr("rmtrain.commands.dry_run.memory_of", lambda *_: 4 * 10**9)
    monkeypatch.setattr("rmtrain.commands.dry_run.main_memory", lambda: 24 * 10**9)
    assert _row(one, TrainOptions(), 4)["fits"]
    assert not _row(one, TrainOptions(), 5)["fits"]
    assert _row(one, TrainOptions(gpu_memory=4.0), 5)["fits"]
    assert not _row(replace(one, buffers=10**10), TrainOptions(), 4)["fits"], "guard: the GPU counts"


def test_strategies_that_refuse_a_recipe_are_reported(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, optimizer={"lr": 1e-4, "name": "adamw_8bit"})
    with pytest.raises(RecipeError) as refused:
        document_of(recipe, processes=2, accelerate_config="fsdp2_offload")
    assert refused.value.problems[0].startswith("optimizer.name: ")


def test_auto_is_what_the_run_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is the largest that fits, on a GPU with the same memory as in a run; more memory gives more tokens."""
    recipe = tiny_recipe(
        tmp_path, rows=400, model=LARGE, training={"batch_size": 400, "precision": "auto"}, batching={"max_tokens": "auto"}
    )
    roomy, tight = (document_of(recipe, gpu_memory=size) for size in (40.0, 12.5))
    assert roomy["max_tokens"] > 2 * tight["max_tokens"]
    assert roomy["fits"]
    assert tight["fits"], f"weights and AdamW leave room: {by_name(tight)['single']}"
    assert tight["largest_micro_batch"] > 0.8 * tight["max_tokens"], "guard: the budget is what limits a micro-batch"
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    data = prepare(recipe.data, tokenizer).train
    strategy: Any = SimpleNamespace(kind="single", accelerator=SimpleNamespace(device=torch.device("cuda"), num_processes=1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 10**9, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10_500_000_000)
    assert token_budget(recipe, data, tight["layout"], tokenizer, strategy) == tight["max_tokens"]


def test_auto_counts_offload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of a run and of a dry run is the same, and larger where shards are in main memory."""
    recipe = tiny_recipe(
        tmp_path, rows=400, model=LARGE, training={"batch_size": 400, "precision": "auto"}, batching={"max_tokens": "auto"}
    )
    tokenizer, budgets = load_tokenizer(recipe.model, recipe.data), {}
    data = prepare(recipe.data, tokenizer).train
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 7 * 10**9)
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=2, is_main_process=True)
    for name in ("fsdp2", "fsdp2_offload"):
        document = document_of(recipe, gpu_memory=8.0, processes=2, accelerate_config=name)
        strategy: Any = SimpleNamespace(kind=name, accelerator=accelerator)
        budgets[name] = token_budget(recipe, data, document["layout"], tokenizer, strategy)
        assert budgets[name] == document["max_tokens"]
    assert budgets["fsdp2_offload"] > 2 * budgets["fsdp2"] > 0


def test_lora_holds_gradients_of_adapters_only(tmp_path: Path) -> None:
    """And strategies that refuse the recipe, here for its 8-bit optimizer, are not offered."""
    whole = by_name(document_of(tiny_recipe(tmp_path)))["single"]
    recipe = tiny_recipe(tmp_path, lora={"rank": 2}, optimizer={"lr": 1e-4, "name": "adamw_8bit"})
    document = document_of(recipe)
    adapted = by_name(document)["single"]
    assert adapted["gradients"] == 4 * document["trainable"] < whole["gradients"] / 2
    assert adapted["weights"] > whole["weights"]
    assert set(by_name(document)) == {"single", "ddp"}
    assert document["adapters"]["linear_layers"] == 14
    assert document["adapters"]["expert_tensors"] == 0
    assert document_of(tiny_recipe(tmp_path))["adapters"] is None


def test_mixtures_are_traced_with_adapted_experts(tmp_path: Path) -> None:
    """And with the balancing loss, which a model without a router refuses here as in a run."""
    sizes = {"architecture": "mixtral", "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64}
    recipe = tiny_recipe(tmp_path, model={"scratch": sizes}, lora={"rank": 2}, objective={"router_balance": 0.01})
    document = document_of(recipe)
    assert (document["adapters"]["linear_layers"], document["adapters"]["expert_tensors"]) == (8, 4)
    without = document_of(recipe.model_copy(update={"objective": BradleyTerry()}))
    assert by_name(document)["single"]["activations"] > by_name(without)["single"]["activations"]
    with pytest.raises(RecipeError) as refused:
        document_of(tiny_recipe(tmp_path, objective={"router_balance": 0.01}))
    assert refused.value.problems[0].startswith("objective.router_balance: ")


def test_measured_steps_give_a_time(recipe: Recipe) -> None:
    """And leave no file behind."""
    document = document_of(recipe, measure=True)
    assert document["seconds"] == pytest.approx(document["tokens"] / document["tokens_per_second"])
    assert 0 < document["seconds"] < 60
    assert not Path(recipe.run.output_dir).exists()
    assert document_of(recipe)["seconds"] is None, "guard: no time without a measurement"


def test_a_rank_of_a_launched_job_refuses(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError) as refused:
        document_of(recipe)
    assert refused.value.problems[0].startswith("--dry-run:")
    assert "--processes" in refused.value.problems[0]


def test_layout_is_chosen_as_in_a_run(tmp_path: Path) -> None:
    """`auto` falls back to padded where the model needs it; a layout that the recipe names is refused as by a run."""
    scratch = {"architecture": "stablelm", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 300}
    recipe = tiny_recipe(tmp_path, model={"scratch": scratch})
    assert document_of(recipe)["layout"] == "padded"
    explicit = recipe.model_copy(update={"batching": recipe.batching.model_copy(update={"layout": "shared_prefix"})})
    with pytest.raises(RecipeError) as refused:
        document_of(explicit)
    assert refused.value.problems[0].startswith("batching.layout: shared_prefix ")
    assert document_of(tiny_recipe(tmp_path))["layout"] == "shared_prefix", "guard: most models take it"
