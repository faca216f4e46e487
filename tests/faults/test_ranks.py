"""Several ranks, of which one fails, is killed or gets a signal: all end within seconds with its exit code, one error, and no leftovers.

Ranks and faults are real: a `sitecustomize` puts a fault into one of the processes that `rmtrain train --processes 2` starts.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rmtrain.recipe.load import dump_recipe
from tests.faults.runs import full_recipe, in_directory, lines, steps_saved, wait_until
from tests.forks import ForkServer
from tests.helpers import byte_bpe
from tests.runs import ROOT, environment_of_process, metrics_of, tiny_recipe, torchrun

SECONDS = 20
"""A generous bound for all ranks to end after a fault; the measured time is printed."""
FAULTY = """
import ctypes, os, signal, time
if os.environ.get("RANK", "none") in "{ranks}":
    import importlib
    import torch
    from rmtrain.errors import DataError
    owner = importlib.import_module("{module}")
    original, calls = owner.{name}, 0
    def hang():  # in C, as in a collective; a sleep would end at a signal
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)
    def faulty(*arguments, **options):
        global calls
        calls += 1
        if calls == {when}:
            with open("{trace}", "w") as trace:
                trace.write(f"{{time.time()}} {{os.getpid()}}")
            {fault}
        return original(*arguments, **options)
    owner.{name} = faulty
"""
STEP = ("rmtrain.engine.loop", "train_step")
START = ("rmtrain.commands.train", "start")
PREPARE = ("rmtrain.commands.train", "prepare")
BUILD = ("rmtrain.commands.train", "build_reward_model")
EXPORT = ("rmtrain.commands.train", "write_results")
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TERM = "os.kill(os.getpid(), signal.SIGTERM)"
REFUSE = 'raise DataError("planted:7: no text")'
NOISE = (
    "ChildFailedError",
    "torch.distributed",
    "OMP_NUM_THREADS",
    "KeyboardInterrupt",
    "terminate called",
    "CalledProcessError",
)
"""Words of what torch, accelerate and C++ print of their own about a failed rank."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, output, and seconds since the fault."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Place:
    """A folder with a recipe, whose processes are recognised by a mark in their environment.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.run = folder, full_recipe(folder), folder / "run"
        self.mark, self.trace = f"mark-{uuid.uuid4()}", folder / "trace"

    def fault(self, point: tuple[str, str], when: int, what: str, ranks: str = "1") -> None:
        """Put a fault into the `when`-th call of a function, in these ranks of what is started next."""
        module, name = point
        text = FAULTY.format(ranks=ranks, module=module, name=name, when=when, fault=what, trace=self.trace)
        (self.folder / "sitecustomize.py").write_text(text)

    def start(self, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start the run on two processes, with `--processes` unless a launcher is named."""
        environment = environment_of_process(PYTHONPATH=f"{self.folder}:{ROOT}", MARK=self.mark, COLUMNS="1000")
        options = options if launcher else ("--processes", "2", *options)
        command = [sys.executable, *launcher, "-m", "rmtrain", *in_directory(self.recipe, self.run), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for the end of what was started."""
        stdout, stderr = process.communicate(timeout=120)
        began = float(self.trace.read_text().split()[0]) if self.trace.exists() else time.time()
        return Ended(process.returncode, stdout, stderr, time.time() - began)

    def left(self) -> list[list[str]]:
        """Command lines of our processes that are still alive."""
        alive = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process.cmdline())
            except psutil.Error:
                continue
        return alive


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert not place.left(), "no process is left"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: ForkServer) -> Path:
    """A run without any fault."""
    folder = tmp_path_factory.mktemp("whole")
    assert server.run(*in_directory(full_recipe(folder), folder / "run")).code == 0
    return folder / "run"


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def assert_quiet(ended: Ended, tracebacks: int = 0) -> None:
    """One error, printed once, and nothing that launchers and libraries print in addition."""
    assert len(errors(ended)) == 1, ended.stderr
    assert ended.stderr.count("Traceback") == tracebacks, ended.stderr
    assert not [word for word in NOISE if word in ended.stderr], ended.stderr
    assert ended.stdout == ""


def ended_by(place: Place, what: str, code: int, tracebacks: int = 0, seconds: float = SECONDS) -> Ended:
    """The end of a run with a fault: with this code, in time, and with one error."""
    ended = place.end(place.start())
    print(f"{what}: all ended after {ended.seconds:.1f} s")
    assert place.trace.exists(), "guard: the fault happened"
    assert ended.code == code, ended.stderr
    assert ended.seconds < seconds
    assert_quiet(ended, tracebacks)
    return ended


def assert_resumes(place: Place, whole: Path, server: ForkServer) -> None:
    (place.folder / "sitecustomize.py").unlink(missing_ok=True)
    ended = server.run(*in_directory(place.recipe, place.run))
    assert ended.code == 0, ended.stderr
    assert lines(place.run, "ledger") == lines(whole, "ledger")


MID_RUN = {
    "refuses data": (REFUSE, 3, "rank 1: planted:7: no text", 0, 3),
    "meets a bug": ('raise KeyError("nobody foresaw this")', 1, "rank 1: ", 1, 3),
    "runs out of memory": ('raise torch.OutOfMemoryError("CUDA out of memory")', 1, "rank 1: out of memory", 0, 3),
    "is killed": (KILL, 75, "rank 1 (pid PID) ", 0, 3),
    "is stopped": (TERM, 143, "stopped by SIGTERM after step 4", 0, 4),
}
"""A fault in step 4 of rank 1; then the exit code, the start of the error, tracebacks, and the last step saved."""


@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=[] if name in ("refuses data", "is killed") else [pytest.mark.long]) for name in MID_RUN]
)
def test_one_failing_rank_ends_all(what: str, place: Place, whole: Path, server: ForkServer) -> None:
    """All ranks end with the code and the message of the one that failed, and the run can be resumed."""
    fault, code, message, tracebacks, saved = MID_RUN[what]
    place.fault(STEP, 4, fault)
    ended = ended_by(place, f"rank 1 {what}", code, tracebacks)
    assert errors(ended)[0].startswith("error: " + message.replace("PID", place.trace.read_text().split()[1]))
    assert not place.left()
    assert steps_saved(place.run)[-1] == saved
    assert_resumes(place, whole, server)


PHASES = {
    "killed before the ranks have met": (START, KILL, 75, "rank 1 (pid "),
    "killed while data is prepared": (PREPARE, KILL, 75, "rank 1 (pid "),
    "killed while the model is built": (BUILD, KILL, 75, "rank 1 (pid "),
    "stopped while data is prepared": (PREPARE, TERM, 143, "stopped by SIGTERM"),
    "refused while the model is built": (BUILD, REFUSE, 3, "rank 1: planted:7: no text"),
}


@pytest.mark.long
@pytest.mark.parametrize("what", PHASES)
def test_ranks_also_end_together_before_training(what: str, place: Place) -> None:
    point, fault, code, message = PHASES[what]
    place.fault(point, 1, fault)
    assert errors(ended_by(place, what, code))[0].startswith(f"error: {message}")


def test_what_all_ranks_refuse_is_printed_once(place: Place) -> None:
    """Rank 0 reports what every rank finds; the others add nothing."""
    place.fault(BUILD, 1, REFUSE, ranks="01")
    assert errors(ended_by(place, "refused on all ranks", 3)) == ["error: planted:7: no text"]


@pytest.mark.long
def test_rank_stuck_outside_python_is_killed(place: Place) -> None:
    """A rank that waits in C code, as in a collective of NCCL, gets torch's 30 seconds when its peer fails."""
    place.fault(STEP, 4, f"if os.environ['RANK'] == '0': hang()\n            {REFUSE}", ranks="01")
    ended = ended_by(place, "stuck in C", 3, seconds=30 + SECONDS)
    assert errors(ended) == ["error: rank 1: planted:7: no text"]
    assert ended.seconds > 25, "guard: rank 0 did not end by itself"


@pytest.mark.long
def test_ranks_without_work_leave_before_the_export(place: Place) -> None:
    place.fault(EXPORT, 1, "time.sleep(5)", ranks="0")
    ended = place.end(place.start("--json"))
    assert ended.code == 0, ended.stderr
    assert not errors(ended)
    assert (place.run / "model/model.safetensors").is_file()
    assert ended.seconds > 5, "guard: rank 0 was alone for a while"


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [(TERM, 143, "stopped by SIGTERM after step 15"), pytest.param(KILL, 75, "rank 0 (pid", marks=pytest.mark.long)],
)
def test_export_ends_with_rank_0(fault: str, code: int, message: str, place: Place, whole: Path, server: ForkServer) -> None:
    place.fault(EXPORT, 1, fault, ranks="0")
    assert errors(ended_by(place, "export", code))[0].startswith(f"error: {message}")
    assert_resumes(place, whole, server)
    assert (place.run / "model/model.safetensors").is_file(), "guard: it was missing"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)])
def test_a_signal_to_the_command_saves(number: signal.Signals, code: int, place: Place, whole: Path, server: ForkServer) -> None:
    """The launcher forwards a signal; all ranks finish the step, save and exit with 128 + n."""
    place.fault(STEP, 2, "time.sleep(3)")
    process = place.start()
    wait_until(place.trace.exists)
    process.send_signal(number)
    ended = place.end(process)
    print(f"{number.name} to the command: all ended after {ended.seconds - 3:.1f} s")
    assert ended.code == code, ended.stderr
    assert_quiet(ended)
    assert errors(ended)[0].startswith(f"error: stopped by {number.name} after step 2")
    assert_resumes(place, whole, server)
    assert ended.seconds > 3, "guard: it came in the middle of a step"


@pytest.mark.long
@pytest.mark.parametrize("minute", ["time.sleep(60)", "hang()"], ids=["Python", "C"])
def test_a_second_signal_ends_at_once(minute: str, place: Place, whole: Path, server: ForkServer) -> None:
    """Also where the main threads of the ranks are in C code, as in a collective, and run no signal handler."""
    place.fault(STEP, 2, minute, ranks="01")
    process = place.start()
    wait_until(place.trace.exists)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    ended = place.end(process)
    print(f"a second SIGINT: all ended after {ended.seconds - 2:.1f} s")
    assert ended.code == 130, ended.stderr
    assert_quiet(ended)
    wait_until(lambda: not place.left(), 5)
    assert_resumes(place, whole, server)
    assert 2 < ended.seconds < SECONDS, "guard: it came in the middle of a step"


def test_ranks_end_when_the_command_is_killed(place: Place, whole: Path, server: ForkServer) -> None:
    place.fault(STEP, 2, "hang()")
    process = place.start()
    wait_until(place.trace.exists)
    assert len([line for line in place.left() if "rmtrain" in line]) >= 3, "guard: the command and two ranks run"
    process.kill()
    before = time.monotonic()
    wait_until(lambda: not place.left(), SECONDS)
    print(f"the command was killed: its ranks had ended after {time.monotonic() - before:.1f} s")
    process.communicate()
    assert_resumes(place, whole, server)


TORCHRUN = tuple(torchrun(2)[1:])
ACCELERATE = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu.yaml"))


@pytest.mark.long
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
@pytest.mark.parametrize(
    ("fault", "message"), [(REFUSE, "error: rank 1: planted:7: no text"), (KILL, "error: lost the connection")]
)
def test_other_launchers_end_their_ranks(fault: str, message: str, launcher: tuple[str, ...], place: Place) -> None:
    """torch's agent stops the ranks and exits with 1; the ranks print their errors themselves."""
    place.fault(STEP, 4, fault)
    ended = place.end(place.start(launcher=launcher))
    print(f"{launcher[1]}: all ended after {ended.seconds:.1f} s")
    assert ended.code == 1, "that of the launcher"
    assert ended.seconds < SECONDS
    assert [line for line in errors(ended) if line.startswith(message)], ended.stderr
    assert steps_saved(place.run), "guard: they were at work"


ROWS = 60
SLOW = """
import os, time

def rows(row):
    with open(os.environ["TRACE"], "a") as trace:
        trace.write(os.environ["RANK"] + "\\n")
    time.sleep(0.03)
    return row
"""


def test_trap_43_ranks_prepare_data_once(tmp_path: Path) -> None:
    """One rank makes the data; the others wait for its file, not in a collective."""
    byte_bpe().save_pretrained(tmp_path / "tokenizer")
    recipe = tiny_recipe(tmp_path, rows=ROWS, model={"tokenizer": str(tmp_path / "tokenizer")}, training={"max_steps": 1})
    text = dump_recipe(recipe).replace("prepare: null", "prepare: slow:rows", 1)
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "slow.py").write_text(SLOW)
    environment = environment_of_process(ACCELERATE_USE_CPU="true", TRACE=str(tmp_path / "trace"), COLUMNS="1000")
    command = [*torchrun(2), "-m", "rmtrain", "train", str(tmp_path / "recipe.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    ranks = (tmp_path / "trace").read_text().split()
    assert len(ranks) == ROWS, "each row was prepared once"
    assert len(set(ranks)) == 1, "by one rank"
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ") and str(recipe.data.cache_dir) in line]
    assert bool(notes) == (ranks[0] != "0"), "rank 0 prints a note if it waits for the other's file"
    assert len(os.listdir(recipe.data.cache_dir)) == 1
    assert metrics_of(tmp_path / "run"), "guard: the run continued"
    assert (tmp_path / "run/slow.py").read_text() == SLOW, "the run directory holds what repeats the run"
