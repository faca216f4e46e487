"""The optimizer with its parameter groups, and the learning rate as a pure function of the step."""

import logging
import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import get_scheduler

from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Optimizer, Training

logger = logging.getLogger("rmtrain")


def build_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; weight decay applies to matrices, not to vectors (biases, norms).

    Raises:
        RecipeError: `adamw_8bit` is requested without bitsandbytes.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise RecipeError("optimizer.name: adamw_8bit needs bitsandbytes; install rmtrain[8bit] or use adamw") from None
        return AdamW8bit(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)  # type: ignore[no-any-return]
    on_accelerator = all(parameter.device.type == "cuda" for parameter in trainable)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=on_accelerator or None)


def warn_of_lost_updates(model: nn.Module, training: Training, lr: float) -> None:
    """Warn of the share of bfloat16 weights that a step cannot change: AdamW moves a weight by about `lr`, which may round to nothing."""
    weights = [p.detach() for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16]
    if training.allow_bfloat16_weights and weights:
        movable = sum(int(((weight + lr) != weight).sum()) for weight in weights)
        share = movable / sum(weight.numel() for weight in weights)
        logger.warning(
            "trainable weights are bfloat16: a step of %g is lost to rounding in %.1f %% of them", lr, 100 * (1 - share)
        )


def learning_rate(optimizer: Optimizer, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0, by transformers' schedule of that name.

    A schedule that is stepped would have to be saved, restored and kept from accelerate, which steps it once per process.
    """
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup_steps = math.ceil(optimizer.warmup * total_steps)
    name = "constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule
    schedule = get_scheduler(name, placeholder, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    (factor,) = schedule.lr_lambdas
    return lambda step: optimizer.lr * float(factor(step))
