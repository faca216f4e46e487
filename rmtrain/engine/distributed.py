"""Work that all ranks of a job share: joining the job, rank 0's work whose outcome each rank gets, and questions that all answer."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from rmtrain.engine.signals import GracefulShutdown
from rmtrain.errors import RecipeError, RmtrainError

SHARDING = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
"""Variables that `accelerate launch` sets for the ranks of a strategy that shards the model."""
EVALUATION_TIMEOUT = timedelta(days=30)
"""All ranks wait for the lines of standard input, which may come slowly."""
LEFT_GROUPS: list[Any] = []
"""Groups that this process has left, kept alive: the destructor of one of gloo joins threads that may be waiting for the GIL."""


def launched(**options: Any) -> Accelerator:
    """Return the accelerator of this job, for one process or several.

    Args:
        options: of the Accelerator.

    Raises:
        RmtrainError: accelerate runs another number of processes than were launched.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision="no",  # the model runs in bfloat16 by itself, the same way under every strategy
        cpu=count > 1 and not torch.cuda.is_available(),
        **options,
    )
    if accelerator.num_processes != count:
        running = accelerator.num_processes
        raise RmtrainError(f"{count} processes were launched, but accelerate runs {running}; check its configuration")
    return accelerator


def start_evaluation() -> Accelerator:
    """Return the accelerator of an evaluation, in which every process holds the whole model.

    Raises:
        RecipeError: the job was launched with a strategy that shards the model.
        RmtrainError: see `launched`.
    """
    sharding = [name for name, variable in SHARDING.items() if is_set(variable)]
    if sharding:
        raise RecipeError(f"scoring needs the full model on every process; use the ddp configuration instead of {sharding[0]}")
    return launched(kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=EVALUATION_TIMEOUT)])


def is_set(variable: str) -> bool:
    """Return whether `accelerate launch` switched something on."""
    return os.environ.get(variable, "false").lower() == "true"


def model_device(accelerator: Accelerator) -> torch.device:
    """Return the device for a rank's model.

    accelerate calls the CPU of one rank of several `cpu:0`. Moving weights there copies them, to addresses that are aligned
    differently, so that sums round differently from those of a single process.
    """
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def leave_group(accelerator: Accelerator) -> None:
    """Leave the other ranks, which then need not wait for what this one still does."""
    if torch.distributed.is_initialized():
        LEFT_GROUPS.append(torch.distributed.group.WORLD)
    accelerator.state.destroy_process_group()


T = TypeVar("T")


def run_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do work on rank 0 alone. A collective.

    Returns:
        The result of the work, on every rank.

    Raises:
        RmtrainError, OSError: the error of the work, on every rank, so that none waits for the others.
    """
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (RmtrainError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any rank. A collective."""
    return bool(largest_on_any_rank(accelerator, int(flag)))


def largest_on_any_rank(accelerator: Accelerator, number: int) -> int:
    """Return the largest of the numbers that the ranks pass. A collective."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max().item())


def graceful_shutdown(accelerator: Accelerator) -> GracefulShutdown:
    """Return the shutdown of a job, on which all its ranks agree."""
    return GracefulShutdown(partial(largest_on_any_rank, accelerator))


@contextmanager
def stopping(accelerator: Accelerator) -> Iterator[GracefulShutdown]:
    """Stop together when ranks that score get a signal. A single process, which has nothing to save, still stops at once."""
    shutdown = graceful_shutdown(accelerator)
    with shutdown if accelerator.num_processes > 1 else nullcontext():
        yield shutdown
