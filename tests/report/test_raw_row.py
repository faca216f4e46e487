"""Dropped rows as their sources have them: every cell, under its path, harmless."""

from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.comparison_view import dropped_view
from tests.report.render import console, written

CELLS: dict[str, Any] = {
    "prompt": "Say it.\nIn two lines.",
    "chosen": [{"role": "user", "content": "word " * 40 + "end"}],
    "score": 0,
    "note": None,
    "empty": "",
    "[bold]markup[/]": "[red]as it is[/]",
    "evil\x1b[2J": "\x1b[31m\u202e\x9b",
}


def shown(content: Any, width: int = 100, color: bool = False) -> list[str]:
    row = {"id": "rows:3", "source": "rows", "reason": "role_order", "detail": "a side ends\x1b with the user", "row": content}
    target = console(width, color)
    target.print(dropped_view(row), crop=False)
    return [Text.from_ansi(line).plain.rstrip() for line in written(target).split("\n")]


def test_the_reason_comes_first_then_every_cell_under_its_path() -> None:
    lines = shown(CELLS)
    assert lines[:4] == ["id      rows:3", "source  rows", "reason  role_order", "detail  a side ends\\x1b with the user"]
    cells = [line.split(None, 1) for line in lines[5:] if line]
    assert cells[0] == ["prompt", "Say it."]
    assert lines[6].strip() == "In two lines."
    assert ["chosen.0.role", "user"] in cells
    assert ["chosen.0.content", "word " * 40 + "end"] in cells
    for cell in (["score", "0"], ["note", "null"], ["empty", "empty text"], ["[bold]markup[/]", "[red]as it is[/]"]):
        assert cell in cells
    assert ["evil\\x1b[2J", "\\x1b[31m\\u202e\\x9b"] in cells


def test_a_line_that_is_no_row_is_shown_as_it_stands_and_one_that_is_gone_is_said() -> None:
    assert '{"prompt": oops\\x9b' in shown('{"prompt": oops\x9b')
    assert "it is not in its source any more" in shown(None)


@pytest.mark.parametrize("width", [60, 100])
def test_a_terminal_is_never_overrun(width: int) -> None:
    lines = shown(CELLS | {"a.very.long.path.to.a.cell.that.is.deep": "日本語" * 60}, width, color=True)
    assert max(map(cell_len, lines)) <= width
    assert all(character.isprintable() for line in lines for character in line)
    assert "".join(lines).count("日") == 60
