"""Bars of tokens: in proportion to the budget, readable without colours, and no wider than there is room."""

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.step_view import CHARACTERS, FREE, TokenBar, TokenRun, bar_legend
from tests.report.render import console, render, written

PAIR: list[TokenRun] = [("prefix", 40), ("chosen", 20), ("rejected", 20)]


def lines_of(bar: TokenBar, width: int = 40, color: bool = False) -> list[str]:
    return [Text.from_ansi(line).plain for line in render(bar, width, color).splitlines()]


def test_without_colours_each_kind_has_its_character_in_proportion_to_its_tokens() -> None:
    (line,) = lines_of(TokenBar([PAIR], 100, most_lines=1), 50)
    assert line == "░" * 20 + "█" * 10 + "▒" * 10 + "·" * 10
    (line,) = lines_of(TokenBar([[("chosen", 30), ("padding", 10), ("rejected", 40), ("other", 20)]], 200, 1), 20)
    assert line == "█" * 3 + "×" + "▒" * 4 + "▓" * 2 + "·" * 10


def test_in_colours_a_character_is_two_blocks_and_comparisons_alternate_in_shade() -> None:
    text = render(TokenBar([[("chosen", 5)], [("chosen", 5)]], 10, 1), 5, color=True)
    assert text == "\x1b[38;5;71m██\x1b[0m\x1b[38;5;71;48;5;114m▌\x1b[0m\x1b[38;5;114m██\x1b[0m\n"
    half = render(TokenBar([[("chosen", 5)]], 10, 1), 5, color=True)
    assert half == "\x1b[38;5;71m██\x1b[0m\x1b[38;5;71m▌\x1b[0m\x1b[2m··\x1b[0m\n", "the other half of a character is free"


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [20, 60, 100, 300])
def test_a_bar_fills_its_lines_and_stays_in_width(width: int, color: bool) -> None:
    lines = lines_of(TokenBar([PAIR] * 30, 8192), width, color)
    assert 1 <= len(lines) <= 6
    assert {cell_len(line) for line in lines} == {min(width, 120)}
    cells = "".join(lines)
    filled = len(cells) - cells.count(FREE)
    assert abs(filled / len(cells) - 30 * 80 / 8192) < 2 / len(cells), (
        "guard: the share that is filled is the share of the budget"
    )


def test_short_segments_take_more_lines_long_ones_fewer() -> None:
    few = lines_of(TokenBar([[("chosen", 4000)]], 8000), 60)
    many = lines_of(TokenBar([PAIR] * 50, 8000), 60)
    assert len(few) < len(many) <= 6
    assert len(lines_of(TokenBar([PAIR] * 50, 8000, most_lines=2), 60)) == 2


def test_the_smallest_segment_of_a_bar_is_not_invisible_when_it_is_alone_and_nothing_is_nothing() -> None:
    assert lines_of(TokenBar([[("chosen", 1)]], 10**6, 1), 10) == ["█" + FREE * 9]
    assert lines_of(TokenBar([], 100), 10) == [FREE * 10]


def test_the_legend_names_what_there_is_in_the_order_of_the_row() -> None:
    assert render(bar_legend(["rejected", "prefix", "rejected"], coloured=False)) == "░░ prefix   ▒▒ rejected   ·· free\n"
    target = console(color=True)
    target.print(bar_legend(["chosen"], coloured=True))
    assert "\x1b[38;5;71m██" in written(target)
    assert len(set(CHARACTERS.values()) | {FREE}) == len(CHARACTERS) + 1, "guard: characters differ"
