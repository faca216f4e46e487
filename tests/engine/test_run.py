"""The start of a run: what is refused, what is recorded, and trackers that are really there."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.engine.start import environment, start
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RecipeError
from tests.runs import tiny_recipe


def test_a_tracker_that_is_not_installed_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tracking.to: mlflow is not installed; install rmtrain\[mlflow\]"):
        start(tiny_recipe(tmp_path, tracking={"to": ["mlflow"]}))


def test_the_environment_names_versions_and_nothing_of_the_machine(tmp_path: Path) -> None:
    record = environment(Strategy(Accelerator(cpu=True)), "float32", {"data": "abc"})
    assert record["versions"]["torch"]
    assert record["hashes"] == {"data": "abc"}
    assert str(Path.home()) not in json.dumps(record)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_metrics_under_their_names(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, tracking={"to": ["tensorboard"], "log_every": 1}), Console(quiet=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = list((tmp_path / "run").rglob("events.out.tfevents*"))
    tags: set[str] = set()
    for file in events:
        accumulator = EventAccumulator(str(file.parent))
        accumulator.Reload()
        tags |= set(accumulator.Tags()["scalars"])
    assert {"train/loss", "eval/accuracy"} <= tags
