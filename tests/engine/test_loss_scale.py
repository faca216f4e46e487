"""float16 with loss scaling: it is near float32, overflows cost no row and end, and what no scale mends is reported."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp import GradScaler

from rmtrain.batching.plan import Plan, StepLoader
from rmtrain.engine import strategy as strategies
from rmtrain.engine.loop import MAX_NONFINITE_STEPS, StepResult, build_optimizer, record_rows, retry_on_overflow, train_step
from rmtrain.engine.run_log import Meter
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import NumericError
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel, computing_type
from tests.comparisons import costs_of
from tests.engine.test_loop import comparisons
from tests.helpers import byte_bpe
from tests.runs import tiny_recipe


class Training:
    """A tiny model and its steps, in float16 from a given loss scale."""

    def __init__(self, folder: Path, scale: float = 2.0**16, computing: str = "float16") -> None:
        recipe = tiny_recipe(folder)
        self.model = build_reward_model(recipe.model, None, byte_bpe(), seed=1)
        self.model.computing = computing
        self.model.use_layout("shared_prefix")
        rows = comparisons(16)
        plan = Plan(costs_of(rows, "shared_prefix"), batch_size=8, max_tokens=200, epochs=20, seed=1)
        self.loader, accelerator = StepLoader(rows, plan, "shared_prefix", pad_token_id=1), Accelerator(cpu=True)
        self.strategy, self.recipe, self.meter = Strategy(accelerator), recipe, Meter(accelerator, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strategies, "GradScaler", partial(GradScaler, init_scale=scale))
            self.strategy.prepare(self.model, build_optimizer(self.model, recipe.optimizer), 1.0)

    def finish(self, number: int) -> StepResult:
        """Compute a step as the loop does."""
        compute = partial(train_step, self.strategy, self.recipe.objective, self.meter, 1e-3)
        return retry_on_overflow(compute, number, self.strategy, self.loader)

    def step(self, number: int) -> StepResult:
        return train_step(self.strategy, self.recipe.objective, self.meter, 1e-3, self.loader.step(number))

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}

    @property
    def scale(self) -> float:
        return self.strategy.scaler.get_scale()


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_float16_is_near_float32(tmp_path: Path) -> None:
    """Losses, and gradient norms without the scale; steps that overflow at first are computed again, so that no row is left out."""
    curves: dict[str, list[dict[str, float]]] = {}
    for computing in ("float32", "float16"):
        training = Training(tmp_path, 2.0**24, computing)
        curves[computing] = []
        for number in range(6):
            assert training.finish(number).outcome == "updated"
            curves[computing].append(training.meter.report(number + 1, 1.0, 0.0))
    for one, other in zip(curves["float32"], curves["float16"], strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-2)
        assert other["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=3e-2)
        assert other["train/loss"] != one["train/loss"], "guard: it computes in float16"
    assert training.scale < 2**24, "guard: some steps overflowed"


def test_an_overflow_halves_the_scale_alone(tmp_path: Path) -> None:
    """Weights, optimizer and metrics are those before it, until a gradient is finite."""
    training, outcomes = Training(tmp_path, scale=2.0**24), []
    while "updated" not in outcomes:
        before, scale = training.weights(), training.scale
        outcomes.append(training.step(0).outcome)
        changed = any(not torch.equal(tensor, before[name]) for name, tensor in training.weights().items())
        assert changed == (outcomes[-1] == "updated") == (not training.meter.is_empty)
        assert training.scale == (scale if changed else scale / 2)
        assert all(parameter.grad is None for parameter in training.model.parameters())
    assert set(outcomes[:-1]) == {"overflowed"}
    assert len(outcomes) > 3, "guard"


def test_endless_overflow_ends_the_run(training: Training) -> None:
    """The scale falls to 1; from there on a gradient that is not finite is a failure."""
    next(training.model.parameters()).register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    noted: list[int] = []
    log: Any = SimpleNamespace(rows=lambda *_: None, not_finite=lambda step, _: noted.append(step))
    before, nonfinite = training.weights(), 0
    for number in range(MAX_NONFINITE_STEPS - 1):
        nonfinite = record_rows(number + 1, training.finish(number), nonfinite, log)
        assert training.scale == 1
    with pytest.raises(NumericError, match=r"^step 3: "):
        record_rows(3, training.finish(2), nonfinite, log)
    assert noted == [1, 2, 3]
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.weights().items())
    assert before, "guard"


def test_a_nan_loss_is_no_overflow(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are reported at once, whatever the scale is."""
    forward = RewardModel.forward
    monkeypatch.setattr(RewardModel, "forward", lambda self, batch: forward(self, batch) * math.nan)
    assert training.step(0).outcome == "not_finite"
    assert training.scale > 1, "guard: the scale could still fall"
    monkeypatch.setattr(RewardModel, "forward", forward)
    assert training.finish(1).outcome == "updated"


def test_a_step_without_memory_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory can run out in the update, which makes the optimizer's state; the scaler then accepts the same step again."""
    training = Training(tmp_path, scale=16.0)
    step, calls = torch.optim.AdamW.step, []

    def without_memory(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *arguments, **named)

    monkeypatch.setattr(
        training.strategy.optimizer.optimizer, "step", partial(without_memory, training.strategy.optimizer.optimizer)
    )
    with pytest.raises(torch.OutOfMemoryError):
        training.step(0)
    training.strategy.optimizer.zero_grad()
    assert training.step(0).outcome == "updated"
    assert len(calls) == 2, "guard"


def test_other_types_have_no_scale(tmp_path: Path) -> None:
    """The scaler leaves losses as they are, to the bit."""
    strategy, loss = Strategy(Accelerator(cpu=True)), torch.tensor(0.1, requires_grad=True)
    recipe = tiny_recipe(tmp_path)
    model = build_reward_model(recipe.model, None, byte_bpe(), seed=1)
    for computing in ("float32", "bfloat16", "float16"):
        model.computing = computing
        strategy.prepare(model, build_optimizer(model, recipe.optimizer), None)
        scaled = strategy.scaler.scale(loss)
        assert (scaled is loss) == (computing != "float16")
        assert bool(strategy.scaler.state_dict()) == (computing == "float16")


def test_auto_takes_float16_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4 and V100 emulate bfloat16, which torch counts as support unless asked."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert computing_type("auto", cpu) == "float32"
    assert computing_type("auto", gpu) == "bfloat16", "of a GPU elsewhere, in a dry run"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert (computing_type("auto", gpu), computing_type("auto", cpu)) == ("float16", "float32")
    assert computing_type("bfloat16", gpu) == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert computing_type("auto", gpu) == "bfloat16"
