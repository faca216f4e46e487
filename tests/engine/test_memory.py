"""Memory by budget: results do not depend on it, running out of memory halves it, and the heaviest micro-batch comes first."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from rmtrain.batching.layout import Layout, MicroBatch
from rmtrain.batching.plan import CPU_TOKENS, Costs, Plan, StepLoader
from rmtrain.commands.train import train
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.engine import memory
from rmtrain.engine.loop import build_optimizer
from rmtrain.engine.memory import scoring_budget, token_budget, warmup_largest_batch
from rmtrain.engine.memory_estimate import MemoryModel
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Recipe
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
    """Micro-batches of more than 150 tokens run out of memory as on a GPU; the list holds the tokens of those that did."""
    failed: list[int] = []
    forward = RewardModel.forward

    def limited(self: RewardModel, batch: Any, balance: bool = False) -> Any:
        tokens = 0 if callable(batch) else batch.input_ids_RT.numel()
        if tokens > 150 and self.training:
            failed.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, balance)

    monkeypatch.setattr(RewardModel, "forward", limited)
    return failed


@pytest.mark.usefixtures("no_reload")
def test_results_do_not_depend_on_the_budget(tmp_path: Path, request: Any) -> None:
    """Any budget, any layout, and running out of memory on the way give the same losses and weights."""
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


def test_oom_with_one_comparison_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: RewardModel, batch: Any, balance: bool = False) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RewardModel, "forward", never)
    recipe = tiny_recipe(tmp_path, batching={"layout": "shared_prefix", "max_tokens": 800})
    monkeypatch.setattr("rmtrain.commands.train.choose_layout", lambda *_: "shared_prefix")
    with pytest.raises(RmtrainError) as ended:
        train(recipe, QUIET)
    assert re.search(r"batching\.max_tokens \d+\b.* train:\d+ ", ended.value.problems[0])


def test_trap_47_warmup_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heaviest micro-batch comes first, as heavy as any planned one; weights, gradients, optimizer and random state are unchanged."""
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
    strategy = Strategy(Accelerator(cpu=True))
    strategy.model, strategy.optimizer = model, optimizer
    computed: list[MicroBatch] = []
    model.register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0]))
    warmup_largest_batch(strategy, loader)
    assert not computed, "a CPU does not report that memory ran out"
    monkeypatch.setattr(memory, "RUNS_OUT", ("cpu",))
    warmup_largest_batch(strategy, loader)
    assert [batch.input_ids_RT.tolist() for batch in computed] == [heaviest.input_ids_RT.tolist()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def size(batch: MicroBatch) -> int:
    """Count the tokens that are computed, with their padding."""
    return sum(part.input_ids_RT.numel() for part in batch.rectangles())


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("world", [2, 4])
def test_trap_47_ranks_warm_up_with_their_share(layout: Layout, world: int) -> None:
    """The heaviest micro-batch of several ranks is as heavy as any of a rank, and not a whole step."""
    rows = comparisons(40)
    plan = Plan(costs_of(rows, layout), batch_size=16, max_tokens=10**6, epochs=1, seed=1, world=world)
    heaviest = size(StepLoader(rows, plan, layout, pad_token_id=1).largest_micro_batch())
    loaders = [StepLoader(rows, plan, layout, 1, rank) for rank in range(world)]
    steps = [loader.step(number).micro_batches for loader in loaders for number in range(len(loader))]
    planned = [size(batch) for step in steps for batch in step]
    whole = plan.costs.of_micro_batch(np.argsort(-plan.costs.tokens)[:16])
    assert 0.7 * max(planned) <= heaviest < 0.8 * whole, "guard: no rank computes a whole step"


def data_of(rows: Sequence[TokenizedComparison], factor: int = 1) -> Any:
    """What a budget reads of training data; each comparison counts as `factor` times as long."""
    costs = costs_of(rows, "shared_prefix")
    return SimpleNamespace(unique_tokens=costs.tokens * factor, longest=costs.longest * factor, response_counts=costs.responses)


def budget_of(recipe: Recipe, data: Any, device: str) -> int:
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=1)
    strategy: Any = SimpleNamespace(accelerator=accelerator, kind="single")
    return token_budget(recipe, data, "shared_prefix", byte_bpe(), strategy)


def test_auto_on_a_cpu_is_constant(tmp_path: Path) -> None:
    """It is never below the largest comparison, and scoring takes the same."""
    auto, fixed = (tiny_recipe(tmp_path, batching={"max_tokens": value}) for value in ("auto", 777))
    rows = comparisons(10)
    assert budget_of(auto, data_of(rows), "cpu") == CPU_TOKENS == scoring_budget("auto", costs_of(rows, "shared_prefix"))
    assert budget_of(fixed, data_of(rows), "cpu") == 777 == scoring_budget(777, costs_of(rows, "shared_prefix"))
    larger = data_of(rows, factor=1000)
    assert budget_of(auto, larger, "cpu") == larger.unique_tokens.max() > CPU_TOKENS


def test_auto_on_a_gpu_counts_usable_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory and what this process already holds; all of it in deterministic runs; a constant for a model that cannot be traced."""
    memories: list[int] = []

    class Model:
        def budget(self, strategy: str, processes: int, memory: int, costs: Costs) -> int:
            memories.append(memory)
            return 5

    monkeypatch.setattr(MemoryModel, "of", lambda *_, **__: Model())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    recipe, data = tiny_recipe(tmp_path, batching={"max_tokens": "auto"}), data_of(comparisons(10))
    assert budget_of(recipe, data, "cuda") == 5
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert budget_of(recipe, data, "cuda") == 5
    assert memories == [630, 1000]

    def untraceable(*_: Any, **__: Any) -> Model:
        raise RecipeError("model: it looks at values")

    monkeypatch.setattr(MemoryModel, "of", untraceable)
    assert budget_of(recipe, data, "cuda") == CPU_TOKENS
