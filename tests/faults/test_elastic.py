"""A run resumes under another strategy and on another number of processes, each of which saves and exports alike."""

import json
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rmtrain.recipe.load import load_recipe
from tests.engine.ranks import LORA, SHARDING
from tests.engine.test_start import write_start
from tests.faults.driver import Fault
from tests.faults.runs import full_recipe, in_directory, left, lines, sha256, steps_saved, weights
from tests.forks import FAST, ON_CPU, ForkServer

NAMES = {
    "alone": "one process",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    **{f"zero{stage}": f"DeepSpeed ZeRO-{stage}" for stage in (1, 2, 3)},
    "fsdp2_offload": "FSDP2 with CPU offload",
    **{f"zero{stage}_offload": f"DeepSpeed ZeRO-{stage} with CPU offload" for stage in (2, 3)},
}
STOPS = (2, 4, 7, 9, 12)
"""Steps after which a run of fifteen steps, five an epoch, is stopped. None ends an epoch."""


def go(strategy: str, recipe: Path, run: Path, faults: Sequence[Fault], server: ForkServer) -> tuple[int, str]:
    """Exit code and stderr of a run under a strategy: on two processes, or alone."""
    ranks = {} if strategy == "alone" else {"processes": 2, **ON_CPU, **SHARDING.get(strategy, {})}
    ended = server.run(*in_directory(recipe, run), faults=faults, **ranks)
    return ended.code, ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elastic")


def recipe_of(folder: Path, lora: bool, server: ForkServer) -> tuple[Path, Path]:
    """The recipe, and its run that nothing interrupted."""
    folder = folder / ("lora" if lora else "full")
    whole = folder / "whole"
    if not whole.exists():
        model = load_recipe(full_recipe(folder)).model.model_dump() | {"dropout": 0.0}
        changes: dict[str, Any] = {"lora": LORA} if lora else {}
        recipe = full_recipe(folder, model=model, optimizer={"lr": 1e-3, "warmup": 0.2, "eps": 1e-6}, **changes)
        code, stderr = go("alone", recipe, whole, FAST, server)
        assert code == 0, stderr
    return folder / "recipe.yaml", whole


def assert_as_one(run: Path, whole: Path) -> None:
    """The rows, losses, rates, norms, weights and exported rewards of a run are those of the other, within rounding."""
    assert lines(run, "ledger") == lines(whole, "ledger")
    for one, other in zip(lines(run, "metrics"), lines(whole, "metrics"), strict=True):
        assert one["step"] == other["step"]
        for key in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=2e-5, abs=2e-6), (key, one["step"])
    expected, resumed = weights(whole), weights(run)
    assert expected.keys() == resumed.keys()
    for name, tensor in resumed.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name
    ids = torch.tensor([json.loads((whole / "golden.json").read_text())[0]["ids"]])
    with torch.no_grad():
        rewards = [float(AutoModelForSequenceClassification.from_pretrained(path / "model")(ids).logits) for path in (run, whole)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)


def assert_resumed(stderr: str, step: int) -> None:
    assert [line for line in stderr.splitlines() if line.startswith("note: ") and f"step {step}" in line], stderr


@pytest.mark.parametrize(
    ("chain", "lora"),
    [
        pytest.param(("zero2", "alone", "zero1", "fsdp2", "ddp", "zero3"), False, id="full"),
        pytest.param(("zero3", "zero2", "fsdp2"), True, id="lora", marks=pytest.mark.long),
        pytest.param(
            ("fsdp2_offload", "zero3_offload", "alone", "zero2_offload", "fsdp2"), False, id="offload", marks=pytest.mark.long
        ),
    ],
)
def test_trap_27_resume_under_any_other_strategy(chain: tuple[str, ...], lora: bool, folder: Path, server: ForkServer) -> None:
    """A run that each strategy in turn resumes, and the last one exports, equals the uninterrupted run of one process."""
    recipe, whole = recipe_of(folder, lora, server)
    run, done = recipe.parent / "-".join(chain), 0
    for strategy, stop in zip(chain[:-1], STOPS, strict=False):
        code, stderr = go(strategy, recipe, run, [("step", stop - done, "SIGTERM@0")], server)
        assert code != 0, stderr
        assert "stopped by SIGTERM" in stderr
        if done:
            assert_resumed(stderr, done)
        assert steps_saved(run)[-1] == stop
        state = json.loads((run / f"checkpoints/step-{stop:08d}/state.json").read_text())
        assert state["strategy"] == NAMES[strategy], "guard: it was in force"
        done = stop
    code, stderr = go(chain[-1], recipe, run, [], server)
    assert code == 0, stderr
    assert_resumed(stderr, done)
    assert json.loads((run / "environment.json").read_text())["strategy"] == NAMES[chain[-1]]
    assert_as_one(run, whole)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["fsdp2_offload", "zero2_offload", "zero3_offload"])
def test_offloaded_run_resumes_exactly(strategy: str, folder: Path, server: ForkServer) -> None:
    """Stopped and resumed with the same offload, a run has the rows, final state and export of one that was not, bit for bit.

    Losses are equal but for the order of sums over ranks, in the log interval in which it was stopped, as without offload.
    """
    recipe, _ = recipe_of(folder, False, server)
    whole, parts = (recipe.parent / f"{strategy}-{name}" for name in ("whole", "parts"))
    assert go(strategy, recipe, whole, FAST, server)[0] == 0
    assert go(strategy, recipe, parts, [("step", 7, "SIGTERM@0")], server)[0] != 0
    assert steps_saved(parts)[-1] == 7, "guard: it was stopped"
    code, stderr = go(strategy, recipe, parts, FAST, server)
    assert code == 0, stderr
    assert_resumed(stderr, 7)
    one, other = left(parts), left(whole)
    for line, expected in zip(one.pop("metrics"), other.pop("metrics"), strict=True):
        assert line == pytest.approx(expected, rel=1e-6, abs=1e-7), line["step"]
    assert one == other
    assert set(one) >= {"ledger", "sha256"}, "guard: weights, optimizer and generators were compared"
    assert sha256(parts / "model/model.safetensors") == sha256(whole / "model/model.safetensors")


@pytest.mark.long
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
def test_sharded_4_bit_run_resumes_as_one(tmp_path: Path, server: ForkServer) -> None:
    """Adapters on 4-bit weights that FSDP2 shards train and export as in one process, which continues the run that FSDP2 began."""
    sizes = {"architecture": "llama", "hidden_size": 64, "layers": 2, "heads": 2, "max_positions": 128}
    base = {"quantization": "nf4", "dtype": "float32"}
    training = {"epochs": 1, "batch_size": 8, "precision": "float32", "max_steps": 6}
    write_start(tmp_path / "nf4", sizes, model=base, lora=LORA, training=training, optimizer={"lr": 1e-3, "eps": 1e-6})
    recipe, whole, parts = tmp_path / "nf4/recipe.yaml", tmp_path / "whole", tmp_path / "parts"
    assert go("alone", recipe, whole, FAST, server)[0] == 0
    assert go("fsdp2", recipe, parts, [("step", 3, "SIGTERM@0")], server)[0] != 0
    assert steps_saved(parts)[-1] == 3, "guard: it was stopped"
    code, stderr = go("alone", recipe, parts, FAST, server)
    assert code == 0, stderr
    losses = [[line["train/loss"] for line in lines(run, "metrics") if "train/loss" in line] for run in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) == 6


def test_trap_27_killed_on_two_resumed_on_one(folder: Path, server: ForkServer) -> None:
    """A warning names both numbers of processes."""
    recipe, whole = recipe_of(folder, False, server)
    run = recipe.parent / "killed"
    code, stderr = go("ddp", recipe, run, [("step", 8, "kill@1"), *FAST], server)
    assert code == -signal.SIGKILL, stderr
    assert not (run / "model").exists(), "guard: it was killed before its end"
    code, stderr = go("alone", recipe, run, FAST, server)
    assert code == 0, stderr
    assert_resumed(stderr, 6)
    assert [line for line in stderr.splitlines() if "processes" in line and "2" in line and "1" in line], stderr
    assert_as_one(run, whole)
