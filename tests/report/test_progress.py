"""Displays: a live line where a person watches, plain lines where a log is read."""

import io
import os
import pty
import re
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.text import Text

from rmtrain.report.progress import LineDisplay, LiveDisplay, Pace, make_display
from tests.report.render import console, written

METRICS = {
    "train/loss": 0.6123,
    "train/accuracy": 0.6714,
    "train/learning_rate": 9e-6,
    "train/tokens_per_second": 12_345.0,
    "train/grad_norm": 1.0,
}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal() -> Iterator[io.TextIOWrapper]:
    """The writing end of a real pseudo-terminal."""
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as file:
        yield file
    os.close(parent)


def run(display: LineDisplay | LiveDisplay, clock: Clock, steps: range, seconds: float, every: int) -> None:
    with display:
        for step in steps:
            clock.now += seconds
            display.step(step, tokens=4000)
            if step % every == 0:
                display.log(step, METRICS)


def test_a_line_for_each_log() -> None:
    clock, target = Clock(), console(width=40)
    run(LineDisplay(target, 900, clock), clock, range(1, 121), seconds=1 / 3, every=60)
    assert written(target) == (
        "step  60/900  loss 0.612  acc 0.671  lr 9.0e-06  12.3k tok/s  eta 4m40s\n"
        "step 120/900  loss 0.612  acc 0.671  lr 9.0e-06  12.3k tok/s  eta 4m20s\n"
    )


def test_metrics_that_are_not_there_are_left_out() -> None:
    target = console()
    LineDisplay(target, 9).log(3, {"train/loss": 0.5})
    assert written(target) == "step 3/9  loss 0.500\n"


def test_lines_never_hold_control_codes_in_a_file_even_with_forced_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    target = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80)
    display = make_display(target, 900)
    assert isinstance(display, LineDisplay), "rich takes this file for a terminal, but nobody can watch it"
    run(display, Clock(), range(1, 4), seconds=1.0, every=1)
    assert "\x1b" not in written(target)
    assert written(target).count("\n") == 3


def test_a_person_at_a_terminal_gets_the_live_line(monkeypatch: pytest.MonkeyPatch, terminal: io.TextIOWrapper) -> None:
    monkeypatch.delenv("CI", raising=False)
    environment = {"TERM": "xterm-256color"}
    assert isinstance(make_display(Console(file=terminal, _environ=environment), 900), LiveDisplay)
    assert isinstance(make_display(Console(file=terminal, _environ={"TERM": "dumb"}), 900), LineDisplay)
    assert isinstance(make_display(Console(file=terminal, _environ={**environment, "TTY_INTERACTIVE": "0"}), 900), LineDisplay)
    assert isinstance(make_display(console(), 900), LineDisplay)
    monkeypatch.setenv("CI", "true")
    assert isinstance(make_display(Console(file=terminal, _environ=environment), 900), LineDisplay)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_live_line_shows_step_loss_accuracy_speed_and_time_left() -> None:
    clock, target = Clock(), console(color=True)
    run(LiveDisplay(target, 900, processes=2, clock=clock), clock, range(1, 121), seconds=1 / 3, every=60)
    last = plain(written(target)).splitlines()[-1]
    assert last.startswith("step 120/900 ━")
    assert last.endswith("loss 0.612 acc 0.671 24.0k tok/s eta 4m20s")
    assert len(last) == 80


def test_tables_and_notices_stand_above_the_live_line() -> None:
    target = console(color=True)
    with LiveDisplay(target, 10) as display:
        display.step(1, 10)
        display.show(Text("a table"))
        display.notice("a [notice] " + "x" * 100)
        display.step(2, 10)
    text = plain(written(target))
    assert text.index("a table") < text.index("a [notice]") < text.rindex("step  2/10")
    assert "x" * 100 in text


def test_the_live_line_ends_when_the_run_fails() -> None:
    target = console(color=True)

    def fail() -> None:
        with LiveDisplay(target, 10) as display:
            display.step(1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert written(target).endswith("\x1b[?25h"), "the cursor is back"


def test_the_pace_is_that_of_the_last_steps_and_a_resumed_run_begins_anew() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.remaining(900) is None
    assert pace.tokens_per_second() is None
    for step in range(501, 801):
        clock.now += 10 if step <= 600 else 2
        pace.step(step, 100)
    assert pace.remaining(900) == pytest.approx(200)
    assert pace.tokens_per_second() == pytest.approx(50)


def test_a_step_is_cheap() -> None:
    with LiveDisplay(console(color=True), 10_000) as display:
        for step in range(10_000):
            display.step(step, 1)
    assert len(written(display.console)) < 100_000, "steps do not redraw; a timer does"
