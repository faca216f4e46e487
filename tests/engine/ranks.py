"""What one rank of a strategy computes, for tests: `python -m tests.engine.ranks STRATEGY FOLDER`, alone or under torchrun.

For each case the gradients of the first step, then the losses and gradient norms of twenty steps whose micro-batches differ in number
and size. The main process leaves them in FOLDER.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from rmtrain.batching.layout import Layout
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Plan
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.engine.loop import train_step
from rmtrain.engine.metrics import Meter
from rmtrain.engine.optim import build_optimizer, learning_rate
from rmtrain.engine.run import start
from rmtrain.engine.state import trained_parameters, whole
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import Recipe
from tests.comparisons import costs_of, tokenized
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe

STEPS, BATCH, ROWS = 20, 9, 100
LORA = {"rank": 4, "alpha": 8}
SHARDING = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    },
    **{
        f"zero{stage}": {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        }
        for stage in (1, 2, 3)
    },
}
"""What `accelerate launch` sets for the ranks of a strategy."""


@dataclass(frozen=True)
class Case:
    """What is trained: the whole model or adapters, in a layout, with weights of a type."""

    lora: bool
    layout: Layout
    dtype: str

    @property
    def name(self) -> str:
        return f"{'lora' if self.lora else 'full'}-{self.layout}-{self.dtype}"


CASES = [
    Case(lora, layout, dtype)
    for lora in (False, True)
    for layout in ("shared_prefix", "padded")
    for dtype in ("float64", "float32")
]


def cases_of(strategy: str) -> list[Case]:
    """DeepSpeed keeps its flat buffers in float32, so that of its cases only those in float32 can be compared."""
    return [case for case in CASES if case.dtype == "float32" or not strategy.startswith("zero")]


def comparisons() -> list[TokenizedComparison]:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(ROWS):
        prompt = rng.integers(2, 300, rng.integers(0, 20)).tolist()
        sides = tuple([*prompt, *rng.integers(2, 300, rng.integers(2, 40)).tolist(), 0] for _ in range(2))
        rows.append(tokenized(f"s:{number}", *sides, preferences=(Preference(0, 1, float(rng.random())),)))
    return rows


def plan_of(case: Case, world: int) -> Plan:
    """Steps of nine comparisons and a shorter last one, in micro-batches of at most 150 tokens."""
    costs = costs_of(comparisons(), case.layout)
    return Plan(costs, BATCH, max_tokens=150, epochs=2, seed=1, world=world, max_steps=STEPS)


def recipe_of(case: Case, folder: Path) -> Recipe:
    lora = {"lora": LORA} if case.lora else {}
    return tiny_recipe(
        folder, optimizer={"lr": 1e-3, "eps": 1e-6, "warmup": 0.2, "clip": 1.0}, objective={"center_rewards": 0.01}, **lora
    )


def compute(strategy: Any, case: Case, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Whole gradients of the first step by name, and losses and gradient norms by step."""
    model = build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=1).to(getattr(torch, case.dtype))
    model.use_layout(case.layout)
    accelerator, rate = strategy.accelerator, learning_rate(recipe.optimizer, STEPS)
    loader = StepLoader(comparisons(), plan_of(case, accelerator.num_processes), case.layout, 1, accelerator.process_index)
    prepared, optimizer = strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
    meter, update, gradients, curves = Meter(accelerator, 1), strategy.update, {}, {"loss": [], "grad_norm": []}

    def keeping_gradients(*arguments: Any) -> Any:
        if not gradients:
            gradients.update(whole_gradients(prepared))
        return update(*arguments)

    strategy.update = keeping_gradients
    for number in range(STEPS):
        meter.sums = meter.sums.to(getattr(torch, case.dtype))
        _, is_step = train_step(strategy, prepared, optimizer, recipe, meter, rate(number), loader.step(number))
        assert is_step
        metrics = meter.report(number + 1, 1.0, 0.0)
        for key, values in curves.items():
            values.append(metrics[f"train/{key}"])
    strategy.update = update
    accelerator._models.clear()
    accelerator._optimizers.clear()
    return gradients, curves


def whole_gradients(model: Any) -> dict[str, torch.Tensor]:
    if type(model).__name__ == "DeepSpeedEngine":
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(parameter).cpu().clone() for name, parameter in trained_parameters(model).items()}
    return {name: whole(parameter.grad).cpu().clone() for name, parameter in trained_parameters(model).items()}


def main(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(SHARDING.get(name, {}))
    inputs = folder / f"rank-{os.environ.get('RANK', '0')}"
    inputs.mkdir()
    strategy = start(recipe_of(CASES[0], inputs))
    for case in cases_of(name):
        gradients, curves = compute(strategy, case, recipe_of(case, inputs))
        if strategy.accelerator.is_main_process:
            save_file(gradients, folder / f"{case.name}.safetensors")
            (folder / f"{case.name}.json").write_text(json.dumps({"strategy": strategy.name, **curves}))
    strategy.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # at the interpreter's own exit, threads of gloo that still run abort the process now and then
