"""Trackers fail, hang and fall behind; training does not notice, and one warning tells of it."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rmtrain.engine import trackers
from rmtrain.engine.trackers import Trackers


class Recorder:
    """A tracker that notes what it is given, after doing what it is told at each call."""

    def __init__(self, at_start: Callable[[], Any] = bool, at_send: Callable[[], Any] = bool) -> None:
        self.at_start, self.at_send = at_start, at_send
        self.sent: list[tuple[Mapping[str, float], int]] = []
        self.ended = False

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        self.at_send()
        self.sent.append((metrics, step))

    def end(self) -> None:
        self.ended = True

    def run(self, seconds: float = 5.0) -> Trackers:
        return Trackers(self.at_start, self.send, self.end, seconds)


def fail() -> None:
    raise RuntimeError("no route to https://name:secret@host\nhf_abcdefghijklmnopqrstuvwxyz0123456789")


def test_every_line_arrives_in_order_before_the_end() -> None:
    recorder = Recorder()
    started = recorder.run()
    for step in range(50):
        started.log({"loss": float(step)}, step)
    started.close()
    assert recorder.sent == [({"loss": float(step)}, step) for step in range(50)]
    assert recorder.ended


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_a_tracker_that_raises_is_told_once_on_one_line_without_secrets(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = Recorder(**{where: fail}).run()
    for step in range(20):
        started.log({"loss": 1.0}, step)
    started.close()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: RuntimeError: no route to https://<hidden>@host <hidden>. Training goes on")
    assert "\n" not in warning


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_a_tracker_that_hangs_is_waited_for_no_longer_than_said(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "WAITING_LINES", 3)
    release = threading.Event()
    started = Recorder(**{where: lambda: release.wait(60)}).run(seconds=0.3)
    before = time.monotonic()
    for step in range(20):
        started.log({"loss": 1.0}, step)
    logging = time.monotonic() - before
    started.close()
    assert logging < 10, "training waited for a tracker"
    assert time.monotonic() - before < 30, "the end of the run waited for a tracker"
    assert len(caplog.records) == 1
    assert started.thread.is_alive(), "guard: it hung"
    release.set()
    started.thread.join(30)
    assert not started.thread.is_alive(), "it does not go on with lines that nobody waits for"


def test_a_queue_that_is_full_leaves_lines_out_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "WAITING_LINES", 3)
    release = threading.Event()
    recorder = Recorder(at_send=lambda: release.wait(60))
    started = recorder.run()
    for step in range(20):
        started.log({"loss": 1.0}, step)
    release.set()
    started.close()
    assert 3 <= len(recorder.sent) < 20
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: they do not take lines as fast as they come")
