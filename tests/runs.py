"""Small whole runs for tests: rows with a planted rule, recipes as files, the command line as a process."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
GOOD = ["bright", "calm", "fair", "glad", "kind", "neat", "warm", "wise"]
BAD = ["bleak", "cross", "dull", "grim", "harsh", "mean", "sour", "vile"]
NOUNS = ["barn", "boat", "clerk", "field", "harbour", "lamp", "mill", "road", "ship", "tower"]


def planted_rows(count: int, seed: int = 0, shuffled: bool = False) -> list[dict[str, str]]:
    """Pairs in which the chosen response names good things and the rejected one bad things; shuffled: a coin decides."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        prompt = f"Entry {seed}-{number}: describe the {rng.choice(NOUNS)} and the {rng.choice(NOUNS)}."
        sides = [
            " ".join(f"the {rng.choice(NOUNS)} is {rng.choice(words)}," for _ in range(rng.randint(1, 4)))
            for words in (GOOD, BAD)
        ]
        if shuffled and rng.random() < 0.5:
            sides.reverse()
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


def styled_rows(count: int) -> list[dict[str, Any]]:
    """Rows of RM-Bench's shape, in which right responses name good things and wrong ones bad things, in three lengths."""
    rng = random.Random(7)

    def of(words: list[str]) -> list[str]:
        return [" ".join(f"the {rng.choice(NOUNS)} is {rng.choice(words)}," for _ in range(size)) for size in (1, 2, 4)]

    domains = ("chat", "math", "code", "safety-refuse", "safety-response")
    return [
        {
            "id": f"row {number}",
            "domain": domains[number % 5],
            "prompt": f"Describe entry {number}.",
            "chosen": of(GOOD),
            "rejected": of(BAD),
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_recipe(folder: Path, rows: int = 48, test_rows: int = 16, **changes: Any) -> Recipe:
    """A recipe of a tiny scratch llama on planted rows, with whole sections merged over it."""
    train = write_rows(folder / "train.jsonl", planted_rows(rows, seed=1))
    test = write_rows(folder / "test.jsonl", planted_rows(test_rows, seed=2))
    sections: dict[str, Any] = {
        "run": {"name": "tiny", "output_dir": str(folder / "run")},
        "data": {
            "train": [{"path": str(train)}],
            "eval": [{"path": str(test)}],
            "chat_template": "simple_chat",
            "max_length": 96,
            "cache_dir": str(folder / "cache"),
        },
        "model": {
            "scratch": {
                "architecture": "llama",
                "hidden_size": 32,
                "layers": 2,
                "heads": 2,
                "intermediate_size": 64,
                "vocab_size": 400,
                "max_positions": 128,
            }
        },
        "optimizer": {"lr": 2e-3},
        "training": {"batch_size": 8, "precision": "float32"},
        "batching": {"max_tokens": 1024},
        "tracking": {"log_every": 1},
    }
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values} if isinstance(values, dict) else values
    return Recipe.model_validate(sections)


def write_recipe(folder: Path, recipe: Recipe) -> Path:
    """The recipe as a file."""
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def rmtrain(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, without colours."""
    return subprocess.run(
        [sys.executable, "-m", "rmtrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment_of_process(**environment),
        timeout=400,
    )


def environment_of_process(**changes: str) -> dict[str, str]:
    """The environment of a process that tests start: of the checkout, offline, one thread, lines of 100 characters."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return {**os.environ, **ours, **changes}


def torchrun(processes: int) -> list[str]:
    """What starts a module or script, named after it, as so many ranks."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
