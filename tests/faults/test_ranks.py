"""Several ranks, one of which fails, is killed or is stopped: all end within seconds, with its message and exit code, and leave nothing.

The ranks are real, and so are the faults: a `sitecustomize` puts them into one of the processes that `rmtrain train --processes 2` starts.
"""

import re
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

from tests.faults.nursery import Nursery
from tests.faults.runs import full_recipe, in_directory, lines, steps_saved, wait_until
from tests.runs import ROOT, environment_of_process, torchrun

SECONDS = 20
"""A generous bound; what it takes is printed."""
FAULTY = """
import os, signal, time
if os.environ.get("RANK") == "{rank}":
    import importlib
    import torch
    from rmtrain.errors import DataError
    owner = importlib.import_module("{module}")
    original, calls = owner.{name}, 0
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
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
TERM = "os.kill(os.getpid(), signal.SIGTERM)"
NOISE = (
    "ChildFailedError",
    "torch.distributed",
    "OMP_NUM_THREADS",
    "KeyboardInterrupt",
    "terminate called",
    "CalledProcessError",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, output, and seconds since the fault."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Place:
    """A folder with a recipe, whose processes are known by a mark in their environment.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.run = folder, full_recipe(folder), folder / "run"
        self.mark, self.trace = f"mark-{uuid.uuid4()}", folder / "trace"

    def fault(self, point: tuple[str, str], when: int, what: str, rank: int = 1) -> None:
        """Put a fault into the `when`-th call of a function in a rank of what is started next."""
        module, name = point
        text = FAULTY.format(rank=rank, module=module, name=name, when=when, fault=what, trace=self.trace)
        (self.folder / "sitecustomize.py").write_text(text)

    def start(self, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """The run, on two processes unless a launcher is named."""
        environment = environment_of_process(PYTHONPATH=f"{self.folder}:{ROOT}", MARK=self.mark, COLUMNS="1000")
        options = options if launcher else ("--processes", "2", *options)
        command = [sys.executable, *launcher, "-m", "rmtrain", *in_directory(self.recipe, self.run), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for the end of what was started, and of the fault's consequences."""
        stdout, stderr = process.communicate(timeout=120)
        began = float(self.trace.read_text().split()[0]) if self.trace.exists() else time.time()
        return Ended(process.returncode, stdout, stderr, time.time() - began)

    def left(self) -> list[list[str]]:
        """Command lines of processes of ours that still are there."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
            except psutil.Error:
                continue
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert not place.left(), "no process is left behind"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """The run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert nursery.run(*in_directory(full_recipe(folder), folder / "run")).code == 0
    return folder / "run"


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def assert_quiet(ended: Ended, tracebacks: int = 0) -> None:
    """One error, once, and nothing of what launchers and libraries say beside it."""
    assert len(errors(ended)) == 1, ended.stderr
    assert ended.stderr.count("Traceback") == tracebacks, ended.stderr
    assert not [word for word in NOISE if word in ended.stderr], ended.stderr
    assert ended.stdout == ""


def ended_by(place: Place, what: str, code: int, tracebacks: int = 0) -> Ended:
    """The end of a run that rank 1's fault ends: with its code, in time, and one error."""
    ended = place.end(place.start())
    print(f"rank 1 {what}: all ended after {ended.seconds:.1f} s")
    assert ended.code == code, ended.stderr
    assert ended.seconds < SECONDS
    assert_quiet(ended, tracebacks)
    return ended


def assert_goes_on(place: Place, whole: Path, nursery: Nursery) -> None:
    (place.folder / "sitecustomize.py").unlink(missing_ok=True)
    ended = nursery.run(*in_directory(place.recipe, place.run))
    assert ended.code == 0, ended.stderr
    assert lines(place.run, "ledger") == lines(whole, "ledger")


MID_RUN = {
    "refuses data": ('raise DataError("planted:7: no text")', 3, r"error: rank 1: planted:7: no text", 0),
    "meets a bug": ('raise KeyError("nobody foresaw this")', 1, r"error: rank 1: ", 1),
    "runs out of memory": (
        'raise torch.OutOfMemoryError("CUDA out of memory")',
        1,
        r"error: rank 1: out of memory with micro-b",
        0,
    ),
    "is killed": (KILL, 75, r"error: rank 1 \(pid PID\) was killed, perhaps for want of memory; the same command goes on", 0),
    "is stopped": (TERM, 143, r"error: stopped by SIGTERM after step 4, which is saved in", 0),
}


@pytest.mark.parametrize("what", MID_RUN)
def test_what_ends_one_rank_ends_all_with_its_message_and_code(what: str, place: Place, whole: Path, nursery: Nursery) -> None:
    fault, code, message, tracebacks = MID_RUN[what]
    place.fault(STEP, 4, fault)
    ended = ended_by(place, what, code, tracebacks)
    assert re.search(message.replace("PID", place.trace.read_text().split()[1]), errors(ended)[0]), ended.stderr
    assert not place.left()
    assert steps_saved(place.run)[-1] == (4 if what == "is stopped" else 3)
    assert_goes_on(place, whole, nursery)
    assert place.trace.exists(), "guard: the fault happened"


PHASES = {
    "killed while the data is prepared": (
        ("rmtrain.commands.train", "prepare"),
        KILL,
        75,
        r"error: rank 1 \(pid \d+\) was killed",
    ),
    "killed while the model is built": (
        ("rmtrain.commands.train", "build_reward_model"),
        KILL,
        75,
        r"error: rank 1 \(pid \d+\) was",
    ),
    "stopped while the data is prepared": (("rmtrain.commands.train", "prepare"), TERM, 143, r"error: stopped by SIGTERM"),
    "refused while the model is built": (
        ("rmtrain.commands.train", "build_reward_model"),
        'raise DataError("a model of rank 1")',
        3,
        r"error: rank 1: a model of rank 1",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("what", PHASES)
def test_before_training_the_others_end_too(what: str, place: Place) -> None:
    point, fault, code, message = PHASES[what]
    place.fault(point, 1, fault)
    ended = ended_by(place, what, code)
    assert re.match(message, errors(ended)[0])
    assert place.trace.exists(), "guard: the fault happened"


EXPORT = ("rmtrain.commands.train", "export_model")


@pytest.mark.long
def test_the_other_ranks_are_done_before_the_export_and_are_not_taken_for_killed(place: Place) -> None:
    place.fault(EXPORT, 1, "time.sleep(5)", rank=0)
    ended = place.end(place.start("--json"))
    assert ended.code == 0, ended.stderr
    assert not errors(ended)
    assert (place.run / "model/model.safetensors").is_file()
    assert ended.seconds > 5, "guard: rank 0 was alone for longer than ranks take to notice"


@pytest.mark.parametrize(
    ("fault", "code", "message"), [(TERM, 143, "stopped by SIGTERM after step 15"), (KILL, 75, "rank 0 (pid")]
)
def test_the_export_is_ended_by_what_ends_rank_0(
    fault: str, code: int, message: str, place: Place, whole: Path, nursery: Nursery
) -> None:
    place.fault(EXPORT, 1, fault, rank=0)
    ended = place.end(place.start())
    assert ended.code == code, ended.stderr
    assert_quiet(ended)
    assert message in errors(ended)[0]
    assert_goes_on(place, whole, nursery)
    assert (place.run / "model/model.safetensors").is_file(), "guard: it was missing"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)])
def test_a_signal_to_the_command_lets_all_ranks_finish_the_step_and_save(
    number: signal.Signals, code: int, place: Place, whole: Path, nursery: Nursery
) -> None:
    place.fault(STEP, 2, "time.sleep(3)")
    process = place.start()
    wait_until(place.trace.exists)
    process.send_signal(number)
    ended = place.end(process)
    print(f"{number.name} to the command: all ended after {ended.seconds - 3:.1f} s")
    assert ended.code == code, ended.stderr
    assert_quiet(ended)
    assert f"error: stopped by {number.name} after step 2, which is saved in run; the same command goes on" in ended.stderr
    assert_goes_on(place, whole, nursery)
    assert ended.seconds > 3, "guard: it was in the midst of a step"


@pytest.mark.long
def test_a_second_signal_to_the_command_ends_all_ranks_at_once(place: Place, whole: Path, nursery: Nursery) -> None:
    place.fault(STEP, 2, "time.sleep(60)")
    process = place.start()
    wait_until(place.trace.exists)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    ended = place.end(process)
    print(f"a second SIGINT: all ended after {ended.seconds - 2:.1f} s")
    assert ended.code == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [word for word in NOISE if word in ended.stderr], ended.stderr
    wait_until(lambda: not place.left(), 5)
    assert_goes_on(place, whole, nursery)
    assert 2 < ended.seconds < SECONDS, "guard: it was in the midst of a step of a minute"


@pytest.mark.long
def test_when_the_command_is_killed_its_ranks_end(place: Place, whole: Path, nursery: Nursery) -> None:
    place.fault(STEP, 2, "time.sleep(2)")
    process = place.start()
    wait_until(place.trace.exists)
    assert len([line for line in place.left() if "rmtrain" in line]) >= 3, "guard: the command and two ranks"
    process.kill()
    before = time.monotonic()
    wait_until(lambda: not place.left(), SECONDS)
    print(f"the command was killed: its ranks had ended after {time.monotonic() - before:.1f} s")
    process.communicate()
    assert_goes_on(place, whole, nursery)


TORCHRUN = tuple(torchrun(2)[1:])
ACCELERATE = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu.yaml"))


@pytest.mark.long
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_ranks_of_other_launchers_end_with_one_message_too(launcher: tuple[str, ...], place: Place) -> None:
    place.fault(STEP, 4, KILL)
    ended = place.end(place.start(launcher=launcher))
    print(f"{launcher[1]}: all ended after {ended.seconds:.1f} s")
    assert ended.code == 1, "that of the launcher"
    assert ended.seconds < SECONDS
    pid = place.trace.read_text().split()[1]
    assert [line for line in errors(ended) if "rank" in line] == [
        f"error: rank 1 (pid {pid}) was killed, perhaps for want of memory; the same command goes on from the last checkpoint"
    ]
    assert steps_saved(place.run), "guard: they were at work"
