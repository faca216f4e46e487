"""Work over a stream, in order, in this process or in several."""

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
from multiprocessing.synchronize import Barrier
from types import ModuleType
from typing import Any, TypeVar

from rmtrain.errors import RmtrainError

AHEAD = 2
"""Tasks that are given out for each process before the first of them is due."""
Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task], Result]

_work: Callable[[Any], Any]
_all_started: Barrier


@contextmanager
def in_order(
    make_work: Callable[[], Work[Task, Result]], processes: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """A function that maps tasks to results like `map`, with `processes` processes that live as long as the block.

    A few tasks are read ahead. Processes are spawned: the tokenizer's threads do not survive a fork.

    Args:
        make_work: makes the function for one task; called once in each process, and pickled for that.
        processes: 1: everything happens here.

    Raises:
        RmtrainError: a process was killed.
    """
    if processes == 1:
        work = make_work()
        with _collector_paused():
            yield lambda tasks: (_done(work, task) for task in tasks)
        return
    spawning = get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawning, _start, (make_work, spawning.Barrier(processes)))
    try:
        with _without_main():
            for started in [pool.submit(_meet) for _ in range(processes)]:
                started.result()
        yield lambda tasks: _results(pool, iter(tasks), AHEAD * processes)
    except BrokenProcessPool as error:
        raise RmtrainError(
            "a process of data.processes ended before its work was done, killed or out of memory; set fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A task makes a hundred thousand objects and hardly a cycle; to look for some over and over takes a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _done(work: Work[Task, Result], task: Task) -> Result:
    result = work(task)
    gc.collect(0)  # among what is new, once
    return result


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started here do not run the main script again, which may be heavy, or have no guard against it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _results(pool: ProcessPoolExecutor, tasks: Iterator[Task], ahead: int) -> Iterator[Any]:
    given: deque[Future[Any]] = deque(pool.submit(_call, task) for task in islice(tasks, ahead))
    while given:
        result = given.popleft().result()
        given.extend(pool.submit(_call, task) for task in islice(tasks, 1))
        yield result


def _start(make_work: Callable[[], Any], all_started: Barrier) -> None:
    global _work, _all_started
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()
    _work, _all_started = make_work(), all_started


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this process was spawned"
    parent.join()
    os._exit(1)


def _meet() -> None:
    """Keep a process busy until there are all of them, so that the pool starts them all."""
    _all_started.wait()


def _call(task: Any) -> Any:
    return _done(_work, task)
