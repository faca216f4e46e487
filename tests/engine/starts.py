"""One rank that starts runs under a strategy: `python -m tests.engine.starts STRATEGY FOLDER`, under torchrun, for FOLDER/*/recipe.yaml.

Next to each recipe, `start-RANK.json` has what the rank held in memory above what it held before, and how its weights differ from those of
the model that one process builds. The memory of the first recipe includes imports.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rmtrain.commands.train import build_model, prepare_model
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start
from rmtrain.engine.state_dict import frozen_fingerprint, gathered
from rmtrain.engine.strategy import Strategy
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import golden_texts
from rmtrain.model.reward_model import unwrap
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.engine.ranks import SHARDING, forget


def memory(key: str) -> int:
    """Return a size of this process in bytes: VmRSS, or VmHWM, the most since the process began or `clear_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def clear_peak() -> None:
    """Set VmHWM to VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def started(recipe: Recipe, strategy: Strategy) -> dict[str, Any]:
    """Start a run up to its first step."""
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    rows = prepare(recipe.data, tokenizer).train
    golden = golden_texts(tokenizer, recipe.data.max_length)
    clear_peak()
    before = memory("VmRSS")
    model = build_model(recipe, tokenizer, golden, int(rows.longest.max()), strategy)
    layers = 0 if model.layer_weights is None else len(model.layer_weights.waiting)
    found: dict[str, Any] = {"layers": layers}

    def noted(stage: str) -> Callable[..., None]:
        method = getattr(strategy, stage)

        def call(*arguments: Any) -> None:
            method(*arguments)
            found[stage] = memory("VmHWM") - before

        return call

    with pytest.MonkeyPatch.context() as patch:
        for stage in ("place", "prepare"):
            patch.setattr(strategy, stage, noted(stage))
        layout = prepare_model(model, recipe, rows, tokenizer, strategy)
    found["peak"] = memory("VmHWM") - before
    strategy.reshard()
    whole = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    held = dict(unwrap(strategy.model).named_parameters())
    differing = [] if held.keys() == dict(whole.named_parameters()).keys() else ["names"]
    for name, expected in whole.named_parameters():
        with gathered(held[name]) as tensor:
            if tensor.dtype != expected.dtype or not torch.equal(tensor.cpu(), expected):
                differing.append(name)
    buffers = dict(unwrap(strategy.model).named_buffers())
    differing += [name for name, expected in whole.named_buffers() if not torch.equal(buffers[name].cpu(), expected)]
    found["whole"] = sum(parameter.nbytes for parameter in whole.parameters())
    found["types"] = Counter(str(parameter.dtype).removeprefix("torch.") for parameter in held.values())
    same_frozen = strategy.frozen == frozen_fingerprint(whole)
    return {**found, "differing": differing, "same_frozen": same_frozen, "frozen": strategy.frozen, "layout": layout}


def main(name: str, folder: Path) -> None:
    os.environ.update(SHARDING[name])
    recipes = {file.parent: load_recipe(file) for file in sorted(folder.glob("*/recipe.yaml"))}
    strategy = start(next(iter(recipes.values())))
    for directory, recipe in recipes.items():
        found = started(recipe, strategy)
        (directory / f"start-{strategy.accelerator.process_index}.json").write_text(json.dumps(found))
        forget(strategy)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # as in tests.engine.ranks
