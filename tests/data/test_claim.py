import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data import cache as module
from rmtrain.data.cache import Watch, claim

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import pathlib, sys, time
from rmtrain.data.cache import claim

with claim(pathlib.Path(sys.argv[1])) as held:
    held.said = "12 0.5 hh"
    time.sleep(1.2)
    print("held", flush=True)
    time.sleep(600)
"""


def hold(file: Path) -> subprocess.Popen[str]:
    """A process that holds the claim."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_one_holds_it_and_others_see_what_it_says_until_it_dies(tmp_path: Path) -> None:
    file = tmp_path / ".lock-key"
    process = hold(file)
    try:
        assert claim(file) is None
        assert Watch(file).look() == "12 0.5 hh"
    finally:
        end(process)
    held = claim(file)
    assert held is not None, "the kernel gives a dead process's lock back at once"
    held.release()
    assert os.listdir(tmp_path) == []


def test_within_a_process_too_only_one_holds_it(tmp_path: Path) -> None:
    file = tmp_path / ".lock-key"
    first = claim(file)
    assert first is not None
    with first:
        assert claim(file) is None
    second = claim(file)
    assert second is not None
    with second:
        assert file.exists()
    assert not file.exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, locked = tmp_path / ".lock-key", 0
    real = fcntl.flock

    def removed_just_before(descriptor: int, how: int) -> None:
        nonlocal locked
        locked += 1
        if locked == 1:
            file.unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    held = claim(file)
    assert held is not None
    assert locked == 2
    with held:
        assert file.exists()


def test_a_holder_that_is_silent_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.3)
    file = tmp_path / ".lock-key"
    file.write_text("7 12 0.5 hh   ")
    watch = Watch(file)
    assert watch.look() == "12 0.5 hh"
    time.sleep(0.4)
    file.write_text("8 13 0.6 hh   ")
    assert watch.look() == "13 0.6 hh", "any sign of life counts"
    time.sleep(0.4)
    assert watch.look() is None


def test_a_file_system_without_locks_lets_everybody_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        held = claim(tmp_path / ".lock-key")
        assert held is not None
        assert held.descriptor is None
        with held:
            pass
