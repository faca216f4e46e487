"""The learning rate is a pure function of the step, and only matrices decay."""

import pytest
import torch
from torch import nn

from rmtrain.engine.loop import build_optimizer, learning_rate, warn_of_lost_updates
from rmtrain.recipe.schema import Optimizer, Training


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
