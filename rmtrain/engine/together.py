"""What all processes do together: the main one's work, whose outcome each learns, and a question that each answers."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rmtrain.errors import RmtrainError

T = TypeVar("T")


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
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


def on_any(accelerator: Accelerator, is_so: bool) -> bool:
    """Whether something is so on any process. Called on all of them, and the same answer on each."""
    if accelerator.num_processes == 1:
        return is_so
    count = accelerator.reduce(torch.tensor(int(is_so), device=accelerator.device), reduction="sum")
    return bool(count.item())
