"""A function applied to a stream of tasks by several processes, with the results in order."""

import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import Any, TypeVar

from rmtrain.errors import RmtrainError

AHEAD = 2
"""Number of tasks for each process that are submitted before the first result is due."""
Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task], Result]

_work: Callable[[Any], Any]


@contextmanager
def in_order(
    make_work: Callable[[], Work[Task, Result]], processes: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """Yield a function that maps tasks to results like `map`, with processes that live as long as the block.

    Args:
        make_work: makes the function for one task; pickled, and called once in each process.
        processes: number of processes; 1: everything runs in this one.

    Raises:
        RmtrainError: a process was killed.
    """
    if processes == 1:
        work, was_enabled = make_work(), gc.isenabled()
        gc.disable()
        try:
            yield lambda tasks: (_run(work, task) for task in tasks)
        finally:
            if was_enabled:
                gc.enable()
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (make_work,))  # tokenizers' threads do not survive a fork

    def submit(task: Task) -> Future[Result]:
        # The pool starts its processes here, and each would run the main script again, which may be heavy or unguarded: hide it.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return pool.submit(_call, task)
        finally:
            sys.modules["__main__"] = main

    def apply(tasks: Iterable[Task]) -> Iterator[Result]:
        tasks = iter(tasks)
        submitted = deque(map(submit, islice(tasks, AHEAD * processes)))
        while submitted:
            result = submitted.popleft().result()
            submitted.extend(map(submit, islice(tasks, 1)))
            yield result

    try:
        yield apply
    except BrokenProcessPool as error:
        raise RmtrainError(
            "data.processes: a process was killed or ran out of memory before its work was done; set fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(make_work: Callable[[], Any]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the parent stops the others
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.disable()
    _work = make_work()


def _exit_with_parent() -> None:
    """Wait for the parent's death: the pool's queues do not report it, and a process would wait for its next task forever."""
    parent = parent_process()
    assert parent is not None, "this process was spawned"
    parent.join()
    os._exit(1)


def _call(task: Any) -> Any:
    return _run(_work, task)


def _run(work: Work[Task, Result], task: Task) -> Result:
    # A task makes a hundred thousand objects and hardly a cycle: collecting once after it instead of all the time saves a sixth.
    result = work(task)
    gc.collect(0)
    return result
