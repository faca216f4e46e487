"""Loss to updates: parameter groups, the optimizer, and the learning rate as a pure function of the step."""

import logging
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import get_scheduler

from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Optimizer, Training

logger = logging.getLogger("rmtrain")


def build_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; matrices decay, vectors (biases, norms) do not.

    Raises:
        RecipeError: `adamw_8bit` without bitsandbytes.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer.name == "adamw_8bit":
        return _adamw_8bit(groups, optimizer)
    on_accelerator = all(parameter.device.type == "cuda" for parameter in trainable)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=on_accelerator or None)


def _adamw_8bit(groups: Iterable[dict[str, object]], optimizer: Optimizer) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise RecipeError("optimizer.name: adamw_8bit needs bitsandbytes; install rmtrain[8bit] or use adamw") from None
    return AdamW8bit(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)  # type: ignore[no-any-return]


def warn_of_lost_updates(model: nn.Module, training: Training, lr: float) -> None:
    """Where bfloat16 weights are trained, say how many of them a step can change at all: AdamW moves a weight by about `lr`."""
    weights = [p.detach() for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16]
    if training.allow_bfloat16_weights and weights:
        movable = sum(int(((weight + lr) != weight).sum()) for weight in weights)
        share = movable / sum(weight.numel() for weight in weights)
        logger.warning(
            "trainable weights are bfloat16: a step of %g is lost to rounding in %.1f %% of them", lr, 100 * (1 - share)
        )


def learning_rate(optimizer: Optimizer, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0: transformers' schedule of that name, evaluated rather than stepped.

    A schedule that is stepped must be saved, restored and kept from accelerate's per-process stepping; a function need not.
    """
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup_steps = math.ceil(optimizer.warmup * total_steps)
    name = "constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule
    schedule = get_scheduler(name, placeholder, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    (factor,) = schedule.lr_lambdas
    return lambda step: optimizer.lr * float(factor(step))
