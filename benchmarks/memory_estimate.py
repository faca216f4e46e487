"""The memory that `rmtrain train --dry-run` estimates against the memory that training takes, for models of different character.

Each measurement is a process of its own that does what a run does: the heaviest micro-batch first, then optimizer steps. On a GPU it is
the most that tensors took there (`torch.cuda.max_memory_allocated`). On a CPU it is resident memory at its peak minus resident memory
before the model is built. The C library must return each block at once, since what it keeps is not a tensor; and the libraries that
PyTorch loads at its first matrix product are loaded before. In float32: for bfloat16 on CPUs oneDNN keeps memory of its own for each
shape of a product. Where all weights train, steps consist of several micro-batches, as the estimate assumes. Needs Linux.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, in_fresh_processes, machine, parser, peak_bytes, reset_peak, rss_bytes, show
from benchmarks.ours import few_steps
from benchmarks.pairs import HH, hh_rows, recipe_for
from rmtrain.command_line.options import TrainOptions
from rmtrain.commands.dry_run import dry_run
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine import memory as engine_memory
from rmtrain.engine.distributed import start
from rmtrain.recipe.schema import Recipe

MEGABYTE = 10**6
LEAST, MOST = 0.97, 1.2
"""Bounds of estimate / measured: an estimate may be above, since it is for the worst steps of a run, but it must not promise too much."""
WIDE = {"hidden_size": 768, "layers": 6, "heads": 12, "intermediate_size": 2048}
NARROW = {"hidden_size": 256, "layers": 4, "heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "weights: llama, 48M, 1,280 tokens": {
        "scratch": {"architecture": "llama", **WIDE},
        "batching": {"layout": "shared_prefix", "max_tokens": 1280},
        "training": {"batch_size": 16},
    },
    "activations: gpt_neox, 5M, 8,192 tokens": {
        "scratch": {"architecture": "gpt_neox", **NARROW},
        "batching": {"layout": "shared_prefix", "max_tokens": 8192},
        "training": {"batch_size": 64},
    },
    "LoRA: qwen2, 44M, rank 16, 4,096 tokens": {
        "scratch": {"architecture": "qwen2", **WIDE, "key_value_heads": 4},
        "lora": {"rank": 16},
        "batching": {"layout": "packed", "max_tokens": 4096},
        "training": {"batch_size": 8},
    },
    "the same, recomputed in backward": {
        "scratch": {"architecture": "qwen2", **WIDE, "key_value_heads": 4},
        "model": {"gradient_checkpointing": True},
        "lora": {"rank": 16},
        "batching": {"layout": "packed", "max_tokens": 4096},
        "training": {"batch_size": 8},
    },
    "padded: bert, 5M, 8,192 tokens": {
        "scratch": {"architecture": "bert", **NARROW},
        "batching": {"layout": "padded", "max_tokens": 8192},
        "training": {"batch_size": 32},
    },
}


def measure_here(recipe: Recipe) -> dict[str, int]:
    """Train `training.max_steps` in this process; return the most bytes that they took, and the estimate of a dry run."""
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    measured = _train(recipe, prepare(recipe.data, tokenizer), tokenizer)
    document = dry_run(recipe, Console(quiet=True), TrainOptions()).document
    (estimated,) = (one for one in document["strategies"] if one["name"] == document["strategy"])
    return {"measured": measured, "estimated": estimated["total"]}


def _recipe(model: dict[str, Any], arguments: Namespace, folder: Path) -> Recipe:
    file, _ = hh_rows(arguments.data, folder)
    sections = {key: value for key, value in model.items() if key not in ("scratch", "training")}
    return recipe_for(file, folder, model["scratch"], training={**model["training"], "max_steps": arguments.steps}, **sections)


def _train(recipe: Recipe, prepared: PreparedData, tokenizer: Any) -> int:
    """Return the most bytes in addition to those before the model."""
    strategy = start(recipe)
    device = strategy.accelerator.device
    nn.Linear(64, 64, device=device)(torch.ones(64, 64, device=device)).sum().backward()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    before = rss_bytes()
    # A run on a CPU computes the heaviest micro-batch when its turn comes; here that may be never.
    engine_memory.RUNS_OUT = ("cpu", "cuda")
    few_steps(recipe, tokenizer, prepared, strategy)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes() - before


def measure(name: str, arguments: Namespace) -> list[dict[str, int]]:
    """Measure in fresh processes."""
    command = [sys.executable, __file__, f"--child={name}", f"--data={arguments.data}", f"--steps={arguments.steps}"]
    at_once = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    return in_fresh_processes(command, arguments.repeats, **at_once)


def main() -> None:
    """Measure, print and write; or be the process that is measured. Fails where an estimate is out of bounds."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; pairs are generated where it is missing")
    made.add_argument("--steps", type=int, default=3, help="optimizer steps of each process; the first has no moments yet")
    made.add_argument("--repeats", type=int, default=1, help="processes for each model; the median counts")
    made.add_argument("--child", help="model to measure in this process")
    arguments = made.parse_args()
    if arguments.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure_here(_recipe(MODELS[arguments.child], arguments, Path(folder)))))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("memory_estimate.py reads /proc, which only Linux has")
    if arguments.quick:
        arguments.steps = 1
    about = machine()
    found = {name: measure(name, arguments) for name in MODELS}
    lines, ratios = [], []
    for name, results in found.items():
        estimated, measured = (median(one[key] for one in results) for key in ("estimated", "measured"))
        ratios.append(estimated / measured)
        lines.append([name, round(estimated / MEGABYTE), round(measured / MEGABYTE), ratios[-1]])
    show("the most that training takes", ["model", "MB estimated", "MB measured", "ratio"], lines)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} ×"
    figures = [figure("memory that --dry-run estimates, against what training takes", spread, f"{LEAST} to {MOST} ×")]
    finish(arguments, {"machine": about, "runs": found}, figures)
    if min(ratios) < LEAST or max(ratios) > MOST:
        raise SystemExit(f"estimates are {spread} what training takes; expected {LEAST} to {MOST}")


if __name__ == "__main__":
    main()
