"""Signals leave a note, are raised where work may be cut short, and the second one ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from accelerate import Accelerator

from rmtrain.engine.signals import Stop
from rmtrain.errors import RmtrainError, Stopped
from tests.runs import ROOT, environment_of_process

LONG = """
import os, signal, sys, time
from rmtrain.engine import signals
with signals.Stop() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", stop.by.name, flush=True)
    time.sleep(signals.SAME_SECONDS + 0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
"""


def interrupted(stop: Stop) -> None:
    with stop.at_once():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_a_signal_waits_until_it_is_asked_for_and_the_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    accelerator = Accelerator(cpu=True)
    with Stop() as stop:
        assert not stop.is_wanted(accelerator)
        stop.check(accelerator)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_wanted(accelerator)
        with pytest.raises(Stopped) as raised:
            stop.check(accelerator)
    assert raised.value.exit_code == 143
    assert {number: signal.getsignal(number) for number in before} == before


def test_where_work_may_be_cut_short_it_is_raised_also_when_it_came_before() -> None:
    with Stop() as stop:
        with pytest.raises(Stopped) as raised:
            interrupted(stop)
        assert raised.value.exit_code == 130
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("guard: the work began")


def test_no_library_can_take_it_for_an_error_of_its_own() -> None:
    assert not issubclass(Stopped, Exception)
    assert not issubclass(Stopped, RmtrainError)


def test_a_signal_twice_at_once_is_one_request_and_a_second_one_ends_the_process() -> None:
    command = [sys.executable, "-c", LONG]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
    assert result.stdout.strip() == "noted SIGTERM"
    assert result.returncode == 130, result.stderr


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stop() as stop:
            inside.append((signal.getsignal(signal.SIGTERM) == before, stop.by))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(True, None)]
