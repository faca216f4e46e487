"""Formats of numbers, escapes for invisible characters, and lines that are wrapped in terminals only."""

import json

import pytest
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import (
    KeyValues,
    NoWrap,
    WrapText,
    compact,
    decimal,
    duration,
    escape_invisible,
    has_colours,
    json_text,
    percent,
)
from tests.report.render import console, written

LONG = "one sentence that is far wider than forty columns and has to stay on its line in a pipe"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.4, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_999, "1.00M"),
        (1_010_000_000, "1.01B"),
        (3e15, "3000T"),
    ],
)
def test_compact_counts(number: float, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (250, "4m10s"), (3_840, "1h04m"), (183_600, "2d03h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_decimals_have_true_minus_and_dash() -> None:
    assert [decimal(-0.5, 2), decimal(0.5, 2, sign=True), decimal(None)] == ["−0.50", "+0.50", "–"]


def test_only_exact_shares_are_0_or_100() -> None:
    assert [percent(part, 100_000) for part in (0, 1, 500, 99_999, 100_000)] == ["0 %", "<0.1 %", "0.5 %", ">99.9 %", "100 %"]
    assert percent(0, 0) == "–"


def test_invisible_characters_are_escaped() -> None:
    assert escape_invisible("a\x1b[31mb\r\x07\x9b") == "a\\x1b[31mb\\r\\x07\\x9b"
    assert escape_invisible("zero\u200bwidth \u202eright\u202c \ufeff \u00a0 \u3000 \U000e0041") == (
        "zero\\u200bwidth \\u202eright\\u202c \\ufeff \\xa0 \\u3000 \\U000e0041"
    )
    plain = "naïve 日本 😀 ’ – tab\tline\n"
    assert escape_invisible(plain) == plain


def test_json_text_is_safe_to_print() -> None:
    """The JSON text has the same data, and nothing that a terminal would act on."""
    document = {"text": "\x1b[31m \x7f \x9b \u202e \u00a0 \U000e0041 日本 🦊\n", "n": 1.5}
    text = json_text(document)
    assert json.loads(text) == document
    assert text.isprintable()
    assert "日本 🦊" in text
    assert "\\udb40\\udc41" in text, "guard: also beyond the basic plane"
    with pytest.raises(ValueError, match="JSON"):
        json_text({"n": float("nan")})


def shown(view: object, width: int = 40, terminal: bool = False) -> list[str]:
    target = console(width, color=terminal)
    target.print(view, crop=False)
    return [Text.from_ansi(line).plain.rstrip() for line in written(target).splitlines()]


def test_text_is_wrapped_in_terminals_only() -> None:
    assert shown(WrapText(Text(f"{LONG}\n\nend"))) == [LONG, "", "end"]
    wrapped = shown(WrapText(Text(LONG)), terminal=True)
    assert " ".join(wrapped) == LONG
    assert max(map(len, wrapped)) <= 40
    assert shown(WrapText(Text("x" * 50)), terminal=True) == ["x" * 40, "x" * 10], "a word that is too wide is not lost"


def test_long_values_are_indented_in_terminals_only() -> None:
    values = KeyValues({"row": "3", "source": LONG, "found": Text("here")})
    assert shown(values) == ["row     3", f"source  {LONG}", "found   here"]
    lines = shown(values, terminal=True)
    assert lines[0] == "row     3"
    assert lines[2].startswith("        "), "guard: it was wrapped"
    assert " ".join(line[8:] for line in lines[1:-1]) == LONG


def test_tables_are_folded_in_terminals_only() -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("日本", LONG)
    assert [" ".join(line.split()) for line in shown(NoWrap(table))] == [f"日本 {LONG}"]
    target = console(40)
    target.print(NoWrap(table), crop=False)
    assert all(line == line.rstrip() for line in written(target).splitlines())
    folded = shown(NoWrap(table), terminal=True)
    assert len(folded) > 1
    assert max(map(cell_len, folded)) <= 40


def test_colours_need_a_colour_terminal() -> None:
    assert has_colours(console(color=True))
    assert not has_colours(console())
    assert not has_colours(console(color=True, no_color=True))
