"""`train --dry-run`: its plan is that of the run, it starts, reads and writes nothing of a run, and it says what would fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.dry_run import Request, dry_run, strategy_of
from rmtrain.commands.train import make_plan
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import Recipe
from tests.model.builders import make_base, make_tokenizer
from tests.runs import rmtrain, tiny_recipe

QUIET = Console(quiet=True)
LARGE = {"scratch": {"architecture": "llama", "hidden_size": 2048, "layers": 8, "heads": 16, "vocab_size": 300}}


def document_of(recipe: Recipe, **request: Any) -> dict[str, Any]:
    return dry_run(recipe, QUIET, Request(**request)).document


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in document["strategies"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """53 rows, in seven steps an epoch."""
    return tiny_recipe(tmp_path_factory.mktemp("dry"), rows=53, training={"epochs": 2, "max_steps": 11})


@pytest.mark.parametrize(("layout", "world"), [("shared_prefix", 1), ("padded", 1), ("padded", 3)])
def test_its_numbers_are_those_of_the_plan_that_a_run_follows(recipe: Recipe, layout: Any, world: int) -> None:
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


def test_nothing_is_written_and_of_a_pretrained_model_its_configuration_is_all_that_is_read(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", make_tokenizer())
    weights = base / "model.safetensors"
    size, _ = weights.stat().st_size, weights.unlink()
    recipe = tiny_recipe(tmp_path, data={"max_length": 128}).model_dump()
    recipe["model"] = {"path": str(base)}
    document = document_of(Recipe.model_validate(recipe))
    assert not (tmp_path / "run").exists()
    assert 0.5 < document["parameters"] * 4 / size < 1.5, "guard: the weights that were there are those that were counted"


def test_the_command_line_prints_one_document_starts_no_process_and_names_what_would_fit(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(tiny_recipe(tmp_path, model=LARGE, optimizer={"lr": 1e-4})))
    options = ("--dry-run", "--gpu-memory", "8", "--processes", "4", "--accelerate-config")
    result = rmtrain("train", str(file), *options, "ddp", "--json")
    document = json.loads(result.stdout)
    shares = by_name(document)
    assert result.returncode == 0, "a report is no gate"
    assert (document["strategy"], document["processes"], document["fits"]) == ("ddp", 4, False)
    assert shares["fsdp2"]["fits"]
    assert shares["fsdp2"]["processes"] == 4
    assert "DDP on 4 does not fit" in result.stderr
    assert "--processes 4 --accelerate-config fsdp2" in " ".join(result.stderr.split())
    assert "joined" not in result.stderr
    assert not (tmp_path / "run").exists()
    assert all(share["memory"] == 8 * 10**9 for share in shares.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--measure",), "--measure and --gpu-memory"),
        (("--dry-run", "--fresh"), "--dry-run"),
        (("--dry-run", "--gpu-memory", "80", "--measure"), "which has no GPU"),
        (("--dry-run", "--accelerate-config", "nowhere"), "--accelerate-config nowhere:"),
    ],
)
def test_options_that_do_not_go_together_are_one_line_and_exit_2(recipe: Recipe, tmp_path: Path, options: Any, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    result = rmtrain("train", str(file), *options)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_each_configuration_means_its_strategy(name: str) -> None:
    strategy = strategy_of(Request(processes=2, config=name))
    assert (strategy.name, strategy.processes) == (name.removeprefix("deepspeed_"), 2)


def test_auto_is_halved_until_it_fits_as_a_run_would(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=400, model=LARGE, training={"batch_size": 400}, batching={"max_tokens": "auto"})
    roomy, tight = (document_of(recipe, gpu_memory=size) for size in (40.0, 10.5))
    assert roomy["fits"]
    assert tight["max_tokens"] < roomy["max_tokens"]
    assert tight["fits"], f"weights and AdamW leave room: {by_name(tight)['single']}"


def test_with_lora_only_adapters_have_gradients_and_moments_and_8_bits_are_not_cut(tmp_path: Path) -> None:
    whole = by_name(document_of(tiny_recipe(tmp_path)))["single"]
    recipe = tiny_recipe(tmp_path, lora={"rank": 2}, optimizer={"lr": 1e-4, "name": "adamw_8bit"})
    document = document_of(recipe)
    adapted = by_name(document)["single"]
    assert adapted["gradients"] == 4 * document["trainable"] < whole["gradients"] / 2
    assert adapted["weights"] > whole["weights"]
    assert set(by_name(document)) == {"single", "ddp"}, "the strategies that refuse this recipe are not offered"


def test_a_measured_step_gives_a_time_and_leaves_nothing(recipe: Recipe) -> None:
    document = document_of(recipe, measure=True)
    assert document["seconds"] == pytest.approx(document["tokens"] / document["tokens_per_second"])
    assert 0 < document["seconds"] < 60
    assert not Path(recipe.run.output_dir).exists()
    assert document_of(recipe)["seconds"] is None, "guard: no time without a measurement"


def test_a_rank_of_a_launched_job_refuses(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="say --processes"):
        document_of(recipe)


def test_a_layout_is_that_which_a_run_would_choose_or_refuse(tmp_path: Path) -> None:
    scratch = {"architecture": "stablelm", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 300}
    recipe = tiny_recipe(tmp_path, model={"scratch": scratch})
    assert document_of(recipe)["layout"] == "padded"
    asked = recipe.model_copy(update={"batching": recipe.batching.model_copy(update={"layout": "shared_prefix"})})
    with pytest.raises(RecipeError, match=r"batching\.layout: shared_prefix is not for this model; set auto, or padded"):
        document_of(asked)
    assert document_of(tiny_recipe(tmp_path))["layout"] == "shared_prefix", "guard: most models take it"
