"""The start of a run: settings that are refused, what is recorded, and trackers that really run."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.engine.distributed import environment, start
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RecipeError
from tests.engine.ranks import SHARDING
from tests.runs import tiny_recipe


def test_missing_tracker_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        start(tiny_recipe(tmp_path, tracking={"to": ["mlflow"]}))
    (problem,) = refused.value.problems
    assert problem.startswith("tracking.to: mlflow ")
    assert "rmtrain[mlflow]" in problem


@pytest.mark.parametrize(
    ("strategy", "variable", "value", "key"),
    [
        ("fsdp2", "FSDP_VERSION", "1", "fsdp_version"),
        ("fsdp2", "FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("fsdp2", "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading"),
        ("fsdp2", "FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing"),
    ],
)
def test_unsupported_sharding_is_refused(
    strategy: str, variable: str, value: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting of accelerate that rmtrain has in its recipe, or does not support, is named with its remedy."""
    for name, setting in {**SHARDING[strategy], variable: value}.items():
        monkeypatch.setenv(name, setting)
    with pytest.raises(RecipeError) as refused:
        start(tiny_recipe(tmp_path))
    assert f" {key}: " in refused.value.problems[0]


@pytest.mark.parametrize("key", ["optimizer.name", "model.quantization"])
def test_unshardable_recipe_is_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in SHARDING["fsdp2"].items():
        monkeypatch.setenv(name, setting)
    recipe = tiny_recipe(tmp_path, optimizer={"lr": 1e-3, "name": "adamw_8bit" if key == "optimizer.name" else "adamw"})
    if key == "model.quantization":
        recipe.model.__dict__["quantization"] = "nf4"  # of a model that need not exist: `start` loads none
    with pytest.raises(RecipeError) as refused:
        start(recipe)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{key}:")


def test_environment_names_nothing_of_the_machine(tmp_path: Path) -> None:
    record = environment(Strategy(Accelerator(cpu=True)), "float32", {"data": "abc"})
    assert record["versions"]["torch"]
    assert record["hashes"] == {"data": "abc"}
    assert str(Path.home()) not in json.dumps(record)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, tracking={"to": ["tensorboard"], "log_every": 1}), Console(quiet=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = list((tmp_path / "run").rglob("events.out.tfevents*"))
    tags: set[str] = set()
    for file in events:
        accumulator = EventAccumulator(str(file.parent))
        accumulator.Reload()
        tags |= set(accumulator.Tags()["scalars"])
    assert {"train/loss", "eval/accuracy"} <= tags
