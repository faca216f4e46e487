"""What all processes do together: the main one's work, whose outcome each learns, and a question that each answers."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from rmtrain.engine.signals import Stop
from rmtrain.errors import RecipeError, RmtrainError

SHARDING = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
"""What `accelerate launch` sets for the processes of a strategy that holds a model in pieces."""
WAIT = timedelta(days=30)
"""Whoever writes to standard input may be slow, and all wait for its lines."""
LEFT: list[Any] = []
"""Groups that this process has left. The end of one of gloo waits for its threads, and such a thread may wait for Python at that moment."""


def launched(**options: Any) -> Accelerator:
    """The processes as they were launched, one or several.

    Args:
        options: of the Accelerator.

    Raises:
        RmtrainError: accelerate runs fewer of them.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision="no",  # the model computes in bfloat16 by itself, the same in every strategy
        cpu=count > 1 and not torch.cuda.is_available(),
        **options,
    )
    if accelerator.num_processes != count:
        running = accelerator.num_processes
        raise RmtrainError(f"{count} processes were launched, but accelerate runs {running}; check its configuration")
    return accelerator


def start_evaluation() -> Accelerator:
    """The processes of an evaluation.

    Raises:
        RecipeError: they were launched for a strategy that holds a model in pieces. RmtrainError: as `launched` says.
    """
    pieces = [name for name, variable in SHARDING.items() if is_set(variable)]
    if pieces:
        raise RecipeError(
            f"{pieces[0]} holds a model in pieces to train it; to score, each process holds all of it: use the ddp configuration"
        )
    return launched(kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=WAIT)])


def model_device(accelerator: Accelerator) -> torch.device:
    """Where a process holds its model.

    accelerate calls the CPU of one of several `cpu:0`, and moving weights there copies them: every process would have its own, and at other
    addresses, where sums round otherwise.
    """
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def leave_group(accelerator: Accelerator) -> None:
    """Have nothing more to do with the other processes, which need not wait for what this one still does."""
    if torch.distributed.is_initialized():
        LEFT.append(torch.distributed.group.WORLD)
    accelerator.state.destroy_process_group()


def is_set(variable: str) -> bool:
    """Whether `accelerate launch` switched something on."""
    return os.environ.get(variable, "false").lower() == "true"


@contextmanager
def stopping(accelerator: Accelerator) -> Iterator[Stop]:
    """Signals while processes score: several end together where they ask for it; one ends at once, as ever."""
    stop = Stop()
    with stop if accelerator.num_processes > 1 else nullcontext():
        yield stop


T = TypeVar("T")


def run_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do work on the main process alone. Called on all of them.

    Returns:
        What the work gave, on every process.

    Raises:
        RmtrainError, OSError: the error of the work, on every process: none is left waiting for the others.
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


def any_rank(accelerator: Accelerator, is_so: bool) -> bool:
    """Whether something is so on any process. Called on all of them, and the same answer on each."""
    if accelerator.num_processes == 1:
        return is_so
    count = accelerator.reduce(torch.tensor(int(is_so), device=accelerator.device), reduction="sum")
    return bool(count.item())
