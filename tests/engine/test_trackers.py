"""Trackers fail, hang and fall behind; training does not notice, and one warning tells of it."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rmtrain.engine import trackers
from rmtrain.engine.trackers import Trackers


class Recorder:
    """A tracker of accelerate's kind that notes what it is given, after doing what it is told at each call."""

    def __init__(self, at_start: Callable[[], Any] = bool, at_send: Callable[[], Any] = bool) -> None:
        self.at_start, self.at_send = at_start, at_send
        self.sent: list[tuple[Mapping[str, float], int]] = []
        self.settings: Mapping[str, Any] = {}
        self.ended = False

    def start(self) -> None:
        self.at_start()

    def store_init_configuration(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.at_send()
        self.sent.append((metrics, step))

    def finish(self) -> None:
        self.ended = True


def running(seconds: float = 5.0, **recorders: Recorder) -> Trackers:
    """Trackers that are these recorders, by name."""
    return Trackers({name: lambda recorder=recorder: recorder for name, recorder in recorders.items()}, {"run.seed": 1}, seconds)


def fail() -> None:
    raise RuntimeError("no route to https://name:secret@host\nhf_abcdefghijklmnopqrstuvwxyz0123456789")


def test_every_line_arrives_in_order_before_the_end() -> None:
    recorder = Recorder()
    started = running(wandb=recorder)
    for step in range(50):
        started.log({"loss": float(step)}, step)
    started.close()
    assert recorder.sent == [({"loss": float(step)}, step) for step in range(50)]
    assert recorder.settings == {"run.seed": 1}
    assert recorder.ended


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_a_tracker_that_raises_is_told_once_on_one_line_without_secrets(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = running(wandb=Recorder(**{where: fail}))
    for step in range(20):
        started.log({"loss": 1.0}, step)
    started.close()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: wandb: RuntimeError: no route to https://<hidden>@host <hidden>. Training goes on")
    assert "\n" not in warning


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_what_one_tracker_raises_keeps_nothing_from_the_others(where: str, caplog: pytest.LogCaptureFixture) -> None:
    def cannot_be_made() -> Recorder:
        raise ValueError("no settings")

    bad, good = Recorder(**{where: fail}), Recorder()
    started = Trackers({"trackio": cannot_be_made, "wandb": lambda: bad, "mlflow": lambda: good}, {})
    for step in range(20):
        started.log({"loss": 1.0}, step)
    started.close()
    assert len(good.sent) == 20
    assert good.ended
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["trackio", "wandb"]
    assert bad.sent == [], "guard: it raised"
    assert bad.ended == (where == "at_send"), "what has begun is ended"


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_a_tracker_that_hangs_is_waited_for_no_longer_than_said(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "WAITING_CALLS", 3)
    release = threading.Event()
    started = running(seconds=0.3, wandb=Recorder(**{where: lambda: release.wait(60)}))
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
    monkeypatch.setattr(trackers, "WAITING_CALLS", 3)
    release = threading.Event()
    recorder = Recorder(at_send=lambda: release.wait(60))
    started = running(wandb=recorder)
    for step in range(20):
        started.log({"loss": 1.0}, step)
    release.set()
    started.close()
    assert 3 <= len(recorder.sent) < 20
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: they do not take lines as fast as they come")
