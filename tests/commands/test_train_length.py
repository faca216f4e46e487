"""How long a run is, and when it evaluates: parts of epochs, early stopping, more epochs on resume, and before the first step."""

import json
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands import train as command
from rmtrain.commands.evaluator import Evaluator
from rmtrain.commands.train import train
from rmtrain.errors import CheckpointError, Stopped
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.faults.runs import left, lines, steps_saved
from tests.runs import metrics_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("no_reload", "no_report")
QUIET = Console(quiet=True)
PLANTED = {2: 0.9, 4: 0.8, 6: 0.85, 8: 0.8, 10: 0.1}
"""Losses by step: the second evaluation is the best, and with a patience of two the fourth one ends the run."""


class Killed(BaseException):
    """The end of a process at this point: nothing after it runs, as after kill -9, except that locks are released."""


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, whose pictures take most of the time."""
    monkeypatch.setattr(command, "write_report", lambda *_, **__: None)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the loss of an evaluation by a planted one, where there is one, and kills the process at another evaluation."""

    def planted(
        losses: Mapping[int, float],
        killed_before: int | None = None,
        killed_after: int | None = None,
        stopped_after: int | None = None,
    ) -> None:
        class Planted(Evaluator):
            def __call__(self, step: int, *, final: bool = False) -> Any:
                if step == killed_before:
                    raise Killed
                result = super().__call__(step, final=final)
                assert result is not None
                if step == killed_after:
                    raise Killed
                if step == stopped_after:
                    raise Stopped(signal.SIGTERM, "stopped")
                return replace(result, summary=result.summary | {"loss": losses.get(step, result.summary["loss"])})

        monkeypatch.setattr(command, "Evaluator", Planted)

    return planted


def recipe_of(folder: Path, run: str, **sections: Any) -> Recipe:
    """Twelve steps in two epochs with dropout, each logged; the tokenizer is the same in each run."""
    folder.mkdir(exist_ok=True)
    sections["training"] = {"epochs": 2, "batch_size": 8, "precision": "float32", **sections.get("training", {})}
    sections["checkpoints"] = {"every": 3, "minutes": None, **sections.get("checkpoints", {})}
    sections["optimizer"] = {"lr": 2e-3, **sections.get("optimizer", {})}
    model = {**tiny_recipe(folder).model.model_dump(), "dropout": 0.1}
    return tiny_recipe(folder, run={"name": "tiny", "output_dir": str(folder / run)}, model=model, **sections)


def marker(run: Path) -> bool:
    """Whether the run says that it is finished."""
    return bool(json.loads((run / "run.json").read_text())["finished"])


STOPPING = {"every": 2, "samples": 1, "early_stopping": {"metric": "loss", "patience": 2}}


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_early_stopping_ends_and_exports(best: bool, tmp_path: Path, plant: Callable[..., None], caplog: Any) -> None:
    """The run ends at the planted step, says so, and exports those weights, or the best ones; it is finished."""
    caplog.set_level(logging.INFO, "rmtrain")
    settings = {"checkpoints": {"best": "loss", "load_best_at_end": best}} if best else {}
    recipe = recipe_of(tmp_path, "run", evaluation=STOPPING, **settings)
    plant(PLANTED)
    document = train(recipe, QUIET).document
    assert (document["steps"], document["stopped_early"]) == (8, True)
    said = [record.getMessage() for record in caplog.records if "early stopping" in record.getMessage()]
    assert said == ["early stopping after step 8 of 12: loss has not improved in 2 evaluations"]
    evaluated = [line["step"] for line in metrics_of(tmp_path / "run") if "eval/loss" in line]
    assert evaluated == [2, 4, 6, 8] + [8] * best, "the best weights are evaluated once more"
    assert steps_saved(tmp_path / "run")[-1] == 8
    assert json.loads((tmp_path / "run/model/rmtrain.json").read_text())["step"] == (4 if best else 8)
    assert marker(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is finished"):
        train(recipe, QUIET)
    assert max(PLANTED) > 8, "guard: a later evaluation would have been better"


KILLS = {
    "before the last evaluation": {"killed_before": 8},
    "in it": {"killed_after": 8},
    "in an earlier one": {"killed_after": 6},
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_early_stopping_resumes_bit_for_bit(kill: dict[str, int], tmp_path: Path, plant: Callable[..., None]) -> None:
    """A run killed around its end stops at the same step as the uninterrupted one, with the same records and weights."""
    whole, parts = (recipe_of(tmp_path, name, evaluation=STOPPING) for name in ("whole", "parts"))
    plant(PLANTED)
    train(whole, QUIET)
    plant(PLANTED, **kill)
    with pytest.raises(Killed):
        train(parts, QUIET)
    assert not marker(tmp_path / "parts"), "guard: it was killed"
    plant(PLANTED)
    assert train(parts, QUIET).document["steps"] == 8
    assert left(tmp_path / "parts", 8) == left(tmp_path / "whole", 8)


def test_early_stopping_survives_a_kill_before_export(
    tmp_path: Path, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended the run is repeated from its last checkpoint, and recorded once."""
    recipe = recipe_of(tmp_path, "run", evaluation=STOPPING, checkpoints={"best": "loss"})
    plant(PLANTED)
    with monkeypatch.context() as patched:
        patched.setattr(command, "write_results", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(recipe, QUIET)
    before = left(tmp_path / "run", 8)
    assert train(recipe, QUIET).document["stopped_early"]
    assert left(tmp_path / "run", 8) == before
    assert marker(tmp_path / "run")


def test_a_part_of_an_epoch_is_trained(tmp_path: Path) -> None:
    """1.5 epochs train every row once and half of the steps of the second epoch, and log 1.5 at the end."""
    train(recipe_of(tmp_path, "run", training={"epochs": 1.5}), QUIET)
    ledger = lines(tmp_path / "run", "ledger")
    rows = [id for line in ledger for id in line["ids"]]
    assert (len(ledger), len(rows), len(set(rows))) == (9, 72, 48)
    assert [line["epoch"] for line in ledger] == [0] * 6 + [1] * 3
    last = [line for line in metrics_of(tmp_path / "run") if "train/epoch" in line][-1]
    assert last["train/epoch"] == 1.5
    assert load_recipe(tmp_path / "run/recipe.yaml").training.epochs == 1.5


GROWING = {
    "constant": {"schedule": "constant", "warmup": 2},
    "inverse_sqrt": {"schedule": "inverse_sqrt", "warmup": 2},
    "before the decay": {"schedule": "wsd", "warmup": 2, "decay": 2},
}


@pytest.mark.parametrize("name", GROWING)
def test_more_epochs_equal_a_longer_run(name: str, tmp_path: Path, plant: Callable[..., None]) -> None:
    """A run killed in its first epoch and resumed with two equals the uninterrupted run of two epochs, bit for bit."""
    settings: dict[str, Any] = {"optimizer": GROWING[name], "evaluation": {"every": 2}}
    train(recipe_of(tmp_path, "whole", **settings), QUIET)
    plant({}, killed_after=4)
    with pytest.raises(Killed):
        train(recipe_of(tmp_path, "parts", **settings, training={"epochs": 1}), QUIET)
    plant({})
    assert steps_saved(tmp_path / "parts") == [3], "guard: it was resumed"
    assert train(recipe_of(tmp_path, "parts", **settings), QUIET).document["steps"] == 12
    assert left(tmp_path / "parts", 12) == left(tmp_path / "whole", 12)


def test_a_finished_run_grows(tmp_path: Path) -> None:
    """With a schedule that does not depend on the length, more steps continue a finished run; its last step was logged in any case."""
    settings: dict[str, Any] = {"optimizer": {"schedule": "constant"}, "evaluation": {"every": 2}}
    train(recipe_of(tmp_path, "whole", **settings), QUIET)
    short = recipe_of(tmp_path, "parts", **settings, training={"max_steps": 5})
    assert train(short, QUIET).document["steps"] == 5
    with pytest.raises(CheckpointError, match="is finished"):
        train(short, QUIET)
    assert train(recipe_of(tmp_path, "parts", **settings), QUIET).document["steps"] == 12
    assert left(tmp_path / "parts", 12) == left(tmp_path / "whole", 12)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "linear": ({}, {"epochs": 2}, ["training.epochs was 1, is 2", "step 2 ", "schedule linear"]),
    "share of warm-up": (
        {"schedule": "constant", "warmup": 0.5},
        {"epochs": 2},
        ["training.epochs was 1, is 2", "schedule constant", "warm-up 0.5"],
    ),
    "in the decay": ({"schedule": "wsd", "decay": 4}, {"epochs": 2}, ["step 4 ", "schedule warmup_stable_decay"]),
    "fewer than done": ({"schedule": "constant"}, {"max_steps": 3}, ["training.max_steps was null, is 3", "6 steps are done"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_lengths_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    """One line names the keys and why; the run is unchanged, and can be finished as before."""
    optimizer, training, words = REFUSED[name]
    run = tmp_path / "run"
    train(recipe_of(tmp_path, "run", optimizer=optimizer, training={"epochs": 1}), QUIET)
    before = (run / "recipe.yaml").read_bytes(), (run / "run.json").read_bytes(), lines(run, "metrics")
    with pytest.raises(CheckpointError) as refused:
        train(recipe_of(tmp_path, "run", optimizer=optimizer, training={"epochs": 1, **training}), QUIET)
    (line,) = refused.value.problems
    assert line.startswith(str(run / "checkpoints/step-00000006"))
    assert all(word in line for word in words), line
    assert ((run / "recipe.yaml").read_bytes(), (run / "run.json").read_bytes(), lines(run, "metrics")) == before


def test_the_first_evaluation_is_a_reference(tmp_path: Path, plant: Callable[..., None]) -> None:
    """It is recorded once at step 0, also after a kill or a signal before the first step, and is never the best."""
    settings: dict[str, Any] = {"evaluation": {"every": 2, "on_start": True, "samples": 1}, "checkpoints": {"best": "loss"}}
    plant({0: 0.0})
    train(recipe_of(tmp_path, "whole", **settings), QUIET)
    plant({0: 0.0}, killed_after=0)
    with pytest.raises(Killed):
        train(recipe_of(tmp_path, "parts", **settings), QUIET)
    plant({0: 0.0}, stopped_after=0)
    with pytest.raises(Stopped, match="after step 0"):
        train(recipe_of(tmp_path, "parts", **settings), QUIET)
    assert steps_saved(tmp_path / "parts") == [0]
    plant({0: 0.0}, killed_before=2)
    with pytest.raises(Killed):
        train(recipe_of(tmp_path, "parts", **settings), QUIET)
    assert [line["step"] for line in lines(tmp_path / "parts", "samples")] == [0], "guard: it was recorded before the kill"
    plant({0: 0.0})
    train(recipe_of(tmp_path, "parts", **settings), QUIET)
    assert left(tmp_path / "parts", 12) == left(tmp_path / "whole", 12)
    evaluated = [line["step"] for line in lines(tmp_path / "parts", "metrics") if "eval/loss" in line]
    assert evaluated == [0, 2, 4, 6, 8, 10, 12]
    state = json.loads((tmp_path / "parts/checkpoints/step-00000012/state.json").read_text())["train_state"]
    assert state["best_step"] > 0
