"""One rank: signals wait for the end of a step, and a rank ends with its launcher. Real processes, without torch."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmtrain.engine.rank import (
    LAUNCHER,
    REPEAT_SECONDS,
    REPORTS,
    SIGNALS,
    STUCK_SECONDS,
    GracefulShutdown,
    RankReport,
    read_reports,
    reports_folder,
)
from rmtrain.errors import RmtrainError, Stopped
from tests.faults.runs import wait_until
from tests.runs import ROOT, environment_of_process

SECONDS = 20
RANK = """
import ctypes, os
from rmtrain.engine.rank import watch_launcher
from rmtrain.engine.rank import GracefulShutdown, raise_on_signal

def hang():  # as in a collective: Python runs no signal handler in the main thread
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    os.write(1, b"%d\\n" % os.getpid())  # at once: two ranks write into one pipe
    lock(mutex)  # not interrupted by signals, other than a sleep

raise_on_signal()
watch_launcher()
"""
NOTHING_TO_SAVE = RANK + "hang()\n"
SAVES = RANK + "with GracefulShutdown():\n    hang()\n"
CLOSES = (
    RANK
    + """
import time
from rmtrain.errors import Stopped
try:
    with GracefulShutdown() as shutdown:
        print(os.getpid(), flush=True)
        while True:
            shutdown.check()
            time.sleep(0.1)
except Stopped:
    time.sleep(5)  # as a tracker that is slow to close
    os._exit(42)
"""
)


@pytest.fixture
def hanging(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A rank that hangs in C code."""
    process = subprocess.Popen(
        [sys.executable, "-c", request.param], stdout=subprocess.PIPE, cwd=ROOT, env=environment_of_process(), text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "guard: it started"
    time.sleep(0.5)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("hanging", [NOTHING_TO_SAVE], indirect=True)
def test_signal_ends_a_stuck_rank_without_work(hanging: subprocess.Popen[str]) -> None:
    """A rank with nothing to save, which waits for the others to start, gets a few seconds."""
    before = time.monotonic()
    hanging.send_signal(signal.SIGTERM)
    assert hanging.wait(SECONDS) == 143
    assert time.monotonic() - before > STUCK_SECONDS, "guard: its main thread had time to answer"


@pytest.mark.parametrize("hanging", [SAVES], indirect=True)
def test_only_second_signal_ends_a_working_rank(hanging: subprocess.Popen[str]) -> None:
    """A rank that has work to save waits for the end of its collective, unless there is a second signal."""
    hanging.send_signal(signal.SIGTERM)
    hanging.send_signal(signal.SIGTERM)
    time.sleep(STUCK_SECONDS + REPEAT_SECONDS + 1.5)
    assert hanging.poll() is None, "it waits"
    hanging.send_signal(signal.SIGINT)
    assert hanging.wait(SECONDS) == 130


@pytest.mark.parametrize("hanging", [CLOSES], indirect=True)
def test_rank_that_stops_may_clean_up(hanging: subprocess.Popen[str]) -> None:
    hanging.send_signal(signal.SIGTERM)
    assert hanging.wait(SECONDS) == 42


LAUNCHER_SCRIPT = """
import os, subprocess, sys
from rmtrain.engine.rank import reports_folder

with reports_folder():
    for rank in "01":
        with open(f"stderr-{rank}", "w") as file:
            subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, "RANK": rank}, stderr=file)
    input()
"""


def test_ranks_end_when_their_launcher_dies(tmp_path: Path) -> None:
    """Both exit, one of them prints why."""
    environment = environment_of_process()
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER_SCRIPT, NOTHING_TO_SAVE],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    pids = [int(launcher.stdout.readline()) for _ in range(2)]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids), "guard: they run"
    launcher.kill()
    launcher.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), SECONDS)
    lines = [(tmp_path / f"stderr-{rank}").read_text().splitlines() for rank in "01"]
    assert [len(printed) for printed in lines] == [1, 0]
    assert lines[0][0].startswith("error: ")


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has exited and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_rank_ends_if_launcher_died_before(tmp_path: Path) -> None:
    """The launcher's id comes with the environment: a rank that starts late finds another parent."""
    environment = environment_of_process(**{LAUNCHER: "1"})
    result = subprocess.run([sys.executable, "-c", NOTHING_TO_SAVE], env=environment, cwd=ROOT, capture_output=True, timeout=60)
    assert result.returncode == 75


def test_reports_of_ranks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "")
    monkeypatch.setenv(REPORTS, "")
    written = [RankReport(rank, 3, [f"error: {rank}", "a\x1b[31m"], may_follow=bool(rank), time=1.5) for rank in range(2)]
    with reports_folder() as folder:
        assert (os.environ[LAUNCHER], os.environ[REPORTS]) == (str(os.getpid()), str(folder))
        assert read_reports(folder) == []
        for report in written:
            report.write(folder)
        (folder / "2.json").write_text('{"rank": 2, "co')  # its rank was killed meanwhile
        assert read_reports(folder) == written
    assert not folder.exists()


IGNORING = """
import os, signal, sys
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
from rmtrain.engine import rank
rank.raise_on_signal()
with rank.GracefulShutdown() as shutdown:
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, name))
    print(shutdown.received and shutdown.received.name)
"""


@pytest.mark.parametrize(
    ("names", "received"),
    [("SIGHUP", "None"), ("SIGUSR1 SIGXCPU", "None"), ("SIGHUP SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT")],
)
def test_signals_that_arrive_ignored_stay_ignored(names: str, received: str) -> None:
    """Under `nohup` a closed terminal ends nothing; the shell ignores SIGINT of background jobs without being asked."""
    command = [sys.executable, "-c", IGNORING, *names.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert (result.stdout.strip(), result.returncode) == (received, 0), result.stderr


IN_FINALIZER = """
import os, signal, sys, time, weakref
from rmtrain.command_line.exits import exit_with_error
from rmtrain.engine import rank
rank.raise_on_signal()

class Dropped:
    pass

def kill():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)

def drop(how):
    dropped = Dropped()
    if how == "finalize":
        weakref.finalize(dropped, kill)
    elif how == "del":
        Dropped.__del__ = lambda self: kill()
    else:
        dropped.callback = lambda _: kill()
        rank.reference = weakref.ref(dropped, dropped.callback)
    del dropped
    print("goes on", flush=True)
    time.sleep(100)

try:
    if sys.argv[2] == "raises":
        drop(sys.argv[1])
    with rank.GracefulShutdown() as shutdown, shutdown.raise_immediately():
        drop(sys.argv[1])
except BaseException as error:
    exit_with_error(error)
"""


@pytest.mark.parametrize("how", ["finalize", "del", "weakref"])
@pytest.mark.parametrize("where", ["raises", "interrupts"])
def test_a_signal_in_a_finalizer_is_not_lost(how: str, where: str) -> None:
    """Python prints and drops what is raised there, so that the signal would end nothing."""
    command = [sys.executable, "-c", IN_FINALIZER, how, where]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert (result.returncode, result.stderr) == (143, "error: stopped by SIGTERM\n")
    assert result.stdout == "goes on\n", "guard: what the finalizer raised was dropped"


AT_EXIT = """
import atexit, os, signal
from rmtrain.command_line.exits import exit_process
from rmtrain.engine import rank
rank.raise_on_signal()
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), print("cleaned up")))
exit_process(0)
"""


def test_a_signal_at_the_exit_leaves_the_exit_code() -> None:
    command = [sys.executable, "-c", AT_EXIT]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "cleaned up\n", "")


CPU_LIMIT = """
import resource, time
from rmtrain.engine import rank
resource.setrlimit(resource.RLIMIT_CPU, (1, 60))
rank.raise_on_signal()
with rank.GracefulShutdown() as shutdown:
    while time.process_time() < 2.6:
        pass
print(shutdown.received.name, resource.getrlimit(resource.RLIMIT_CPU))
"""


def test_a_repeated_cpu_limit_is_one_request() -> None:
    """The kernel repeats SIGXCPU at each second of CPU time, while the run saves."""
    command = [sys.executable, "-c", CPU_LIMIT]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert (result.stdout.strip(), result.returncode) == ("SIGXCPU (60, 60)", 0), result.stderr


LONG = """
import os, signal, sys, time
from rmtrain.engine import rank
with rank.GracefulShutdown() as shutdown:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", shutdown.received.name, flush=True)
    time.sleep(rank.REPEAT_SECONDS + 0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
"""


def interrupted(shutdown: GracefulShutdown) -> None:
    with shutdown.raise_immediately():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_signal_waits_until_training_asks() -> None:
    """The signal is noted, `requested` returns it, `check` raises it, and the previous handlers come back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with GracefulShutdown() as shutdown:
        assert not shutdown.requested()
        shutdown.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested()
        with pytest.raises(Stopped) as raised:
            shutdown.check()
    assert raised.value.exit_code == 143
    assert {number: signal.getsignal(number) for number in before} == before


def test_signal_of_another_rank_stops_this() -> None:
    asked: list[int] = []

    def agree(number: int) -> int:
        asked.append(number)
        return signal.SIGINT if len(asked) > 1 else number

    with GracefulShutdown(agree) as shutdown:
        assert not shutdown.requested()
        with pytest.raises(Stopped) as raised:
            shutdown.check()
    assert raised.value.exit_code == 130
    assert asked == [0, 0], "guard: this rank got no signal"


def test_interruptible_work_raises_at_once() -> None:
    """Also a signal that came before the work began."""
    with GracefulShutdown() as shutdown:
        with pytest.raises(Stopped) as raised:
            interrupted(shutdown)
        assert raised.value.exit_code == 130
        with pytest.raises(Stopped), shutdown.raise_immediately():
            pytest.fail("guard: the work began")


def test_no_library_can_catch_stopped() -> None:
    assert not issubclass(Stopped, Exception)
    assert not issubclass(Stopped, RmtrainError)


def test_second_signal_exits() -> None:
    """Two signals in quick succession are one request; a later one ends the process."""
    command = [sys.executable, "-c", LONG]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert result.stdout.strip() == "noted SIGTERM"
    assert result.returncode == 130, result.stderr


def test_other_threads_leave_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with GracefulShutdown() as shutdown:
            inside.append((signal.getsignal(signal.SIGTERM) == before, shutdown.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(True, None)]
