import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from rmtrain.data.builder import AHEAD, in_order
from rmtrain.errors import DataError, RmtrainError
from tests.helpers import byte_bpe


def make_square(offset: int) -> Callable[[int], int]:
    made_in = os.getpid()

    def square(number: int) -> int:
        if number == 13:
            raise DataError("s:13: unlucky")
        time.sleep(0.02 * (number % 3))
        assert os.getpid() == made_in, "made once in each process"
        return number * number + offset

    return square


def make_pid_and_parallelism() -> Callable[[int], tuple[int, str | None]]:
    byte_bpe()  # a tokenizer in the child, after the parent has used its own
    return lambda number: (os.getpid(), os.environ.get("TOKENIZERS_PARALLELISM"))


@pytest.mark.parametrize("processes", [1, 2])
def test_results_are_in_order_with_little_read_ahead(processes: int) -> None:
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(12):
            read += 1
            yield number

    with in_order(partial(make_square, 5), processes) as apply:
        for number, result in enumerate(apply(tasks())):
            assert result == number * number + 5
            assert read <= number + 1 + AHEAD * processes
        assert list(apply(iter(()))) == []
        assert list(apply([3])) == [14]
    assert read == 12
    assert multiprocessing.active_children() == []


def make_collecting() -> Callable[[int], tuple[bool, int]]:
    cycles: list[weakref.ref[object]] = []

    def work(number: int) -> tuple[bool, int]:
        alive = sum(cycle() is not None for cycle in cycles)
        node = Node()
        node.itself = node
        cycles.append(weakref.ref(node))
        return gc.isenabled(), alive

    return work


class Node:
    itself: object = None


@pytest.mark.parametrize("enabled", [False, True])
def test_garbage_is_collected_once_per_task(enabled: bool) -> None:
    """The collector is off during a task, runs after it, and is restored at the end, also after an error."""
    (gc.enable if enabled else gc.disable)()
    with contextlib.suppress(KeyError), in_order(make_collecting, 1) as apply:
        assert list(apply(range(5))) == [(False, 0)] * 5
        raise KeyError
    assert gc.isenabled() == enabled
    gc.enable()
    with in_order(make_collecting, 2) as apply:
        assert list(apply(range(5))) == [(False, 0)] * 5


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_error_in_order_is_raised(processes: int) -> None:
    done: list[int] = []

    def run() -> None:
        with in_order(partial(make_square, 0), processes) as apply:
            done.extend(apply(range(10, 20)))

    with pytest.raises(DataError) as error:
        run()
    assert error.value.problems == ("s:13: unlucky",)
    assert done == [100, 121, 144]


def test_trap_40_workers_are_spawned_without_tokenizer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    byte_bpe()(["used in the parent first"] * 8)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with in_order(make_pid_and_parallelism, 2) as apply:
        seen = list(apply(range(4)))
    assert {parallelism for _, parallelism in seen} == {"false"}
    assert os.getpid() not in {pid for pid, _ in seen}
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true", "the parent's is unchanged"


def run_and_kill_a_worker() -> None:
    with in_order(partial(make_square, 0), 2) as apply:
        for number, _ in enumerate(apply(range(14, 10**6))):
            if number == 3:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def test_trap_40_a_killed_worker_is_an_error() -> None:
    """It does not hang, and leaves no process."""
    started = time.monotonic()
    with pytest.raises(RmtrainError, match=r"^data.processes:"):
        run_and_kill_a_worker()
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def make_nothing() -> Callable[[int], int]:
    sys.exit(3)


def test_a_worker_that_cannot_start_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """It does not hang."""
    with pytest.raises(RmtrainError, match=r"^data.processes:"), in_order(make_nothing, 2) as apply:
        list(apply([1]))


UNGUARDED = """
from functools import partial
from rmtrain.data.builder import in_order
from tests.data.test_workers import make_square

print("main")
with in_order(partial(make_square, 1), 2) as apply:
    print(list(apply(range(4))))
"""


def test_the_main_script_is_not_run_again(tmp_path: Path) -> None:
    """Spawned processes would import it, and one without a guard would start processes of its own."""
    assert run_script(tmp_path, UNGUARDED).communicate()[0] == "main\n[1, 2, 5, 10]\n"


def run_script(folder: Path, code: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen([sys.executable, str(folder / "script.py")], stdout=subprocess.PIPE, text=True, env=environment)


ORPHANS = """
import os, signal
from rmtrain.data.builder import in_order
from tests.data.test_workers import make_pid_and_parallelism

with in_order(make_pid_and_parallelism, 2) as apply:
    print(*{pid for pid, _ in apply(range(2))}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc: run on Linux")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = run_script(tmp_path, ORPHANS)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert process.wait(timeout=60) == -signal.SIGKILL
    end = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    process.stdout.close()
    assert workers, "guard: there were some"
    assert not any(map(is_alive, workers))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
