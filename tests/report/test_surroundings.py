"""What depends on where something is printed: lines are wrapped in terminals only."""

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import KeyValues, NoWrap, WrapText, has_colours
from tests.report.render import console, written

LONG = "one sentence that is far wider than forty columns and has to stay on its line in a pipe"


def shown(view: object, width: int = 40, terminal: bool = False) -> list[str]:
    target = console(width, color=terminal)
    target.print(view, crop=False)
    lines = written(target).splitlines()
    return [Text.from_ansi(line).plain.rstrip() for line in lines]


def test_a_flowing_text_is_wrapped_in_a_terminal_and_whole_in_a_pipe() -> None:
    assert shown(WrapText(Text(f"{LONG}\n\nend"))) == [LONG, "", "end"]
    wrapped = shown(WrapText(Text(LONG)), terminal=True)
    assert " ".join(wrapped) == LONG
    assert max(map(len, wrapped)) <= 40
    assert shown(WrapText(Text("x" * 50)), terminal=True) == ["x" * 40, "x" * 10], "a word that is too wide is cut, not lost"


def test_facts_hang_under_their_beginning_in_a_terminal_and_stay_on_their_line_in_a_pipe() -> None:
    facts = KeyValues({"row": "3", "source": LONG, "found": Text("here")})
    assert shown(facts) == ["row     3", f"source  {LONG}", "found   here"]
    lines = shown(facts, terminal=True)
    assert lines[0] == "row     3"
    assert lines[2].startswith("        "), "guard: it was wrapped"
    assert " ".join(line[8:] for line in lines[1:-1]) == LONG


def test_a_table_is_as_wide_as_it_needs_to_be_in_a_pipe() -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("日本", LONG)
    assert [" ".join(line.split()) for line in shown(NoWrap(table))] == [f"日本 {LONG}"]
    target = console(40)
    target.print(NoWrap(table), crop=False)
    assert all(line == line.rstrip() for line in written(target).splitlines())
    folded = shown(NoWrap(table), terminal=True)
    assert len(folded) > 1
    assert max(map(cell_len, folded)) <= 40


def test_colours_are_there_when_they_are_seen() -> None:
    assert has_colours(console(color=True))
    assert not has_colours(console())
    assert not has_colours(console(color=True, no_color=True))
