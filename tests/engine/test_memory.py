"""Memory by budget: the result does not depend on it, running out of it halves it, and the heaviest micro-batch comes first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from rmtrain.batching.layout import Layout
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import CPU_TOKENS, Plan
from rmtrain.commands.train import train
from rmtrain.engine.memory import token_budget, warmup_largest_batch
from rmtrain.engine.optim import build_optimizer
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RmtrainError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel
from tests.comparisons import costs_of
from tests.engine.test_loop import comparisons
from tests.helpers import byte_bpe
from tests.runs import metrics_of, tiny_recipe

QUIET = Console(quiet=True)


def losses(directory: Path) -> list[float]:
    return [line["train/loss"] for line in metrics_of(directory) if "train/loss" in line]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model/model.safetensors")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Micro-batches of more than 150 tokens run out of memory, as a GPU's allocator says it; returns the tokens of those that did."""
    failed: list[int] = []
    forward = RewardModel.forward

    def limited(self: RewardModel, batch: Any) -> torch.Tensor:
        tokens = batch.input_ids_RT.numel()
        if tokens > 150 and self.training:
            failed.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch)

    monkeypatch.setattr(RewardModel, "forward", limited)
    return failed


def test_budgets_and_layouts_and_running_out_of_memory_give_the_same_losses_and_weights(tmp_path: Path, request: Any) -> None:
    runs = {
        "small": {"layout": "shared_prefix", "max_tokens": 250},
        "large": {"layout": "shared_prefix", "max_tokens": 16000},
        "auto": {},
        "padded": {"layout": "padded", "max_tokens": 4000},
        "failing": {"max_tokens": 600},
    }
    failed: list[int] = []
    for name, batching in runs.items():
        if name == "failing":
            failed = request.getfixturevalue("little_memory")
        train(
            tiny_recipe(
                tmp_path, run={"output_dir": str(tmp_path / name)}, batching=batching, optimizer={"lr": 1e-3, "eps": 1e-6}
            ),
            QUIET,
        )
    reference = weights(tmp_path / "large")
    for name in runs:
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "large"), abs=1e-6), name
        for key, value in weights(tmp_path / name).items():
            assert (value - reference[key]).abs().max() < 1e-5, f"{name} {key}"
    assert failed, "guard: memory ran out"
    assert all(tokens <= 600 for tokens in failed)


def test_running_out_of_memory_with_one_comparison_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: RewardModel, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RewardModel, "forward", never)
    recipe = tiny_recipe(tmp_path, batching={"layout": "shared_prefix", "max_tokens": 800})
    monkeypatch.setattr("rmtrain.commands.train.choose_layout", lambda *_: "shared_prefix")
    with pytest.raises(
        RmtrainError, match=r"out of memory with batching.max_tokens \d+, the tokens of comparison train:\d+ alone; lower"
    ):
        train(recipe, QUIET)


def test_trap_47_the_heaviest_micro_batch_comes_first_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    model = build_reward_model(recipe.model, None, byte_bpe(), seed=1)
    model.use_layout("shared_prefix")
    rows = comparisons(40)
    plan = Plan(costs_of(rows, "shared_prefix"), batch_size=16, max_tokens=200, epochs=1, seed=1)
    loader = StepLoader(rows, plan, "shared_prefix", pad_token_id=1)
    heaviest = loader.largest_micro_batch()
    planned = [batch.tokens for number in range(len(loader)) for batch in loader.step(number).micro_batches]
    assert plan.costs.tokens.max() <= heaviest.input_ids_RT.numel() <= 200
    assert heaviest.input_ids_RT.numel() >= 0.7 * max(planned)
    assert heaviest.weight_E.sum() == 0
    optimizer = build_optimizer(model, recipe.optimizer)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    warmup_largest_batch(Strategy(Accelerator(cpu=True)), model, optimizer, loader)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("world", [2, 4])
def test_trap_47_the_heaviest_of_several_ranks_is_that_of_their_share(layout: Layout, world: int) -> None:
    rows = comparisons(40)
    plan = Plan(costs_of(rows, layout), batch_size=16, max_tokens=10**6, epochs=1, seed=1, world=world)
    heaviest = StepLoader(rows, plan, layout, pad_token_id=1).largest_micro_batch().input_ids_RT.numel()
    loaders = [StepLoader(rows, plan, layout, 1, rank) for rank in range(world)]
    steps = [loader.step(number).micro_batches for loader in loaders for number in range(len(loader))]
    planned = [batch.input_ids_RT.numel() for step in steps for batch in step]
    whole = plan.costs.of_micro_batch(np.argsort(-plan.costs.tokens)[:16])
    assert 0.7 * max(planned) <= heaviest < 0.8 * whole, "guard: no rank computes a whole step"


def test_auto_on_a_cpu_is_a_constant_but_never_below_the_largest_comparison(tmp_path: Path) -> None:
    model = build_reward_model(tiny_recipe(tmp_path).model, None, byte_bpe(), seed=1)
    costs = costs_of(comparisons(10), "shared_prefix")
    assert token_budget("auto", costs, model) == CPU_TOKENS
    assert token_budget(77, costs, model) == 77
    larger = costs.__class__(costs.tokens * 1000, costs.longest, costs.responses, padded=False)
    assert token_budget("auto", larger, model) == int(larger.tokens.max())
