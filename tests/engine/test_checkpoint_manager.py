"""When a run saves, what it keeps, and what it refuses to resume from. Runs of processes are in tests/faults."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rmtrain.engine.checkpoint_manager import CheckpointManager
from rmtrain.engine.loop import build_optimizer
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Meter
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError, TryAgain
from rmtrain.model.build import build_reward_model
from rmtrain.objective import Objective
from rmtrain.recipe.schema import Checkpointing, EarlyStopping
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe

PLAN = {"data": "abc", "seed": 1, "batch_size": 8}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CheckpointManager]:
    """Makes savers for one run directory, each with its own model, as consecutive processes would have them."""

    def build(
        plan: dict[str, Any] = PLAN,
        lora: dict[str, Any] | None = None,
        seed: int = 1,
        stopping: EarlyStopping | None = None,
        **settings: Any,
    ) -> CheckpointManager:
        recipe = tiny_recipe(tmp_path, lora=lora)
        model = build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=seed)
        accelerator, directory = Accelerator(cpu=True), RunDirectory(tmp_path / "run", "ours", continues=True)
        optimizer = build_optimizer(model, recipe.optimizer)
        strategy = Strategy(accelerator)
        strategy.prepare(model, optimizer, clip=None)
        return CheckpointManager(strategy, Meter(accelerator, 1), directory, Checkpointing(**settings), plan, stopping)

    return build


def steps(saver: CheckpointManager) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in saver.checkpoints.directory.glob("step-*"))


def test_saves_are_due_by_steps_or_minutes(make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the wall clock have no effect."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    by_steps, by_time, never = make(every=4, minutes=None), make(minutes=10), make(minutes=None)
    jumps = itertools.cycle([1e9, -1e9, 0.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert [step for step in range(1, 13) if by_steps.is_due(step)] == [4, 8, 12]
    due = []
    for step in range(1, 41):
        now[0] += 60.0
        if by_time.is_due(step):
            due.append(step)
            by_time.save(step)
    assert due == [10, 20, 30, 40]
    assert not any(never.is_due(step) for step in range(1, 100))


def test_a_step_is_saved_once(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    saver.save(3)
    written = (saver.checkpoints.path(3) / "state.json").stat().st_mtime_ns
    saver.record_evaluation(3, {})
    saver.save(3)
    assert (saver.checkpoints.path(3) / "state.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("best", "values", "at"),
    [
        ("loss", [0.7, 0.5, 0.6, 0.5, 0.9], 2),
        ("accuracy", [0.7, 0.5, 0.9, 0.9, 0.6], 3),
        ("accuracy", [0.7, None, 0.2, 0.1, 0.6], 1),
    ],
)
def test_trap_29_best_goes_by_the_metrics_direction(
    best: str, values: list[float | None], at: int, make: Callable[..., CheckpointManager]
) -> None:
    saver = make(keep=1, best=best, minutes=None)
    for step, value in enumerate(values, start=1):
        saver.save(step)
        saver.record_evaluation(step, {best: value})
    assert saver.state.best_step == at
    assert steps(saver) == [at, 5]
    resumed = make(keep=1, best=best)
    resumed.resume()
    assert (resumed.state.best_step, resumed.state.best_value) == (at, values[at - 1])
    assert resumed.load_best() == at


def test_the_best_evaluation_is_always_saved(make: Callable[..., CheckpointManager]) -> None:
    saver = make(best="loss", minutes=None)
    saver.record_evaluation(3, {"loss": 0.5})
    saver.record_evaluation(6, {"loss": 0.6})
    assert steps(saver) == [3]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_early_stopping_counts_evaluations_without_improvement(metric: str, make: Callable[..., CheckpointManager]) -> None:
    """A new best value starts the count again, a tie does not; a missing value and the one before the first step do not count."""
    sign = 1 if metric == "loss" else -1
    values = [(0, 0.1), (1, 0.9), (2, 0.8), (3, 0.8), (4, 0.7), (5, None), (6, 0.75), (7, 0.7), (8, 0.9)]
    saver = make(minutes=None, stopping=EarlyStopping(metric=metric, patience=3))
    for step, value in values:
        assert not saver.ends_early
        saver.record_evaluation(step, {metric: None if value is None else sign * value})
    assert saver.ends_early
    assert (saver.state.stopping_value, saver.state.not_improved) == (sign * 0.7, 3)
    assert steps(saver) == [8]
    resumed = make(minutes=None, stopping=EarlyStopping(metric=metric, patience=3))
    resumed.resume()
    state = resumed.state
    assert (state.step, state.last_evaluated_step, state.not_improved) == (8, 7, 2), "the last evaluation is repeated"
    resumed.record_evaluation(8, {metric: sign * 0.9})
    assert resumed.ends_early, "guard: it ends again"


def test_trap_29_rotation_spares_best_and_resumed_from(make: Callable[..., CheckpointManager]) -> None:
    """Rotation also spares the checkpoints of other runs."""
    first = make(keep=1, minutes=None)
    first.checkpoints.run_id = "theirs"
    first.save(1000)
    second = make(keep=1, best="loss", minutes=None)
    second.save(2)
    second.record_evaluation(2, {"loss": 0.1})
    second.save(3)
    third = make(keep=1, best="loss", minutes=None)
    third.resume()
    for step in (4, 5, 6):
        third.save(step)
    assert steps(third) == [2, 3, 6, 1000]


def test_an_open_log_interval_is_resumed(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    sums = Objective(*(torch.tensor(value) for value in (6.0, 1.0, 3.0, 1.0, -2.0, 4.0, 4.0))).statistics()
    saver.meter.add(sums, 100, 1, torch.tensor(0.25))
    saver.meter.total_tokens = 50
    saver.meter.seconds_before = 1000.0
    saver.save(1)
    resumed = make()
    assert resumed.meter.runtime < 1000, "guard"
    resumed.resume()
    assert resumed.meter.runtime >= 1000, "the time of earlier starts counts"
    whole, parts = (meter.report(2, 1.0, 0.1) for meter in (saver.meter, resumed.meter))
    times = ("train/tokens_per_second", "train/comparisons_per_second", "train/runtime")
    assert {k: v for k, v in whole.items() if k not in times} == {k: v for k, v in parts.items() if k not in times}


def test_other_data_or_base_models_are_refused(make: Callable[..., CheckpointManager]) -> None:
    make(lora={"rank": 2}).save(4)
    with pytest.raises(CheckpointError, match=r"step-00000004: .*data was abc, is xyz"):
        make(plan={**PLAN, "data": "xyz"}, lora={"rank": 2}).resume()
    with pytest.raises(CheckpointError, match=r"step-00000004: .*frozen"):
        make(lora={"rank": 2}, seed=2).resume()
    with pytest.raises(CheckpointError, match="frozen"):
        make().resume()
    with pytest.raises(CheckpointError, match=r"weights: .*lora_A.*expected \(2, 32\)|expected \(4, 32\)"):
        make(lora={"rank": 4}).resume()
    same = make(lora={"rank": 2})
    same.resume()
    assert same.state.step == 4, "guard: the same model and data resume"


@pytest.mark.parametrize("key", ["train_state", "plan", "processes", "frozen", "meter"])
@pytest.mark.parametrize("value", [None, "x"])
def test_trap_25_an_incomplete_state_is_refused(key: str, value: str | None, make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    saver.save(4)
    found = saver.checkpoints.newest()
    assert found is not None
    if value is None:
        del found.state[key]
    elif (key, value) != ("processes", "x"):
        found.state[key] = value
    else:
        found.state[key] = {}
    with pytest.raises(CheckpointError, match=r"step-00000004(/state\.json)?: "):
        make()._restore(found)


def test_another_number_of_processes_is_reported(
    make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture
) -> None:
    saver = make()
    saver.save(4)
    found = saver.checkpoints.newest()
    assert found is not None
    found.state["processes"] = 4
    make()._restore(found)
    assert "4 processes, now running 1" in caplog.text


def test_missing_best_weights_are_an_error(make: Callable[..., CheckpointManager]) -> None:
    """The error names the key that exports the last weights instead."""
    saver = make(best="loss", minutes=None)
    saver.record_evaluation(3, {"loss": 0.5})
    saver.save(6)
    (saver.checkpoints.path(3) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as raised:
        saver.load_best()
    assert "checkpoints.load_best_at_end: false" in raised.value.problems[-1]


def test_room_is_checked_before_the_first_step(make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch) -> None:
    saver = make()
    saver.check_room(2.0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(TryAgain, match=r"0\.\d MB.* 0\.1 MB"):
        saver.check_room(2.0)


def test_checkpoints_hold_tensors_and_json(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    saver.record_evaluation(1, {})
    saver.save(2)
    path = saver.checkpoints.path(2)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    state = json.loads((path / "state.json").read_text())
    assert state["train_state"] == {
        "step": 2,
        "last_evaluated_step": 1,
        "best_step": None,
        "best_value": None,
        "stopping_value": None,
        "not_improved": 0,
    }
    assert state["plan"] == PLAN
