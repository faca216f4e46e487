"""The optimizer step: results do not depend on micro-batches, modes are restored, and parameters that cannot train are named."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Plan, StepLoader
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.engine.loop import check_gradients, train_step
from rmtrain.engine.run_log import Meter, check_finite
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import NumericError, RmtrainError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel, evaluating
from rmtrain.objective import Objective
from rmtrain.recipe.schema import Recipe
from tests.comparisons import costs_of, random_pairs
from tests.helpers import byte_bpe
from tests.runs import ROOT, metrics_of, tiny_recipe, torchrun, write_recipe


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
    train_step(strategy, recipe, meter, 0.0, batch)
    return kept, meter.report(1, 1.0, 0.0)["train/loss"], len(batch.micro_batches)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("count", [13, 16])
def test_trap_17_gradients_do_not_depend_on_micro_batches(count: int, layout: Layout, tmp_path: Path) -> None:
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


def test_trap_17_two_processes_equal_one(tmp_path: Path) -> None:
    """Every logged metric of two processes equals that of one."""
    recipe = tiny_recipe(tmp_path, rows=44, run={"output_dir": str(tmp_path / "one")}, batching={"max_tokens": 400})
    path = write_recipe(tmp_path, recipe)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for name, starter in (("one", [sys.executable]), ("two", torchrun(2))):
        command = [*starter, "-m", "rmtrain", "train", str(path), f"run.output_dir={tmp_path / name}"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
        assert result.returncode == 0, result.stderr
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, other in zip(one, two, strict=True):
        for key in ("train/loss", "train/grad_norm", "train/accuracy", "train/learning_rate", "eval/loss", "eval/accuracy"):
            assert (key in other) == (key in mine)
            assert other.get(key, 0.0) == pytest.approx(mine.get(key, 0.0), rel=2e-5), key
    assert '"processes": 2' in (tmp_path / "two/environment.json").read_text(), "guard: two processes ran"
    assert 44 % 8, "guard: the last step was shorter"


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
        sums = [torch.tensor(float(value)) for value in (loss, 1, 3.0, 1.0, -2.0, comparisons)]
        meter.add(Objective(*sums).statistics(), 100, torch.tensor(0.25))
    metrics = meter.report(7, 0.5, 1e-3)
    assert metrics["train/loss"] == pytest.approx(8 / 5), "a mean over comparisons, not of micro-batch means"
    assert metrics["train/accuracy"] == pytest.approx(2 / 5)
    assert metrics["total_flos"] == 2000
    assert metrics["train/global_step"] == 7
    assert meter.tokens == 0
    assert meter.sums.abs().sum() == 0
