"""The optimizer step: micro-batches do not change it, modes are restored, the learning rate is a pure function of the step."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_scheduler

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Plan, StepLoader
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.engine.loop import build_optimizer, check_gradients, learning_rate, train_step, warn_of_lost_updates
from rmtrain.engine.run_log import Meter, check_finite
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import NumericError, RecipeError, RmtrainError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel, evaluating
from rmtrain.objective import Objective
from rmtrain.recipe.schema import Optimizer, Recipe, Training
from tests.comparisons import costs_of, random_pairs
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe


def comparisons(count: int) -> list[TokenizedComparison]:
    return random_pairs(count, prompts=9, responses=20)


def gradients_of_first_step(
    model: RewardModel, rows: list[TokenizedComparison], max_tokens: int, layout: Layout, recipe: Recipe
) -> tuple[dict, float, int]:
    model = copy.deepcopy(model).double()
    model.use_layout(layout)
    plan = Plan(costs_of(rows, layout), batch_size=len(rows), max_tokens=max_tokens, epochs=1, seed=1)
    accelerator, kept = Accelerator(cpu=True), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    zero_grad = optimizer.zero_grad
    optimizer.zero_grad = lambda: kept.update({n: p.grad.clone() for n, p in model.named_parameters()}) or zero_grad()  # type: ignore[method-assign]
    meter, batch = Meter(accelerator, 1), StepLoader(rows, plan, layout, pad_token_id=1).step(0)
    strategy = Strategy(accelerator)
    strategy.model, strategy.optimizer, strategy.clip = model, optimizer, None
    train_step(strategy, recipe.objective, meter, 0.0, batch)
    return kept, meter.report(1, 1.0, 0.0)["train/loss"], len(batch.micro_batches)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("count", [13, 16])
def test_trap_17_micro_batches_do_not_change_gradients(count: int, layout: Layout, tmp_path: Path) -> None:
    """Loss and gradients of a step are the same however it is split into micro-batches."""
    recipe = tiny_recipe(tmp_path, objective={"center_rewards": 0.1}, optimizer={"lr": 1e-3, "clip": None})
    model = build_reward_model(recipe.model, None, byte_bpe(), seed=1)
    rows = comparisons(count)
    whole, loss, pieces = gradients_of_first_step(model, rows, 10**6, layout, recipe)
    assert pieces == 1
    for max_tokens in (60, 100, 200):
        cut, cut_loss, cut_pieces = gradients_of_first_step(model, rows, max_tokens, layout, recipe)
        assert cut_pieces > 1, "guard: the step was cut"
        assert cut_loss == pytest.approx(loss, rel=1e-6)
        for name, gradient in whole.items():
            scale = gradient.abs().max().clamp(min=1e-12)
            assert ((cut[name] - gradient).abs().max() / scale).item() < 1e-5, name


def test_balancing_loss_counts_by_comparisons(tmp_path: Path) -> None:
    """A step adds the coefficient times the balance of each micro-batch, weighted by its share of the comparisons; losses stay."""
    sizes = {"architecture": "mixtral", "hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "max_positions": 128}
    model = build_reward_model(tiny_recipe(tmp_path, model={"scratch": sizes}).model, None, byte_bpe(), seed=1)
    model.backbone.set_experts_implementation("eager")  # others have no float64
    rows, found = comparisons(13), {}
    for coefficient in (None, 0.5):
        recipe = tiny_recipe(tmp_path, objective={"router_balance": coefficient}, optimizer={"lr": 1e-3, "clip": None})
        found[coefficient] = gradients_of_first_step(model, rows, 200, "shared_prefix", recipe)
    plain, loss, pieces = found[None]
    balanced, same_loss, _ = found[0.5]
    assert same_loss == loss, "of the rewards alone"

    expected = copy.deepcopy(model).double()
    expected.use_layout("shared_prefix")
    plan = Plan(costs_of(rows, "shared_prefix"), batch_size=len(rows), max_tokens=200, epochs=1, seed=1)
    for batch in StepLoader(rows, plan, "shared_prefix", pad_token_id=1).step(0).micro_batches:
        (0.5 * expected(batch, balance=True)[1] * len(batch.ids) / len(rows)).backward()
    own = {name: parameter.grad for name, parameter in expected.named_parameters() if parameter.grad is not None}
    for name, gradient in balanced.items():
        difference = gradient - plain[name] - own.get(name, 0.0)
        assert float(difference.abs().max()) < 1e-7, name
    assert any(name.endswith("gate.weight") and bool(gradient.abs().max() > 1e-4) for name, gradient in own.items())
    assert pieces > 1, "guard: the step was cut"


def test_trap_34_evaluation_restores_module_modes(tmp_path: Path) -> None:
    """Evaluation switches dropout off, and afterwards every module has the mode it had before."""
    model = build_reward_model(tiny_recipe(tmp_path, lora={"dropout": 0.5}).model, None, byte_bpe(), seed=1)
    model.hf.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2, "guard: modes differed"


def test_trap_24_parameter_without_gradient_is_named() -> None:
    """A trainable parameter without gradient is an error that names it; a frozen one is not."""
    strategy = Strategy(Accelerator(cpu=True))
    model = strategy.model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "forgotten": torch.nn.Linear(2, 1)})
    model["used"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(RmtrainError, match=r"^2 .*forgotten\.weight, forgotten\.bias"):
        check_gradients(strategy)
    model["forgotten"].requires_grad_(False)
    check_gradients(strategy)


def test_nonfinite_loss_ends_the_run() -> None:
    """A metric that is NaN is named with its step."""
    check_finite(3, {"train/loss": 0.5})
    with pytest.raises(NumericError, match=r"^step 3: .*train/loss.*nan"):
        check_finite(3, {"train/loss": math.nan})


def test_meter_reports_means_over_comparisons() -> None:
    """Means are over comparisons, not over micro-batches; a report starts a new interval."""
    meter = Meter(Accelerator(cpu=True), flos_per_token=10)
    for loss, comparisons in ((6.0, 4), (2.0, 1)):
        sums = [torch.tensor(float(value)) for value in (loss, 1, 3.0, 1.0, -2.0, comparisons, comparisons)]
        meter.add(Objective(*sums).statistics(), 100, 4, torch.tensor(0.25))
    metrics = meter.report(7, 0.5, 1e-3)
    assert metrics["train/loss"] == pytest.approx(8 / 5), "a mean over comparisons, not of micro-batch means"
    assert metrics["train/accuracy"] == pytest.approx(2 / 5)
    assert metrics["train/comparisons_per_second"] == pytest.approx(metrics["train/tokens_per_second"] * 8 / 200)
    assert metrics["total_flos"] == 2000
    assert metrics["train/global_step"] == 7
    assert "train/router_balance" not in metrics
    meter.add(Objective(*sums).statistics(), 1, 4, torch.tensor(0.25), balance=torch.tensor(2.5))
    assert meter.report(8, 0.5, 1e-3)["train/router_balance"] == 2.5
    assert meter.tokens == 0
    assert meter.sums.abs().sum() == 0


def test_trap_11_rates_depend_only_on_the_step() -> None:
    rate = learning_rate(Optimizer(lr=1.0), total_steps=10)
    assert [rate(step) for step in range(10)] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [rate(step) for step in (7, 3, 7)] == pytest.approx([0.3, 0.7, 0.3]), "in any order of steps"


def test_warmup_rises_linearly_cosine_falls_to_zero() -> None:
    rate = learning_rate(Optimizer(lr=0.2, schedule="cosine", warmup=0.2), total_steps=10)
    assert [rate(0), rate(1), rate(2)] == pytest.approx([0.0, 0.1, 0.2])
    assert rate(6) == pytest.approx(0.1)
    assert rate(10) == pytest.approx(0.0, abs=1e-9)
    constant = learning_rate(Optimizer(lr=0.2, schedule="constant", warmup=0.2), total_steps=10)
    assert [constant(1), constant(5), constant(9)] == pytest.approx([0.1, 0.2, 0.2])


SCHEDULES: list[tuple[dict[str, Any], str, int, dict[str, Any]]] = [
    ({"schedule": "linear"}, "linear", 0, {}),
    ({"schedule": "linear", "warmup": 0.13}, "linear", 7, {}),
    ({"schedule": "linear", "min_lr": 2e-5, "warmup": 7}, "polynomial", 7, {"lr_end": 2e-5, "power": 1.0}),
    ({"schedule": "cosine", "warmup": 1}, "cosine", 1, {}),
    ({"schedule": "cosine", "min_lr": 2e-5, "warmup": 0.1}, "cosine_with_min_lr", 5, {"min_lr": 2e-5}),
    ({"schedule": "cosine_with_restarts", "cycles": 3, "warmup": 4}, "cosine_with_restarts", 4, {"num_cycles": 3}),
    ({"schedule": "constant"}, "constant", 0, {}),
    ({"schedule": "constant", "warmup": 5}, "constant_with_warmup", 5, {}),
    ({"schedule": "inverse_sqrt", "warmup": 5}, "inverse_sqrt", 5, {}),
    ({"schedule": "wsd", "warmup": 5, "decay": 0.2}, "warmup_stable_decay", 5, {"num_decay_steps": 10}),
    (
        {"schedule": "warmup_stable_decay", "warmup": 0.1, "decay": 8, "min_lr": 1e-5},
        "warmup_stable_decay",
        5,
        {"num_decay_steps": 8, "min_lr_ratio": 0.05},
    ),
]


@pytest.mark.parametrize(("keys", "name", "warmup", "settings"), SCHEDULES)
def test_schedules_equal_those_of_transformers(keys: dict[str, Any], name: str, warmup: int, settings: dict[str, Any]) -> None:
    """Each step has the rate that a stepped scheduler of transformers has there, in any order of steps."""
    steps, lr = 47, 2e-4
    stepped = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, expected = get_scheduler(name, stepped, warmup, steps, settings), []
    for _ in range(steps):
        expected.append(stepped.param_groups[0]["lr"])
        stepped.step()
        scheduler.step()
    rate = learning_rate(Optimizer.model_validate({"lr": lr, **keys}), steps)
    assert [rate(step) for step in reversed(range(steps))] == pytest.approx(expected[::-1], rel=1e-6, abs=1e-12)
    assert (len(set(expected)) == 1) == (keys == {"schedule": "constant"}), "guard: rates differ"


def test_schedules_end_at_the_minimum() -> None:
    """By closed formulas: transformers' own could change."""
    for keys in ({"schedule": "linear"}, {"schedule": "cosine"}, {"schedule": "wsd", "decay": 50}):
        rate = learning_rate(Optimizer.model_validate({"lr": 1e-3, "min_lr": 1e-4, "warmup": 10, **keys}), 110)
        assert rate(10) == pytest.approx(1e-3)
        assert rate(110) == pytest.approx(1e-4)
        assert rate(85) == pytest.approx(
            {"linear": 3.25e-4, "cosine": 1e-4 + 9e-4 * (1 - math.sqrt(0.5)) / 2}.get(keys["schedule"], 5.5e-4)
        )


@pytest.mark.parametrize(
    ("keys", "key", "numbers"),
    [
        ({"warmup": 11}, "optimizer.warmup", ["11", "10"]),
        ({"schedule": "wsd", "warmup": 4, "decay": 7}, "optimizer.decay", ["4", "7", "10"]),
    ],
)
def test_schedules_longer_than_the_run_are_refused(keys: dict[str, Any], key: str, numbers: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        learning_rate(Optimizer.model_validate({"lr": 1e-3, **keys}), 10)
    (line,) = refused.value.problems
    assert line.startswith(f"{key}: ")
    assert all(number in line for number in numbers), line
    for shorter in (
        {"warmup": 10},
        {"schedule": "wsd", "warmup": 4, "decay": 6},
        {"schedule": "wsd", "warmup": 0.01, "decay": 0.99},
    ):
        learning_rate(Optimizer.model_validate({"lr": 1e-3, **shorter}), 10)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_the_head_has_its_own_rate(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    """The head moves as with an AdamW of its own, all other weights as without `head_lr`, and both by the same schedule."""
    recipe = tiny_recipe(tmp_path, lora=lora, optimizer={"lr": 1e-3, "head_lr": 2e-2, "weight_decay": 0.1, "warmup": 2})
    ours = build_reward_model(recipe.model, recipe.lora, byte_bpe(), seed=1)
    theirs = copy.deepcopy(ours)
    strategy = Strategy(Accelerator(cpu=True))
    strategy.prepare(ours, build_optimizer(ours, recipe.optimizer), clip=None)
    rest = [p for p in theirs.parameters() if p.requires_grad and p is not theirs.head_weight_1H]
    plain = recipe.optimizer.model_copy(update={"head_lr": None})
    others = build_optimizer(nn.ParameterList(rest), plain)
    head = torch.optim.AdamW([theirs.head_weight_1H], lr=2e-2, weight_decay=0.1)
    before, rate = theirs.head_weight_1H.detach().clone(), learning_rate(recipe.optimizer, 9)
    for step in range(9):
        gradients = torch.Generator().manual_seed(step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            if mine.requires_grad:
                mine.grad = torch.randn(mine.shape, generator=gradients)
                other.grad = mine.grad.clone()
        strategy.update(rate(step))
        for optimizer, factor in ((others, 1.0), (head, 20.0)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate(step)
            optimizer.step()
    moved = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-7), name
        assert name in moved or torch.equal(mine, other)
    assert float((ours.head_weight_1H.detach() - before).abs().mean()) > 10 * 1e-3, "guard: the head moved at its own rate"
    restored = copy.deepcopy(ours)
    again = Strategy(Accelerator(cpu=True))
    again.prepare(restored, build_optimizer(restored, recipe.optimizer), clip=None)
    again.restore_optimizer(strategy.optimizer_state())
    again.set_lr(1e-3)
    assert sorted({group["lr"] for group in again.optimizer.param_groups}) == pytest.approx([1e-3, 2e-2])
    saved, loaded = strategy.optimizer_state(), again.optimizer_state()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_only_trainable_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model, Optimizer(lr=1e-3, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0.1
    assert decay[id(model[0].bias)] == decay[id(model[1].weight)] == 0.0
    assert id(model[2].weight) not in decay
    assert isinstance(optimizer, torch.optim.AdamW)


def test_trap_02_lost_bfloat16_updates_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(64, 64, bias=False).bfloat16()
    nn.init.constant_(model.weight, 0.02)
    allowed = Training(allow_bfloat16_weights=True)
    warn_of_lost_updates(model, Training(), 1e-6)
    assert not caplog.records
    warn_of_lost_updates(model, allowed, 1e-6)
    warn_of_lost_updates(model, allowed, 1e-3)
    lost, kept = (record.message for record in caplog.records)
    assert " 100.0 %" in lost
    assert " 0.0 %" in kept
    warn_of_lost_updates(model.float(), allowed, 1e-6)
    assert len(caplog.records) == 2
