"""A signal at any time ends the run soon, with its exit code, and the same command resumes to the same end."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import Fault
from tests.faults.runs import full_recipe, in_directory, left, lines, steps_saved, wait_until
from tests.forks import FAST, ON_CPU, ForkServer
from tests.runs import ROOT, environment_of_process

GRACE_SECONDS = 30
"""Time that schedulers leave between SIGTERM and SIGKILL (Kubernetes: 30 s)."""
MOMENTS: dict[str, tuple[str, int, int]] = {
    "reading the tokenizer": ("tokenizer", 1, 0),
    "reading the data": ("data", 1, 0),
    "building the model": ("model", 1, 0),
    "the begin of training": ("rehearse", 1, 1),
    "a step": ("step", 2, 2),
    "an evaluation": ("evaluate", 1, 3),
    "a save": ("tensors", 2, 2),
    "between shards and manifest": ("json", 2, 2),
    "rotation": ("rotate", 1, 2),
    "the export": ("export", 1, 15),
    "the reload of the export": ("reload", 1, 15),
}
"""Where the signal strikes, and the step after which the run is then saved; 0: before it starts."""


SIGNALS = [
    *(("SIGTERM", 143, name) for name in MOMENTS),
    *(("SIGINT", 130, name) for name in ("a step", "an evaluation", "the export")),
    *(("SIGHUP", 129, "a step"), ("SIGUSR1", 138, "an evaluation"), ("SIGXCPU", 152, "the export")),
]


@pytest.mark.parametrize(("number", "code", "moment"), SIGNALS)
def test_trap_39_signal_saves_and_run_resumes(
    number: str,
    code: int,
    moment: str,
    place: Path,
    recipe: Path,
    server: ForkServer,
    undisturbed: dict[str, Any],
) -> None:
    point, when, saved = MOMENTS[moment]
    run = place / f"{point}-{number}"
    fast = [] if point == "reload" else FAST
    before = time.monotonic()
    ended = server.run(*in_directory(recipe, run), faults=[(point, when, number), *fast])
    assert time.monotonic() - before < GRACE_SECONDS
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    if not saved:
        assert not run.exists()
        assert ended.stderr.splitlines()[-1].startswith("error: ")
        assert number in ended.stderr.splitlines()[-1]
        return
    error = ended.stderr.splitlines()[-1]
    assert all(part in error for part in ("error: ", number, f"step {saved}", str(run)))
    assert steps_saved(run)[-1] == saved
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert left(run) == undisturbed


@pytest.mark.parametrize(("point", "when", "resumed"), [("step", 4, 3), ("tensors", 4, 2), ("export", 1, 15)])
def test_trap_39_second_signal_exits_and_breaks_nothing(
    point: str, when: int, resumed: int, place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    run = place / f"twice-{point}"
    ended = server.run(*in_directory(recipe, run), faults=[(point, when, "SIGTERM SIGTERM"), *FAST])
    assert ended.code == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("note: ") and f"step {resumed}" in line], ended.stderr
    assert left(run) == undisturbed


NO_NETWORK = """
import socket
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        open({canary!r}, "a").write(repr(address))
        raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


@pytest.mark.long
def test_trap_s9_stopped_process_resumes_without_network(
    place: Path, recipe: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run, canary = place / "outside", tmp_path / "connected"
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(canary=str(canary)))
    environment = environment_of_process(PYTHONPATH=f"{tmp_path}:{ROOT}")
    command = [sys.executable, "-m", "rmtrain", *in_directory(recipe, run)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (run / "ledger.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=GRACE_SECONDS)
    assert process.returncode == 143, stderr
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert left(run) == undisturbed, "including the reload of the export in a process of its own"
    assert not canary.exists()
    probe = "import socket; socket.create_connection(('127.0.0.1', 9))"
    subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
    assert canary.exists(), "guard: a connection would have been seen"


ON_ONE: list[Fault] = [("step", 4, "SIGTERM@1"), ("evaluate", 1, "SIGTERM@1"), ("tensors", 1, "SIGTERM@0")]


@pytest.mark.parametrize(
    ("fault", "saved"),
    [(ON_ONE[0], 4), pytest.param(ON_ONE[1], 3, marks=pytest.mark.long), pytest.param(ON_ONE[2], 2, marks=pytest.mark.long)],
)
def test_trap_39_signal_to_one_rank_stops_both(fault: Fault, saved: int, place: Path, server: ForkServer) -> None:
    folder = place / "two"
    recipe, run = full_recipe(folder, checkpoints={"every": 2, "minutes": 60.0}), folder / fault[0]
    faults = [fault, *FAST]
    result = server.run(*in_directory(recipe, run), faults=faults, processes=2, **ON_CPU)
    assert result.code == 143, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(part in error for part in ("SIGTERM", f"step {saved}", str(run)))
    assert steps_saved(run)[-1] == saved
    whole = folder / "whole"
    if not whole.exists():
        assert server.run(*in_directory(recipe, whole)).code == 0
    assert server.run(*in_directory(recipe, run)).code == 0
    assert lines(run, "ledger") == lines(whole, "ledger")
