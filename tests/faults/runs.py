"""A small run with everything that a resume could lose, and its results for comparison."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rmtrain.recipe.schema import Recipe
from tests.faults.driver import Fault
from tests.forks import FAST, ForkServer
from tests.runs import styled_rows, tiny_recipe, write_recipe, write_rows

TIMES = ("tokens_per_second", "comparisons_per_second", "runtime", "samples_per_second", "steps_per_second")
STEPS = 15


def full_recipe(folder: Path, **changes: Any) -> Path:
    """Write a recipe of 15 steps in three epochs: dropout, warm-up, open log intervals, evaluations, a best checkpoint, rotation."""
    folder.mkdir(parents=True, exist_ok=True)
    base, styled = tiny_recipe(folder), write_rows(folder / "rm_bench.jsonl", styled_rows(5))
    sections: dict[str, Any] = {
        "model": {**base.model.model_dump(), "dropout": 0.1},
        "optimizer": {"lr": 2e-3, "warmup": 0.2},
        "training": {"epochs": 3, "batch_size": 8, "precision": "float32"},
        "evaluation": {"every": 3, "samples": 1, "benchmarks": [{"name": "rm_bench", "path": str(styled), "every": 6}]},
        "checkpoints": {"every": 2, "minutes": None, "best": "loss"},
        "tracking": {"log_every": 4},
    }
    return write_recipe(folder, tiny_recipe(folder, rows=40, test_rows=10, **{**sections, **changes}))


def in_directory(recipe: Path, run: Path) -> list[str]:
    """Return the arguments that train a recipe in a directory."""
    return ["train", str(recipe), f"run.output_dir={run}"]


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of a record; none if it does not exist yet."""
    file = run / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def left(run: Path, steps: int = STEPS) -> dict[str, Any]:
    """Return everything that two equal runs share: all records except times, and the final weights, optimizer and generators."""
    last = run / f"checkpoints/step-{steps:08d}"
    metrics = [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines(run, "metrics")]
    files = [file for file in last.iterdir() if file.suffix == ".safetensors"]
    records = {name: lines(run, name) for name in ("ledger", "samples", "nonfinite")}
    return {"metrics": metrics, **records, "sha256": {file.name: sha256(file) for file in files}}


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(run: Path, step: int = STEPS) -> dict[str, Any]:
    """Return the weights of a checkpoint."""
    return load_file(run / f"checkpoints/step-{step:08d}/model.safetensors")


def steps_saved(run: Path) -> list[int]:
    """List the steps that have checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait for a condition to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds:g} s"
        time.sleep(0.005)


def every_row_once_an_epoch(ledger: list[dict[str, Any]], recipe: Recipe, rows: int = 40) -> bool:
    """Return whether the ledger has each row exactly once in each epoch."""
    by_epoch: dict[int, list[str]] = {}
    for line in ledger:
        by_epoch.setdefault(line["epoch"], []).extend(line["ids"])
    return len(by_epoch) == recipe.training.epochs and all(len(ids) == len(set(ids)) == rows for ids in by_epoch.values())


def stop_after(step: int, at: int = 0) -> list[Fault]:
    """Return the faults that stop a run after this step by SIGTERM; `at`: the step that the process resumes from."""
    return [("step", step - at, "SIGTERM"), *FAST]


def stopped(server: ForkServer, recipe: Path, run: Path, steps: Sequence[int]) -> None:
    """Run to each of these steps in a process of its own."""
    at = 0
    for step in steps:
        ended = server.run(*in_directory(recipe, run), faults=stop_after(step, at))
        assert ended.code == 143, ended.stderr
        assert "SIGTERM" in ended.stderr
        assert str(run) in ended.stderr
        assert f"from step {at} (" in ended.stderr or not at
        assert steps_saved(run)[-1] == step
        at = step
