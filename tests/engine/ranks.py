"""One rank of a strategy, for tests: `python -m tests.engine.ranks STRATEGY FOLDER`, alone or under torchrun.

For each case it computes the gradients of the first step, then the losses and gradient norms of steps whose micro-batches differ in
number and size. The main process writes them to FOLDER.
"""

import itertools
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Plan, StepLoader
from rmtrain.data.comparison import Target, TokenizedComparison
from rmtrain.engine.distributed import start
from rmtrain.engine.loop import build_optimizer, learning_rate, train_step
from rmtrain.engine.run_log import Meter
from rmtrain.engine.state_dict import full_tensor, trained_parameters
from rmtrain.errors import RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import BySource, Recipe, Regression
from tests.comparisons import costs_of, random_pairs
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe

STEPS, BATCH, ROWS, BUDGET = 20, 9, 100, 150
ZERO_STEPS = 8
"""DeepSpeed's steps take longest."""
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
"""Environment variables that `accelerate launch` sets for the ranks of a strategy."""
OFFLOADED = {f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE": "cpu" for part in ("OPTIMIZER", "PARAM")}
SHARDING |= {
    "fsdp2_offload": {**SHARDING["fsdp2"], "FSDP_OFFLOAD_PARAMS": "true"},
    "zero2_offload": {**SHARDING["zero2"], "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
    "zero3_offload_optimizer": {**SHARDING["zero3"], "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
    "zero3_offload": {**SHARDING["zero3"], **OFFLOADED},
}


@dataclass(frozen=True)
class Case:
    """A kind of training: all weights or adapters, the layout, the type of computation, gradient checkpointing, and a type of mixture."""

    lora: bool
    layout: Layout
    dtype: str
    checkpointing: bool = False
    mixture: str = ""
    labels: bool = False

    @property
    def weights(self) -> torch.dtype:
        """The type of the weights."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def name(self) -> str:
        kind = f"{'lora' if self.lora else 'full'}-{self.layout}-{self.dtype}"
        name = f"{kind}{'-checkpointing' * self.checkpointing}{'-' * bool(self.mixture)}{self.mixture}"
        return f"{name}{'-labels' * self.labels}"


CASES = [
    *(Case(*kind) for kind in itertools.product((False, True), ("shared_prefix", "padded"), ("float64", "float32"))),
    Case(True, "shared_prefix", "float32", checkpointing=True),
    Case(False, "shared_prefix", "bfloat16"),
    Case(False, "shared_prefix", "float32", labels=True),
]
"""The last one has weights, and every third comparison has targets instead of a preference."""


MIXTURES = [Case(True, "shared_prefix", "float32", mixture=name) for name in ("mixtral", "olmoe")]
"""Adapters on experts, and a balancing loss. Each comparison is a micro-batch of its own on any number of processes, since that loss
depends on how a step is cut. transformers has no sequence-classification class for olmoe; one is made."""
MIXTURE_SIZES = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "intermediate_size": 64,
    "max_positions": 128,
}


def cases_of(strategy: str) -> list[Case]:
    """Return the cases of a strategy: DeepSpeed's flat buffers are float32, and ZeRO-3 refuses adapters of OLMoE's experts."""
    cases = [case for case in [*MIXTURES, *CASES] if case.dtype != "float64" or not strategy.startswith("zero")]
    return [case for case in cases if case.mixture != "olmoe" or not strategy.startswith("zero3")]


def comparisons(case: Case) -> list[TokenizedComparison]:
    """Return random pairs; for a mixture so long that no two fit into the budget."""
    rows = random_pairs(ROWS, prompts=20, responses=40)
    if case.labels:
        return [with_labels(row, number) for number, row in enumerate(rows)]
    return [row for row in rows if costs_of([row], case.layout).tokens[0] > BUDGET // 2] if case.mixture else rows


def with_labels(row: TokenizedComparison, number: int) -> TokenizedComparison:
    weight = (0.5, 1.0, 3.0, 1.5)[number % 4]
    if number % 3:
        return replace(row, weight=weight)
    return replace(row, source="rated", preferences=(), targets=(Target(0, number / 50), Target(1, 1.0, 2.0)), weight=weight)


def steps_of(strategy: str) -> int:
    """Return the number of steps that a strategy trains."""
    return ZERO_STEPS if strategy.startswith("zero") else STEPS


def plan_of(case: Case, world: int) -> Plan:
    """Plan steps of nine comparisons and a shorter last one, in micro-batches of at most 150 tokens."""
    costs = costs_of(comparisons(case), case.layout)
    batch = 2 if case.mixture else BATCH
    return Plan(costs, batch, max_tokens=BUDGET, epochs=2, seed=1, world=world, max_steps=STEPS)


def recipe_of(case: Case, folder: Path) -> Recipe:
    sections: dict[str, Any] = {"lora": LORA} if case.lora else {}
    sections["model"] = {"gradient_checkpointing": case.checkpointing} | (
        {"scratch": {"architecture": case.mixture, **MIXTURE_SIZES}} if case.mixture else {}
    )
    sections["objective"] = {"center_rewards": 0.01} | ({"router_balance": 0.1} if case.mixture else {})
    rates = {"lr": 1e-3, "head_lr": 3e-3, "eps": 1e-6, "warmup": 0.2, "clip": 1.0}
    recipe = tiny_recipe(folder, optimizer=rates, **sections)
    if case.labels:
        rated = Regression(type="regression", mean=1.0, std=0.5, weight=0.3)
        return recipe.model_copy(update={"objective": BySource(type="by_source", sources={"rated": rated})})
    return recipe


class Trained:
    """The model of a case under a strategy, with everything that its steps need."""

    def __init__(self, strategy: Any, case: Case, recipe: Recipe) -> None:
        model = build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=1)
        model.computing = case.dtype if case.dtype == "bfloat16" else "float32"
        model.use_layout(case.layout)
        model.to(case.weights)
        self.strategy, self.case, self.recipe, accelerator = strategy, case, recipe, strategy.accelerator
        plan = plan_of(case, accelerator.num_processes)
        self.loader = StepLoader(comparisons(case), plan, case.layout, 1, accelerator.process_index)
        strategy.place(model)
        strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
        self.model = strategy.model
        self.meter, self.rate = Meter(accelerator, 1), learning_rate(recipe.optimizer, STEPS)
        forget(strategy)

    def step(self, number: int) -> bool:
        """Compute a step, and return whether there was an update."""
        self.meter.sums = self.meter.sums.to(self.case.weights)
        return (
            train_step(self.strategy, self.recipe.objective, self.meter, self.rate(number), self.loader.step(number)).outcome
            == "updated"
        )


def forget(strategy: Any) -> None:
    """Remove from an accelerator what it knows of a model, whose layers may be of another class than those of the next one."""
    accelerator = strategy.accelerator
    accelerator._models.clear()
    accelerator._optimizers.clear()
    if strategy.kind.startswith("fsdp2"):
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = None


def compute(strategy: Any, case: Case, recipe: Recipe, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return full gradients of the first step by name; losses, gradient norms, and the share of rewards off the bfloat16 grid."""
    trained, update, gradients = Trained(strategy, case, recipe), strategy.update, {}
    curves: dict[str, Any] = {"loss": [], "grad_norm": [], "off_grid": off_grid(trained)}

    def keeping_gradients(*arguments: Any) -> Any:
        if not gradients:
            gradients.update(full_gradients(trained.model))
        return update(*arguments)

    strategy.update = keeping_gradients
    for number in range(steps):
        assert trained.step(number)
        metrics = trained.meter.report(number + 1, 1.0, 0.0)
        for key in ("loss", "grad_norm"):
            curves[key].append(metrics[f"train/{key}"])
    strategy.update = update
    return gradients, curves


def off_grid(trained: Trained) -> float:
    """Return the share of some rewards that bfloat16 cannot represent."""
    with torch.no_grad():
        rewards = trained.model(trained.loader.step(0).micro_batches[0])
    return float((rewards != rewards.bfloat16()).double().mean())


def not_finite(strategy: Any, case: Case, recipe: Recipe) -> dict[str, bool]:
    """Check that a NaN loss on the last rank changes nothing on any rank, and that the next step trains again."""
    trained, backward = Trained(strategy, case, recipe), strategy.backward
    is_last = strategy.accelerator.process_index == strategy.accelerator.num_processes - 1
    steps = [trained.step(0)]
    before = {name: tensor.clone() for name, tensor in strategy.weights().items()}
    strategy.backward = lambda loss: backward(loss * float("nan") if is_last else loss)
    steps.append(trained.step(1))
    strategy.backward = backward
    after = {name: tensor.clone() for name, tensor in strategy.weights().items()}
    steps.append(trained.step(2))
    last = strategy.weights()
    return {
        "steps": steps == [True, False, True],
        "unchanged": all(torch.equal(tensor, after[name]) for name, tensor in before.items()),
        "moved": any(not torch.equal(tensor, last[name]) for name, tensor in after.items()),
    }


def full_gradients(model: Any) -> dict[str, torch.Tensor]:
    if type(model).__name__ == "DeepSpeedEngine":
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(parameter).cpu().clone() for name, parameter in trained_parameters(model).items()}
    return {name: full_tensor(parameter.grad).cpu().clone() for name, parameter in trained_parameters(model).items()}


def place_problem(strategy: Any, case: Case, recipe: Recipe) -> str:
    """Return why a strategy cannot take the model of a case."""
    try:
        strategy.place(build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=1))
    except RecipeError as error:
        return "; ".join(error.problems)
    return ""


def main(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(SHARDING.get(name, {}))
    inputs = folder / f"rank-{os.environ.get('RANK', '0')}"
    inputs.mkdir()
    strategy = start(recipe_of(CASES[0], inputs))
    for case in cases_of(name):
        gradients, curves = compute(strategy, case, recipe_of(case, inputs), steps_of(name))
        if strategy.accelerator.is_main_process:
            save_file(gradients, folder / f"{case.name}.safetensors")
            (folder / f"{case.name}.json").write_text(json.dumps({"strategy": strategy.name, **curves}))
    result = not_finite(strategy, CASES[1], recipe_of(CASES[1], inputs))
    if strategy.accelerator.is_main_process:
        (folder / "not_finite.json").write_text(json.dumps(result))
        refused = [case for case in MIXTURES if case not in cases_of(name)]
        problems = {case.mixture: place_problem(strategy, case, recipe_of(case, inputs)) for case in refused}
        (folder / "refused.json").write_text(json.dumps(problems))
    strategy.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # threads of gloo that still run sometimes abort the process at the interpreter's own exit
