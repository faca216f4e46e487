"""Signals are noted until training asks, raised where work may be interrupted, and a second one exits at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rmtrain.engine.rank import SIGNALS, GracefulShutdown
from rmtrain.errors import RmtrainError, Stopped
from tests.runs import ROOT, environment_of_process

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
