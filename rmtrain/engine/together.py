"""Work of the main process that all others wait for: each learns what came of it, or fails with it."""

from collections.abc import Callable
from typing import Any, TypeVar

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
