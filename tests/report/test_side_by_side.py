"""Two texts in columns or one above the other: whole, in width, and marked where they part."""

import pytest
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.text_diff import SideBySide
from tests.report.render import console, written

ONE = "The same start. Then it is good.\nA line both have.\nend"
OTHER = "The same start. Then it is bad, I say.\nExtra line.\nA line both have.\nend"
NAMES = ("chosen", "rejected")


def shown(one: str, other: str, width: int, in_columns: bool | None = None, color: bool = True) -> list[str]:
    target = console(width, color=color)
    target.print(SideBySide(NAMES, (one, other), in_columns), crop=False)
    return written(target).splitlines()


def plain(lines: list[str]) -> list[str]:
    return [Text.from_ansi(line).plain.rstrip() for line in lines]


def columns(lines: list[str]) -> tuple[list[str], list[str]]:
    """What stands left and right of the divider."""
    cells = [line.split("│") for line in plain(lines) if "│" in line]
    left, right = ([cell.strip() for cell in side] for side in zip(*cells, strict=True))
    return left, right


def test_equal_lines_stand_beside_one_another() -> None:
    left, right = columns(shown(ONE, OTHER, 120))
    assert (left[0], right[0]) == NAMES
    assert left[1:] == ["The same start. Then it is ▸good.", "", "A line both have.", "end"]
    assert right[1:] == ["The same start. Then it is ▸bad, I say.", "Extra line.", "A line both have.", "end"]


def test_where_there_is_no_room_they_stand_one_above_the_other() -> None:
    for lines in (
        shown(ONE, OTHER, 99),
        shown(ONE, OTHER, 160, False),
        shown(ONE, OTHER, 160, color=False),
        shown(ONE, OTHER, 59, True),
    ):
        text = plain(lines)
        assert "│" not in "".join(text)
        assert text.index("chosen") < text.index("The same start. Then it is ▸good.") < text.index("rejected")
    assert "│" in "".join(shown(ONE, OTHER, 100))
    assert "│" in "".join(shown(ONE, OTHER, 60, True))
    assert "│" in "".join(shown(ONE, OTHER, 80, True, color=False)), "asked for, a pipe has columns"


def test_a_pipe_keeps_lines_whole() -> None:
    long = "word " * 60 + "end"
    assert long.replace("word", "▸word", 1) in plain(shown(long, "other", 80, color=False))


@pytest.mark.parametrize("width", [60, 100, 101, 160])
def test_wide_characters_are_wrapped_within_their_column_and_none_is_lost(width: int) -> None:
    one = "日本語のとても長い文章です。" * 9 + "\n🦊🐈 emoji 🦊" + "x" * 90
    other = "もう一つの文章、" * 14 + "\ne\u0301 combined"
    lines = shown(one, other, width, True)
    assert {cell_len(line) for line in plain(lines)} <= set(range(width + 1))
    left, right = columns(lines)
    squeezed = ["".join("".join(side[1:]).split()) for side in (left, right)]
    assert squeezed == ["▸" + "".join(text.split()) for text in (one, other)]
    dividers = {cell_len(line.split("│")[0]) for line in plain(lines) if "│" in line}
    assert len(dividers) == 1, "the divider is straight"


def test_the_beginning_is_dim_the_words_of_one_side_are_coloured_and_the_first_is_bold() -> None:
    text = "".join(shown(ONE, OTHER, 120))
    assert "\x1b[2mThe same start. Then it is " in text
    assert "\x1b[1;7;32m▸\x1b[0m\x1b[1;32mgood" in text
    assert "\x1b[1;7;31m▸\x1b[0m\x1b[1;31mbad" in text
    assert "\x1b[31mExtra line" in text
    assert "A line both have." in text
    assert "mA line both have." not in text, "what both have is not coloured"


def test_texts_that_are_equal_or_differ_in_spaces_say_so() -> None:
    assert plain(shown("same", "same", 120))[0] == "the texts are the same; only their tokens differ"
    assert plain(shown("same  text", "same text", 120))[0] == "▸ they part here, in spaces only"
    assert "▸" not in "".join(shown("same", "same", 120)[1:])


def test_nothing_of_a_text_moves_the_cursor_or_turns_its_direction() -> None:
    for width in (80, 120):
        text = "".join(plain(shown("a\x1b[31mb\u202e", "a\x1b[2J\x9b\r\x07", width)))
        assert "\\x1b[▸31mb\\u202e" in text
        assert "\\x1b[▸2J\\x9b\\r\\x07" in text
        assert all(character.isprintable() for character in text)
