"""When a run saves, what it keeps, and what it refuses to go on from. Whole runs are in tests/faults."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rmtrain.engine.checkpoint_manager import CheckpointManager, CheckpointMetadata
from rmtrain.engine.optim import build_optimizer
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Meter
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError, TryAgain
from rmtrain.model.build import build_reward_model
from rmtrain.objective import Objective
from rmtrain.recipe.schema import Checkpointing
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe

PLAN = {"data": "abc", "seed": 1, "batch_size": 8}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CheckpointManager]:
    """Makes savers of one run directory, each with a model of its own, as processes one after the other have them."""

    def build(
        plan: dict[str, Any] = PLAN, lora: dict[str, Any] | None = None, seed: int = 1, **settings: Any
    ) -> CheckpointManager:
        recipe = tiny_recipe(tmp_path, lora=lora)
        model = build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=seed)
        accelerator, directory = Accelerator(cpu=True), RunDirectory(tmp_path / "run", "ours", continues=True)
        optimizer = build_optimizer(model, recipe.optimizer)
        meter, contents = Meter(accelerator, 1), CheckpointMetadata.of(model, plan)
        return CheckpointManager(Strategy(accelerator), model, optimizer, meter, directory, Checkpointing(**settings), contents)

    return build


def steps(saver: CheckpointManager) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in saver.checkpoints.directory.glob("step-*"))


def test_it_is_time_after_so_many_steps_or_minutes_whatever_the_wall_clock_says(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
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
            by_time.save(step, evaluated=True)
    assert due == [10, 20, 30, 40]
    assert not any(never.is_due(step) for step in range(1, 100))


def test_a_step_is_saved_once(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    saver.save(3, evaluated=False)
    written = (saver.checkpoints.path(3) / "state.json").stat().st_mtime_ns
    saver.save(3, evaluated=True)
    assert (saver.checkpoints.path(3) / "state.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("best", "values", "at"),
    [
        ("loss", [0.7, 0.5, 0.6, 0.5, 0.9], 2),
        ("accuracy", [0.7, 0.5, 0.9, 0.9, 0.6], 3),
        ("accuracy", [0.7, None, 0.2, 0.1, 0.6], 1),
    ],
)
def test_trap_29_the_best_checkpoint_is_kept_by_the_direction_of_its_metric(
    best: str, values: list[float | None], at: int, make: Callable[..., CheckpointManager]
) -> None:
    saver = make(keep=1, best=best, minutes=None)
    for step, value in enumerate(values, start=1):
        saver.save(step, evaluated=False)
        saver.note_evaluation(step, {best: value})
    assert saver.position.best_step == at
    assert steps(saver) == [at, 5]
    resumed = make(keep=1, best=best)
    resumed.resume()
    assert (resumed.position.best_step, resumed.position.best_value) == (at, values[at - 1])
    assert resumed.load_best() == at


def test_an_evaluation_that_is_best_is_saved_where_nothing_was_due(make: Callable[..., CheckpointManager]) -> None:
    saver = make(best="loss", minutes=None)
    saver.note_evaluation(3, {"loss": 0.5})
    saver.note_evaluation(6, {"loss": 0.6})
    assert steps(saver) == [3]


def test_trap_29_stale_checkpoints_the_best_and_the_one_resumed_from_survive_rotation(
    make: Callable[..., CheckpointManager],
) -> None:
    first = make(keep=1, minutes=None)
    first.checkpoints.run_id = "theirs"
    first.save(1000, evaluated=True)
    second = make(keep=1, best="loss", minutes=None)
    second.save(2, evaluated=False)
    second.note_evaluation(2, {"loss": 0.1})
    second.save(3, evaluated=True)
    third = make(keep=1, best="loss", minutes=None)
    third.resume()
    for step in (4, 5, 6):
        third.save(step, evaluated=True)
    assert steps(third) == [2, 3, 6, 1000]


def test_the_open_interval_of_the_meter_goes_on(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    sums = Objective(*(torch.tensor(value) for value in (6.0, 1.0, 3.0, 1.0, -2.0, 4.0))).statistics()
    saver.meter.add(sums, 100, torch.tensor(0.25))
    saver.meter.total_tokens = 50
    saver.save(1, evaluated=True)
    resumed = make()
    resumed.resume()
    whole, parts = (meter.report(2, 1.0, 0.1) for meter in (saver.meter, resumed.meter))
    times = ("train/tokens_per_second", "train/comparisons_per_second")
    assert {k: v for k, v in whole.items() if k not in times} == {k: v for k, v in parts.items() if k not in times}


def test_a_checkpoint_of_other_data_or_another_base_model_is_refused(make: Callable[..., CheckpointManager]) -> None:
    make(lora={"rank": 2}).save(4, evaluated=True)
    with pytest.raises(CheckpointError, match="other training data or another order: data was abc, is xyz"):
        make(plan={**PLAN, "data": "xyz"}, lora={"rank": 2}).resume()
    with pytest.raises(CheckpointError, match="the frozen weights of the base model are not those it was trained on"):
        make(lora={"rank": 2}, seed=2).resume()
    with pytest.raises(CheckpointError, match="frozen weights"):
        make().resume()
    with pytest.raises(CheckpointError, match=r"weights: .*lora_A.*expected \(2, 32\)|expected \(4, 32\)"):
        make(lora={"rank": 4}).resume()
    same = make(lora={"rank": 2})
    same.resume()
    assert same.position.step == 4, "guard: the same goes on"


@pytest.mark.parametrize("key", ["position", "plan", "processes", "frozen", "meter", "optimizer"])
@pytest.mark.parametrize("value", [None, "x"])
def test_trap_25_a_state_that_lacks_something_is_refused(
    key: str, value: str | None, make: Callable[..., CheckpointManager]
) -> None:
    saver = make()
    saver.save(4, evaluated=True)
    found = saver.checkpoints.newest()
    assert found is not None
    if value is None:
        del found.state[key]
    elif (key, value) != ("processes", "x"):
        found.state[key] = value
    else:
        found.state[key] = {}
    with pytest.raises(CheckpointError, match=r"state\.json: not the state of a run|frozen weights|optimizer state: "):
        make()._restore(found)


def test_another_number_of_processes_is_said(make: Callable[..., CheckpointManager], caplog: pytest.LogCaptureFixture) -> None:
    saver = make()
    saver.save(4, evaluated=True)
    found = saver.checkpoints.newest()
    assert found is not None
    found.state["processes"] = 4
    make()._restore(found)
    assert "the checkpoint is of 4 processes, there are 1 now: same order and losses within rounding" in caplog.text


def test_weights_that_were_best_and_are_gone_leave_the_last_to_be_exported(make: Callable[..., CheckpointManager]) -> None:
    saver = make(best="loss", minutes=None)
    saver.note_evaluation(3, {"loss": 0.5})
    saver.save(6, evaluated=True)
    (saver.checkpoints.path(3) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing") as raised:
        saver.load_best()
    assert raised.value.problems[-1].endswith("set checkpoints.load_best_at_end: false to export those")


def test_room_for_a_checkpoint_is_asked_for_before_the_first_step(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = make()
    saver.check_room(2.0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(TryAgain, match=r"a checkpoint needs 0\.\d MB, and 0\.1 MB are free"):
        saver.check_room(2.0)


def test_what_is_saved_is_tensors_and_plain_json(make: Callable[..., CheckpointManager]) -> None:
    saver = make()
    saver.save(2, evaluated=True)
    path = saver.checkpoints.path(2)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    state = json.loads((path / "state.json").read_text())
    assert state["position"] == {"step": 2, "evaluated": True, "best_step": None, "best_value": None}
    assert state["plan"] == PLAN
