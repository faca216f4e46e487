"""A run goes on under another strategy and on another number of processes, each of which saves and exports alike."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rmtrain.recipe.load import load_recipe
from tests.engine.ranks import LORA, SHARDING
from tests.faults.driver import Fault
from tests.faults.nursery import FAST
from tests.faults.runs import full_recipe, launch, lines, weights

NAMES = {
    "alone": "one process",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    **{f"zero{stage}": f"DeepSpeed ZeRO-{stage}" for stage in (1, 2, 3)},
}
STOPS = (4, 8, 12)
"""Steps after which a run is stopped, of fifteen: all within an epoch of five."""


def go(strategy: str, recipe: Path, run: Path, faults: Sequence[Fault]) -> subprocess.CompletedProcess[str]:
    """A run under a strategy: on two processes, or alone."""
    return launch(recipe, run, 1 if strategy == "alone" else 2, faults, **SHARDING.get(strategy, {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


def recipe_of(folder: Path, lora: bool) -> tuple[Path, Path]:
    """The recipe, and its run that nothing disturbed."""
    folder = folder / ("lora" if lora else "full")
    whole = folder / "whole"
    if not whole.exists():
        model = load_recipe(full_recipe(folder)).model.model_dump() | {"dropout": 0.0}
        changes: dict[str, Any] = {"lora": LORA} if lora else {}
        recipe = full_recipe(folder, model=model, optimizer={"lr": 1e-3, "warmup": 0.2, "eps": 1e-6}, **changes)
        ended = go("alone", recipe, whole, [FAST])
        assert ended.returncode == 0, ended.stderr
    return folder / "recipe.yaml", whole


def assert_as_one(run: Path, whole: Path) -> None:
    """The rows, losses, rates, norms, weights and exported rewards of a run are those of the other, within rounding."""
    assert lines(run, "ledger") == lines(whole, "ledger")
    for one, other in zip(lines(run, "metrics"), lines(whole, "metrics"), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5, abs=2e-6), (key, one["step"])
    expected, found = weights(whole), weights(run)
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name
    ids = torch.tensor([json.loads((whole / "golden.json").read_text())[0]["ids"]])
    with torch.no_grad():
        rewards = [float(AutoModelForSequenceClassification.from_pretrained(path / "model")(ids).logits) for path in (run, whole)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)


@pytest.mark.parametrize(
    ("chain", "lora"),
    [
        (("zero3", "fsdp2", "ddp"), False),
        (("alone", "zero1", "zero2", "fsdp2"), False),
        (("zero2", "alone", "zero1"), False),
        (("fsdp2", "zero2", "zero3"), True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else ("lora" if value else "full"),
)
def test_trap_27_a_run_goes_on_under_any_other_strategy_and_exports_there(
    chain: tuple[str, ...], lora: bool, folder: Path
) -> None:
    recipe, whole = recipe_of(folder, lora)
    run, done = recipe.parent / "-".join(chain), 0
    for strategy, stop in zip(chain[:-1], STOPS, strict=False):
        ended = go(strategy, recipe, run, [("step", stop - done, "SIGTERM@0")])
        assert f"stopped by SIGTERM after step {stop}" in ended.stderr, ended.stderr
        state = json.loads((run / f"checkpoints/step-{stop:08d}/state.json").read_text())
        assert state["strategy"] == NAMES[strategy], "guard: it was in force"
        done = stop
    ended = go(chain[-1], recipe, run, [])
    assert ended.returncode == 0, ended.stderr
    assert f"from step {done}" in ended.stderr
    assert json.loads((run / "environment.json").read_text())["strategy"] == NAMES[chain[-1]]
    assert_as_one(run, whole)


def test_trap_27_on_two_processes_one_is_killed_then_on_one_then_on_two(folder: Path) -> None:
    recipe, whole = recipe_of(folder, lora=False)
    run = recipe.parent / "killed"
    ended = go("ddp", recipe, run, [("step", 8, "kill@1"), FAST])
    assert ended.returncode != 0
    assert not (run / "model").exists(), "guard: it was killed before its end"
    ended = go("alone", recipe, run, [("step", 3, "SIGTERM"), FAST])
    assert "from step 6" in ended.stderr, ended.stderr
    assert "2 processes, now running 1" in ended.stderr
    ended = go("ddp", recipe, run, [FAST])
    assert ended.returncode == 0, ended.stderr
    assert "1 processes, now running 2" in ended.stderr
    assert_as_one(run, whole)
