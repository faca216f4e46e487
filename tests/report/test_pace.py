"""Progress as lines: seldom, and with what is left."""

import pytest

from rmtrain.report import progress as pace
from rmtrain.report.progress import LinePace as Pace
from tests.report.render import console, written


def test_lines_come_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(0.5 * step for step in range(1, 61))])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(clock))
    target = console()
    work = Pace(target, "micro-batches", total=60)
    for _ in range(60):
        work.step()
    lines = written(target).splitlines()
    assert lines[0] == "  20 of 60 micro-batches, 2.0 a second, 20s left"
    assert [line.split()[0] for line in lines] == ["20", "40", "60"]


def test_without_a_total_nothing_is_left() -> None:
    work = Pace(console(), "lines")
    work.step(1500)
    assert work.line(3.0) == "  1,500 lines, 500 a second"
