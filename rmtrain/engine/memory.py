"""Memory by budget: choose the size of micro-batches before the first step, and lower it when memory runs out."""

import logging
import resource
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs, StepBatch, StepLoader, cpu_budget
from rmtrain.data.artifact import TokenizedData
from rmtrain.engine.distributed import any_rank, run_on_main
from rmtrain.engine.memory_estimate import MemoryModel
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.recipe.schema import Recipe

logger = logging.getLogger("rmtrain")

T = TypeVar("T")

RUNS_OUT = ("cuda",)
"""Types of devices that raise an error when memory runs out. On a CPU the kernel ends the process instead, and the heaviest micro-batch,
which can take as long as several steps, would be computed for nothing."""


def token_budget(
    recipe: Recipe, data: TokenizedData, layout: Layout, tokenizer: PreTrainedTokenizerBase, strategy: Strategy
) -> int:
    """Return `batching.max_tokens` as a number. Called on all ranks, with the model on the device.

    `auto` on a GPU is the largest micro-batch with which the estimate of `--dry-run` fits. Ranks take the number of the main one, because
    each GPU may have other memory free.
    """
    max_tokens, costs = recipe.batching.max_tokens, Costs.of(data, layout)
    if max_tokens != "auto":
        return max_tokens
    if strategy.accelerator.device.type != "cuda":
        return cpu_budget(costs)

    def gpu_budget() -> int:
        device, processes = strategy.accelerator.device, strategy.accelerator.num_processes
        free, memory = torch.cuda.mem_get_info(device)
        if not torch.are_deterministic_algorithms_enabled():
            # Free memory changes from run to run, and the rounding of losses with the budget: deterministic runs count all of it.
            memory = free + torch.cuda.memory_allocated(device)
        try:
            model = MemoryModel.of(recipe, tokenizer, data, layout, on_gpu=True)
        except RecipeError as error:
            logger.warning("%s; trying batching.max_tokens %d", error, cpu_budget(costs))
            return cpu_budget(costs)
        return model.budget(strategy.kind, processes, memory, costs)

    return run_on_main(strategy.accelerator, gpu_budget)


def scoring_budget(max_tokens: int | Literal["auto"], costs: Costs) -> int:
    """Return the tokens of a micro-batch that is only scored, on any device.

    `auto` is the budget of a CPU: without backward, activations of one layer at a time are held, so it fits wherever the model trains.
    """
    return cpu_budget(costs) if max_tokens == "auto" else max_tokens


def retry_on_oom(compute: Callable[[StepBatch], T], number: int, strategy: Strategy, loader: StepLoader) -> T:
    """Compute a step; when memory runs out, halve the budget and compute the same step again, from the same weights.

    With several processes the run ends instead: a rank without memory cannot call the others back from what they are reducing.

    Raises:
        RmtrainError: memory runs out with one comparison a micro-batch, or on one of several processes.
    """
    while True:
        try:
            return compute(loader.step(number))
        except torch.OutOfMemoryError:
            if strategy.accelerator.num_processes > 1:
                raise _out_of_memory(loader) from None
            _lower_budget(strategy, loader)


def warmup_largest_batch(strategy: Strategy, loader: StepLoader, balance: bool = False) -> None:
    """On a GPU, compute the heaviest micro-batch first, forward and backward, so that memory runs out now or never.

    With `balance`, it is computed as for `objective.router_balance`.

    Its loss has a weight of zero; weights, optimizer and random generators are unchanged afterwards.

    Raises:
        RmtrainError: memory runs out with one comparison a micro-batch, or where weights are sharded.
    """
    device = strategy.accelerator.device
    if device.type not in RUNS_OUT:
        return
    devices = [device] if device.type == "cuda" else []
    while True:
        ran_out = False
        try:
            with torch.random.fork_rng(devices=devices), strategy.micro_batch(is_last=False):
                outputs = tree_leaves(strategy.model(loader.largest_micro_batch().to(device), balance))
                strategy.backward(sum(output.sum() for output in outputs) * 0.0)
        except torch.OutOfMemoryError:
            if strategy.shards:
                raise _out_of_memory(loader) from None
            ran_out = True
        if not any_rank(strategy.accelerator, ran_out):
            strategy.optimizer.zero_grad()
            return
        _lower_budget(strategy, loader)


def peak_memory(accelerator: Accelerator) -> list[int]:
    """Return the most bytes that each rank held: tensors on its GPU, or the whole process on a CPU. Called on all ranks."""
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(accelerator.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return [int(bytes_) for bytes_ in gather_object([peak])]


def _out_of_memory(loader: StepLoader) -> RmtrainError:
    budget = loader.plan.max_tokens
    remedy = (
        f"run the same command with batching.max_tokens={budget // 2}: it resumes from the last checkpoint, with the same losses"
    )
    return RmtrainError(f"out of memory with micro-batches of {budget} tokens; {remedy}")


def _lower_budget(strategy: Strategy, loader: StepLoader) -> None:
    strategy.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    before = loader.plan.max_tokens
    if not loader.halve_budget():
        largest = loader.data[int(loader.plan.costs.tokens.argmax())].id
        problem = f"out of memory with batching.max_tokens {before}, the tokens of comparison {largest} alone"
        raise RmtrainError(f"{problem}; lower data.max_length, set model.gradient_checkpointing, or train with lora")
    logger.warning("out of memory with micro-batches of %d tokens; continuing with %d", before, loader.plan.max_tokens)
