"""Ranks that watch each other, without training: real processes that meet, of which one fails, is killed, is stopped, or is done."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmtrain.engine.watch import GONE, PERIOD_SECONDS, Watch, is_there, killed_line
from tests.runs import ROOT, environment_of_process

SECONDS = 20
"""A generous bound for all to end; what it takes is printed."""
RANK = """
import ctypes, os, signal, sys, time
from pathlib import Path
from rmtrain.engine.watch import Watch

watch, folder, rank = Watch(), Path(sys.argv[1]), int(os.environ["RANK"])

def meet():
    watch.start()
    assert watch._met.wait(60)
    (folder / f"met-{rank}").write_text(str(os.getpid()))
    while len(list(folder.glob("met-*"))) < watch.world:
        time.sleep(0.05)

def leave(code):
    sys.stderr.flush()
    os._exit(code)

def hang():
    ctypes.CDLL(None).sleep(120)  # as in a collective: Python runs nothing in the main thread
    leave(99)

"""


class Ranks:
    """Processes of one job on this machine, each running some lines; what they print is kept by rank.

    Args:
        folder: an empty one.
        bodies: the lines of each rank, which may use `meet`, `leave`, `hang` and `watch`.
    """

    def __init__(self, folder: Path, *bodies: str) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.processes = [self._start(number, body, len(bodies)) for number, body in enumerate(bodies)]

    def _start(self, number: int, body: str, count: int) -> subprocess.Popen[bytes]:
        script = self.folder / f"rank-{number}.py"
        script.write_text(RANK + body)
        with (self.folder / f"stderr-{number}").open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, str(script), str(self.folder)], env=self.environment(number, count), stderr=stderr
            )

    def environment(self, number: int, count: int) -> dict[str, str]:
        """What a launcher tells a rank."""
        port = self.folder / "port"
        if not port.exists():
            port.write_text(free_port())
        return environment_of_process(
            RANK=str(number),
            WORLD_SIZE=str(count),
            LOCAL_RANK=str(number),
            LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port.read_text(),
            TORCH_CPP_LOG_LEVEL="ERROR",
        )

    def wait_until_met(self) -> None:
        """Wait until each rank knows of all others."""
        until = time.monotonic() + 90
        while len(list(self.folder.glob("met-*"))) < len(self.processes):
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)
        self.began = time.monotonic()

    def end(self) -> list[int]:
        """Wait, as a launcher does, for the exit codes of all."""
        until = self.began + 90
        while None in [process.poll() for process in self.processes]:
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)
        print(f"all ended after {time.monotonic() - self.began:.1f} s")
        assert time.monotonic() - self.began < SECONDS
        return [process.returncode for process in self.processes]

    def said(self) -> list[str]:
        """What each rank printed."""
        return [(self.folder / f"stderr-{number}").read_text() for number in range(len(self.processes))]

    def pid(self, number: int) -> int:
        return self.processes[number].pid


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Ranks]]:
    """What a test starts; whatever still runs afterwards is killed."""
    jobs: list[Ranks] = []
    yield jobs
    for process in (process for job in jobs for process in job.processes):
        process.kill()
        process.wait()


def start(started: list[Ranks], folder: Path, *bodies: str) -> Ranks:
    """Ranks that have met."""
    started.append(Ranks(folder, *(f"meet()\n{body}" for body in bodies)))
    started[0].wait_until_met()
    return started[0]


@pytest.mark.parametrize("failing", [0, 2])
def test_when_one_rank_fails_all_end_with_its_code_and_one_prints(failing: int, tmp_path: Path, started: list[Ranks]) -> None:
    bodies = ["hang()"] * 3
    bodies[failing] = 'leave(watch.end(3, ["error: no rows", "error: no model"]))'
    ranks = start(started, tmp_path, *bodies)
    assert ranks.end() == [3, 3, 3]
    said = ranks.said()
    assert said.pop(failing) == "error: no rows\nerror: no model\n"
    assert said == ["", ""]


def test_what_all_ranks_find_wrong_is_told_once_by_the_first(tmp_path: Path, started: list[Ranks]) -> None:
    body = 'leave(watch.end(2 + rank, [f"error: of rank {rank}"]))'
    ranks = start(started, tmp_path, body, body, body)
    assert ranks.end() == [2, 2, 2]
    assert ranks.said() == ["error: of rank 0\n", "", ""]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_noticed_by_its_peers_on_the_machine(killed: int, tmp_path: Path, started: list[Ranks]) -> None:
    ranks = start(started, tmp_path, "hang()", "hang()")
    time.sleep(2.5 * PERIOD_SECONDS)  # they have looked at each other
    os.kill(ranks.pid(killed), signal.SIGKILL)
    codes = ranks.end()
    assert codes.pop(killed) == -signal.SIGKILL
    assert codes == [75]
    assert ranks.said()[1 - killed] == f"error: {killed_line(killed, ranks.pid(killed))}\n"
    assert "perhaps for want of memory; the same command goes on from the last checkpoint" in ranks.said()[1 - killed], "guard"


def test_what_a_collective_says_of_a_peer_that_is_gone_gives_way_to_why_it_is_gone(tmp_path: Path, started: list[Ranks]) -> None:
    first = 'time.sleep(1)\nleave(watch.end(1, ["Traceback", "RuntimeError: Connection closed by peer"], may_follow=True))'
    ranks = start(started, tmp_path, first, "os.kill(os.getpid(), signal.SIGKILL)")
    assert ranks.end() == [75, -signal.SIGKILL]
    assert f"error: rank 1 (pid {ranks.pid(1)}) was killed" in ranks.said()[0]
    assert "Traceback" not in ranks.said()[0]


def test_a_traceback_that_nobody_else_explains_is_shown(tmp_path: Path, started: list[Ranks]) -> None:
    ranks = start(started, tmp_path, "hang()", 'leave(watch.end(1, ["Traceback", "RuntimeError: a bug"], may_follow=True))')
    assert ranks.end() == [1, 1]
    assert ranks.said() == ["", "Traceback\nRuntimeError: a bug\n"]


def test_a_rank_that_is_done_is_not_taken_for_killed_and_is_ended_by_nobody(tmp_path: Path, started: list[Ranks]) -> None:
    ranks = start(
        started,
        tmp_path,
        "time.sleep(4)\nwatch.done()\nleave(0)",
        "watch.done()\nleave(0)",
        "watch.done()\ntime.sleep(3)\nleave(0)",
    )
    assert ranks.end() == [0, 0, 0]
    assert ranks.said() == ["", "", ""]
    assert time.monotonic() - ranks.began > 4, "guard: rank 0 was alone for longer than a peer takes to notice"


def test_when_a_rank_fails_those_that_are_done_keep_their_code(tmp_path: Path, started: list[Ranks]) -> None:
    ranks = start(started, tmp_path, 'time.sleep(2)\nleave(watch.end(6, ["error: gate missed"]))', "watch.done()\nleave(0)")
    assert ranks.end() == [6, 0]
    assert ranks.said() == ["error: gate missed\n", ""]


def test_a_stopped_rank_leaves_the_others_time_to_end_by_themselves(tmp_path: Path, started: list[Ranks]) -> None:
    stopped = 'leave(watch.end(143, ["error: stopped"], stopped=True))'
    ranks = start(started, tmp_path, f"time.sleep(5)\n(folder / 'saved').touch()\n{stopped}", stopped)
    assert ranks.end() == [143, 143]
    assert "".join(ranks.said()) == "error: stopped\n"
    assert (tmp_path / "saved").exists(), "guard: it had work to finish"


def test_a_rank_that_fails_before_it_has_met_the_others_ends_them_when_they_come(tmp_path: Path, started: list[Ranks]) -> None:
    started.append(Ranks(tmp_path, "meet()\nhang()", 'leave(watch.end(3, ["error: at once"]))'))
    until = time.monotonic() + 60
    while None in [process.poll() for process in started[0].processes]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [process.returncode for process in started[0].processes] == [3, 3]
    assert started[0].said() == ["", "error: at once\n"]


LAUNCHER = """
import sys
from pathlib import Path
from tests.engine.test_watch import Ranks

ranks = Ranks(Path(sys.argv[1]), "meet()\\nhang()", "meet()\\nhang()")
[process.wait() for process in ranks.processes]
"""


def test_when_their_launcher_is_killed_the_ranks_end(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], cwd=ROOT, env=environment_of_process())
    until = time.monotonic() + 90
    while len(list(tmp_path.glob("met-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    pids = [int((tmp_path / f"met-{number}").read_text()) for number in range(2)]
    assert all(is_there(pid) for pid in pids), "guard: they were there"
    launcher.kill()
    launcher.wait()
    until = time.monotonic() + SECONDS
    while any(is_there(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)
    said = "".join((tmp_path / f"stderr-{number}").read_text() for number in range(2))
    assert said == f"error: {GONE}\n"


def test_ranks_on_other_machines_are_not_looked_for_among_the_processes_of_this_one() -> None:
    job = {"WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}
    watches = [Watch({**job, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)}) for rank in range(4)]
    assert [watch.neighbours for watch in watches] == [[1], [0], [3], [2]]
    unknown = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert Watch(unknown).neighbours == [], "guard: nor where a launcher does not say which are here"
