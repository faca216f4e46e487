"""Progress: a live line where a person watches, plain lines where a log is read."""

import io
import os
import pty
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from rich.text import Text

from rmtrain.data.rows.loading import Reading
from rmtrain.report.progress import (
    SECONDS_BETWEEN_LINES,
    ReadingProgress,
    ScoringProgress,
    TrainingProgress,
    is_watched,
)
from tests.report.render import console, written

METRICS = {
    "train/loss": 0.6123,
    "train/accuracy": 0.6714,
    "train/learning_rate": 9e-6,
    "train/tokens_per_second": 12_345.0,
    "train/grad_norm": 1.0,
}
TERMINAL = {"TERM": "xterm-256color"}


class Clock:
    """Seconds that pass only when a test adds to them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def terminal() -> Iterator[tuple[io.TextIOWrapper, int]]:
    """Open both ends of a pseudo-terminal: a file to write to, and the descriptor of a screen to read from."""
    screen, keyboard = pty.openpty()
    with os.fdopen(keyboard, "w", encoding="utf-8") as file:
        yield file, screen
    os.close(screen)


def read_until(screen: int, *words: str) -> str:
    """Read what a terminal shows until it has all words; a read may return any part of it."""
    shown, deadline = b"", time.monotonic() + 30
    while not all(word in shown.decode(errors="replace") for word in words):
        assert time.monotonic() < deadline, shown
        if select.select([screen], [], [], 0.1)[0]:
            shown += os.read(screen, 2**16)
    return shown.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run(progress: TrainingProgress, clock: Clock, steps: range, seconds: float, every: int) -> None:
    with progress:
        for step in steps:
            clock.now += seconds
            progress.step(step, tokens=4000)
            if step % every == 0:
                progress.log(step, METRICS)


def test_a_person_at_a_terminal_is_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with terminal() as (file, _):
        assert is_watched(Console(file=file, _environ=TERMINAL))
        assert not is_watched(Console(file=file, _environ={"TERM": "dumb"}))
        assert not is_watched(Console(file=file, _environ={**TERMINAL, "TTY_INTERACTIVE": "0"}))
        assert not is_watched(Console(file=file, _environ=TERMINAL, quiet=True)), "such as that of another rank"
        monkeypatch.setenv("CI", "true")
        assert not is_watched(Console(file=file, _environ=TERMINAL))
    assert not is_watched(console())


def test_training_prints_a_line_for_each_log() -> None:
    clock, target = Clock(), console(width=40)
    run(TrainingProgress(target, 900, clock=clock), clock, range(1, 121), seconds=1 / 3, every=60)
    assert written(target) == (
        "step  60/900  loss 0.612  acc 0.671  lr 9.0e-06  12.3k tok/s  eta 4m40s\n"
        "step 120/900  loss 0.612  acc 0.671  lr 9.0e-06  12.3k tok/s  eta 4m20s\n"
    )


def test_training_leaves_out_missing_metrics() -> None:
    target = console()
    TrainingProgress(target, 9).log(3, {"train/loss": 0.5})
    assert written(target) == "step 3/9  loss 0.500\n"


def test_forced_colour_gives_a_file_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    target = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80)
    run(TrainingProgress(target, 900), Clock(), range(1, 4), seconds=1.0, every=1)
    assert "\x1b" not in written(target), "rich takes this file for a terminal"
    assert written(target).count("\n") == 3


def test_live_line_has_step_metrics_speed_and_eta() -> None:
    clock, target = Clock(), console(color=True)
    run(TrainingProgress(target, 900, processes=2, live=True, clock=clock), clock, range(1, 121), seconds=1 / 3, every=60)
    last = plain(written(target)).splitlines()[-1]
    assert last.startswith("step 120/900 ━")
    assert last.split()[-8:] == ["loss", "0.612", "acc", "0.671", "24.0k", "tok/s", "eta", "4m20s"]
    assert len(last) == 80


@pytest.mark.parametrize("width", [60, 80, 200])
def test_live_line_cuts_no_number(width: int) -> None:
    clock, target = Clock(), console(width, color=True)
    run(TrainingProgress(target, 900, live=True, clock=clock), clock, range(1, 121), seconds=1 / 3, every=60)
    last = plain(written(target)).splitlines()[-1]
    assert len(last) <= width
    assert all(number in last for number in ("120/900", "0.612", "0.671", "12.0k tok/s", "4m20s"))


def test_tables_and_notices_stand_above_live_line() -> None:
    target = console(color=True)
    with TrainingProgress(target, 10, live=True) as progress:
        progress.step(1, 10)
        progress.show(Text("a table"))
        progress.notice("a [notice] " + "x" * 100)
        progress.step(2, 10)
    text = plain(written(target))
    assert text.index("a table") < text.index("a [notice]") < text.rindex("step  2/10")
    assert "x" * 100 in text


def test_live_line_ends_when_the_run_fails() -> None:
    target = console(color=True)

    def fail() -> None:
        with TrainingProgress(target, 10, live=True) as progress:
            progress.step(1, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert written(target).endswith("\x1b[?25h"), "the cursor is back"


def test_pace_of_a_resumed_run_starts_over() -> None:
    """Steps of an earlier process do not count; the pace is that of the last thousand steps, however slow they are."""
    clock, target = Clock(), console()
    progress = TrainingProgress(target, 10_000, clock=clock)
    assert progress.task.speed is None
    clock.now += 500
    progress.step(501, 100)
    assert not progress.task.speed
    for step in range(502, 2802):
        clock.now += 50 if step <= 1700 else 2
        progress.step(step, 100)
    assert progress.task.speed == pytest.approx(0.5)
    progress.log(2801, {})
    assert written(target).split("eta ")[1].strip() == "3h59m"


def test_step_is_cheap() -> None:
    """Steps do not redraw the line; a timer does."""
    target = console(color=True)
    with TrainingProgress(target, 10_000, live=True) as progress:
        for step in range(10_000):
            progress.step(step, 1)
    assert len(written(target)) < 100_000


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def lines_of(readings: list[Reading], step: float) -> list[str]:
    """Return the lines in a pipe when the clock advances by `step` seconds each time it is read."""
    target, clock = console(), ticking(step)
    with ReadingProgress(target, clock=lambda: next(clock)) as progress:
        for reading in readings:
            progress(reading)
    return written(target).splitlines()


def test_pipe_gets_a_line_now_and_then() -> None:
    """Reading prints lines at least ten seconds apart, not one for each batch, and none when it is quick."""
    readings = [Reading("hh [x]", 1000 * number, number / 1000) for number in range(1, 1001)]
    lines = lines_of(readings, step=0.1)
    assert 5 <= len(lines) <= 1000 * 0.1 * 6 / SECONDS_BETWEEN_LINES + 1
    assert re.fullmatch(r"tokenizing hh \[x\]: [\d,]+ rows, \d+\.\d %, [\d.]+k? rows/s, eta \w+", lines[0])
    assert all("\x1b" not in line for line in lines)
    assert lines_of(readings[:5], step=0.1) == []


def test_reading_speed_and_eta_are_true() -> None:
    clock, target = Clock(), console()
    progress = ReadingProgress(target, clock=clock)
    for number in range(1, 31):
        clock.now += 1.0
        progress(Reading("hh", 1000 * number, number / 100))
    assert written(target).splitlines()[-1] == "tokenizing hh: 30,000 rows, 30.0 %, 1.00k rows/s, eta 1m10s"


def test_reading_without_total_has_no_eta() -> None:
    lines = lines_of([Reading("hub", 1000 * number) for number in range(1, 50)], step=1.0)
    assert "%" not in lines[0]
    assert "eta" not in lines[0]
    assert "rows/s" in lines[0]


def test_next_source_starts_its_own_pace() -> None:
    clock, target = Clock(), console()
    progress = ReadingProgress(target, clock=clock)
    for number in range(1, 12):
        clock.now += 1.0
        progress(Reading("slow", number, number / 11))
    for number in range(1, 12):
        clock.now += 1.0
        progress(Reading("fast", 5000 * number, number / 22))
    slow, fast = written(target).splitlines()
    assert " slow: " in slow
    assert " fast: " in fast
    assert "5.00k rows/s" in fast


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with terminal() as (file, screen):
        with ReadingProgress(Console(file=file, width=100, _environ=TERMINAL)) as progress:
            progress(Reading("hh", 12_000, 0.25))
            progress(Reading("hh", 24_000, 0.5))
            assert progress.is_live
            progress.progress.refresh()
        file.flush()
        assert "\x1b[" in read_until(screen, "tokenizing hh", "24,000 rows", "50.0 %", "━")


def test_scoring_prints_lines_now_and_then() -> None:
    clock, target = Clock(), console()
    with ScoringProgress(target, "micro-batches", 60, clock=clock) as progress:
        for _ in range(60):
            clock.now += 0.5
            progress.step()
    assert written(target).splitlines() == [
        "scoring: 20 of 60 micro-batches, 2.0/s, eta 20s",
        "scoring: 40 of 60 micro-batches, 2.0/s, eta 10s",
        "scoring: 60 of 60 micro-batches, 2.0/s, eta 0s",
    ]


def test_scoring_without_total_has_no_eta() -> None:
    clock, target = Clock(), console()
    with ScoringProgress(target, "lines", clock=clock) as progress:
        for _ in range(3):
            clock.now += 5.0
            progress.step(5000)
    assert written(target) == "scoring: 10,000 lines, 1.00k/s\n"


def test_scoring_never_exceeds_its_total() -> None:
    """The last step of several processes counts each of them, also those without a micro-batch of their own."""
    clock, target = Clock(), console()
    with ScoringProgress(target, "micro-batches", 3, clock=clock) as progress:
        clock.now += 9.0
        progress.step(2)
        clock.now += 9.0
        progress.step(2)
    assert written(target).startswith("scoring: 3 of 3 ")
