"""Rows being tokenized: a bar for who looks, a line now and then for a log."""

import io
import os
import pty
from collections.abc import Iterator

from rich.console import Console

from rmtrain.data.rows.loading import Reading
from rmtrain.report.progress import SECONDS_BETWEEN_LINES, ReadingDisplay


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def in_pipe(readings: list[Reading], step: float) -> list[str]:
    """The lines that are printed when the clock goes on by `step` seconds each time somebody looks at it."""
    out = io.StringIO()
    clock = ticking(step)
    with ReadingDisplay(Console(file=out, width=80), clock=lambda: next(clock)) as display:
        for reading in readings:
            display(reading)
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_now_and_then_and_not_one_for_each_batch() -> None:
    readings = [Reading("hh [x]", 1000 * number, number / 1000) for number in range(1, 1001)]
    lines = in_pipe(readings, step=0.1)
    assert 5 <= len(lines) <= 1000 * 0.1 * 3 / SECONDS_BETWEEN_LINES + 1
    assert lines[0].startswith("tokenizing hh [x]: ")
    assert " rows, " in lines[0]
    assert " rows/s, eta " in lines[0]
    assert " %" in lines[0]
    assert all("\x1b" not in line for line in lines)
    assert in_pipe(readings[:5], step=0.1) == [], "what is quick is quiet"


def test_without_a_known_whole_there_is_no_share_and_no_end() -> None:
    lines = in_pipe([Reading("hub", 1000 * number) for number in range(1, 50)], step=1.0)
    assert "%" not in lines[0]
    assert "eta" not in lines[0]
    assert "rows/s" in lines[0]


def test_work_of_another_process_is_said_to_be_its() -> None:
    lines = in_pipe([Reading("hh", number, 0.5, elsewhere=True) for number in range(40)], step=1.0)
    assert lines[0].startswith("another process is tokenizing hh: ")


def test_a_terminal_gets_a_bar(monkeypatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        console = Console(file=terminal, width=100, force_terminal=True)
        with ReadingDisplay(console) as display:
            display(Reading("hh", 12_000, 0.25))
            display(Reading("hh", 24_000, 0.5))
            assert display.bar is not None
            display.bar.refresh()
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    assert "tokenizing hh" in shown
    assert "24,000 rows" in shown
    assert "50.0 %" in shown
    assert "━" in shown
    assert "\x1b[" in shown
