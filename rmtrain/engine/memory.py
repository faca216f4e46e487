"""Memory by budget: how large micro-batches may be, found out before the first step, and lowered when it was too much."""

import logging
import resource
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from rmtrain.batching.loader import StepBatch, StepLoader
from rmtrain.batching.plan import Costs, cpu_budget
from rmtrain.engine.distributed import any_rank
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RmtrainError
from rmtrain.model.reward_model import RewardModel

logger = logging.getLogger("rmtrain")

ACTIVATIONS_PER_TOKEN = 34
"""Values of hidden size that a block keeps for backward, for each token (Korthikanti et al., arXiv:2205.05198, section 4.1)."""
SHARE_OF_FREE_MEMORY = 0.6

T = TypeVar("T")


def token_budget(max_tokens: int | Literal["auto"], costs: Costs, model: RewardModel) -> int:
    """`batching.max_tokens` as a number.

    `auto` on a GPU: 60 % of the free memory over two bytes for each activation that backward needs; an out-of-memory error lowers it.
    What is free changes from run to run, and with the budget the rounding: under deterministic algorithms 60 % of all memory counts.
    """
    if max_tokens != "auto":
        return max_tokens
    if model.device.type != "cuda":
        return cpu_budget(costs)
    free, total = torch.cuda.mem_get_info(model.device)
    return gpu_budget(total if torch.are_deterministic_algorithms_enabled() else free, costs, model)


def gpu_budget(usable: int, costs: Costs, model: RewardModel) -> int:
    """What `auto` gives on a GPU with so many bytes."""
    config = model.backbone.config.get_text_config()
    per_token = 2 * ACTIVATIONS_PER_TOKEN * config.hidden_size * config.num_hidden_layers
    return max(int(SHARE_OF_FREE_MEMORY * usable / per_token), int(costs.tokens.max()))


def retry_on_oom(
    compute: Callable[[StepBatch], T], number: int, strategy: Strategy, optimizer: torch.optim.Optimizer, loader: StepLoader
) -> T:
    """Compute a step; when memory runs out, halve the budget and compute the same step again, from the same weights.

    Of several processes, one that runs out cannot call the others back from what they are reducing: it ends the run.

    Raises:
        RmtrainError: memory runs out with one comparison a micro-batch, or on one of several processes.
    """
    while True:
        try:
            return compute(loader.step(number))
        except torch.OutOfMemoryError:
            if strategy.accelerator.num_processes > 1:
                raise _ended(loader) from None
            _lower_budget(optimizer, loader)


def warmup_largest_batch(strategy: Strategy, model: nn.Module, optimizer: torch.optim.Optimizer, loader: StepLoader) -> None:
    """Compute the heaviest micro-batch first, forward and backward, so that memory runs out now or never.

    Its loss is weighed by zero; weights, optimizer and random generators are afterwards what they were.

    Raises:
        RmtrainError: memory runs out with one comparison a micro-batch, or where weights are in pieces.
    """
    device = strategy.accelerator.device
    devices = [device] if device.type == "cuda" else []
    while True:
        ran_out = False
        try:
            with torch.random.fork_rng(devices=devices), strategy.micro_batch(model, is_last=False):
                strategy.backward(model, model(loader.largest_micro_batch().to(device)).sum() * 0.0)
        except torch.OutOfMemoryError:
            if strategy.shards:
                raise _ended(loader) from None
            ran_out = True
        if not any_rank(strategy.accelerator, ran_out):
            optimizer.zero_grad()
            return
        _lower_budget(optimizer, loader)


def peak_memory(accelerator: Accelerator) -> list[int]:
    """Bytes that each rank held at most: tensors on its GPU, or the whole process where there is none. Called on all ranks."""
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(accelerator.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [int(bytes_) for bytes_ in gather_object([peak])]


def _ended(loader: StepLoader) -> RmtrainError:
    budget = loader.plan.max_tokens
    return RmtrainError(
        f"out of memory with micro-batches of {budget} tokens; the same command with batching.max_tokens={budget // 2} goes on "
        "from the last checkpoint, with the same losses"
    )


def _lower_budget(optimizer: torch.optim.Optimizer, loader: StepLoader) -> None:
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    before = loader.plan.max_tokens
    if not loader.halve_budget():
        largest = int(loader.plan.costs.tokens.argmax())
        raise RmtrainError(
            f"out of memory with batching.max_tokens {before}, the tokens of comparison {loader.data[largest].id} alone; lower "
            "data.max_length, set model.gradient_checkpointing, or train with lora"
        )
    logger.warning("out of memory with micro-batches of %d tokens; going on with %d", before, loader.plan.max_tokens)
