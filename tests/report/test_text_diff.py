"""The difference of two texts: whole words, nothing lost or made up, and no chance matches; as passages and side by side."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from rmtrain.report.console import escape_invisible
from rmtrain.report.text_diff import (
    MAX_EXCERPT,
    MAX_SHOWN,
    Passage,
    SideBySide,
    beginning,
    difference,
    passages,
    prompt_end,
)
from tests.report.render import console, written


def marked(one: str, other: str) -> tuple[int, list[str], list[str]]:
    found = difference(one, other)
    assert found is not None
    ours, theirs = ([text[begin:end] for begin, end in spans] for text, spans in zip((one, other), found.spans, strict=True))
    return found.begin, ours, theirs


@pytest.mark.parametrize(
    ("one", "other", "begin", "ours", "theirs"),
    [
        ("a fine day", "a fine night", 7, ["day"], ["night"]),
        ("a fine day, sir", "a fine night, sir", 7, ["day"], ["night"]),
        ("cats sleep", "cat sleep", 0, ["cats"], ["cat"]),
        ("yes", "yes indeed", 3, [], ["indeed"]),
        ("", "all", 0, [], ["all"]),
        ("same  words", "same words", 5, [], []),
        ("one two three", "four five six", 0, ["one two three"], ["four five six"]),
        ("wait.", "wait!", 4, ["."], ["!"]),
        ("我喜欢猫。", "我喜欢狗。", 3, ["猫"], ["狗"]),
        ("naïve idea", "naive idea", 0, ["naïve"], ["naive"]),
        ("hi 🦊", "hi 🐈", 3, ["🦊"], ["🐈"]),
    ],
)
def test_first_difference_and_words_of_one_side(one: str, other: str, begin: int, ours: list[str], theirs: list[str]) -> None:
    assert marked(one, other) == (begin, ours, theirs)


def test_equal_texts_have_no_difference() -> None:
    assert difference("a b", "a b") is None


def test_single_words_shared_by_chance_do_not_count() -> None:
    """In texts that are not similar, only longer passages are common."""
    one = "It is the tall red house near my old school that I like the most of all."
    other = "Go to the shop and buy the bread, then eat it in the park near my old school please."
    _, ours, theirs = marked(one, other)
    assert [words for words in ours if "the" in words.split()], "a lone `the` is not a common passage"
    assert not any("near my old school" in words for words in [*ours, *theirs])


def test_spans_are_ordered_and_disjoint() -> None:
    rng = random.Random(5)
    words = ["a", "bee", "sea", "sea.", "\n", "日本", "x-y", "  "]
    differing = 0
    for _ in range(300):
        one, other = (" ".join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(2))
        found = difference(one, other)
        if found is None:
            assert one == other
            continue
        differing += 1
        assert one[: found.begin] == other[: found.begin]
        for text, spans in zip((one, other), found.spans, strict=True):
            places = [found.begin, *(place for span in spans for place in span), len(text)]
            assert places == sorted(places)
            assert all(text[begin:end].strip() for begin, end in spans)
    assert differing > 250, "guard"


def test_thousands_of_words_are_compared() -> None:
    rng = random.Random(1)
    words = [f"word{number}" for number in range(500)] + ["the", "of", "and"] * 100
    one, other = (" ".join([*rng.choices(words, k=4000), "and here the very same end"]) for _ in range(2))
    found = difference(one, other)
    assert found is not None
    assert one[found.spans[0][-1][1] :].strip().endswith("here the very same end")


TEXTS = st.text(alphabet="ab \n,é東", max_size=60)


def joined(parts: list[Passage]) -> str:
    return "".join(part.text for part in parts)


@given(TEXTS, TEXTS)
def test_passages_of_short_texts_are_complete(one: str, other: str) -> None:
    """Together they are the text, and each side has at most one first difference."""
    ours, theirs = passages(one, other)
    assert joined(ours) == escape_invisible(one)
    assert joined(theirs) == escape_invisible(other)
    for parts in (ours, theirs):
        assert sum(part.kind == "first" for part in parts) <= 1
    if one != other:
        assert any(part.kind == "first" for part in [*ours, *theirs])


def test_first_differing_word_has_its_own_kind() -> None:
    ours, theirs = passages("A spider has eight legs and two eyes.", "A spider has six legs and many eyes.")
    assert [part for part in ours if part.kind != "same"] == [Passage("eight", "first"), Passage("two", "other")]
    assert [part for part in theirs if part.kind != "same"] == [Passage("six", "first"), Passage("many", "other")]


def test_dissimilar_texts_have_only_the_first_marked() -> None:
    ours, theirs = passages("Certainly, here is the poem you wanted", "No")
    assert [part for part in ours if part.kind != "same"] == [Passage("Certainly", "first")]
    assert theirs == [Passage("No", "first")]


def test_missing_words_have_an_empty_passage() -> None:
    ours, theirs = passages("It is red.", "It is bright red.")
    assert [part.kind for part in ours] == ["same", "first", "same"]
    assert ours[1].text == ""
    assert Passage("bright", "first") in theirs


def test_long_texts_are_cut_around_the_difference() -> None:
    shared = "word " * 1000
    ours, _ = passages(shared + "left " * 2000, shared + "right " * 2000)
    assert ours[0].kind == ours[-1].kind == "cut"
    left_out = [int("".join(filter(str.isdigit, part.text))) for part in (ours[0], ours[-1])]
    kept = [part for part in ours if part.kind != "cut"]
    assert sum(left_out) + len(joined(kept)) == len(shared + "left " * 2000)
    assert any(part.kind == "first" and part.text == "left" for part in ours)
    assert len(joined(ours)) < MAX_SHOWN + 100


def test_excerpts_keep_prompt_end_and_response_beginning() -> None:
    text = "first " + "middle " * 400 + "last"
    cut, end = prompt_end(text)
    assert cut.kind == "cut"
    assert end.text.startswith("middle")
    assert end.text.endswith("last")
    start, rest = beginning(text)
    assert start.text.startswith("first")
    assert rest.kind == "cut"
    assert len(end.text) <= MAX_EXCERPT
    assert prompt_end("short\n") == [Passage("short", "same")]


def test_passages_escape_invisible_characters() -> None:
    ours, _ = passages("a\x1b[31m b", "a c")
    assert "\x1b" not in joined(ours)
    assert "\\x1b" in joined(ours)


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
    """The cells on the left and on the right of the divider."""
    cells = [line.split("│") for line in plain(lines) if "│" in line]
    left, right = ([cell.strip() for cell in side] for side in zip(*cells, strict=True))
    return left, right


def test_lines_of_columns_are_paired() -> None:
    """Each line is shown once, and equal lines next to each other."""
    assert columns(shown("a\nb\nc", "a\nx\ny\nc", 120)) == (["chosen", "a", "▸b", "", "c"], ["rejected", "a", "▸x", "y", "c"])
    assert columns(shown("b", "a\nb", 120)) == (["chosen", "", "▸b"], ["rejected", "▸a", "b"])
    rng = random.Random(7)
    for _ in range(100):
        texts = [rng.choices(["a", "b", "", "c"], k=rng.randint(1, 8)) for _ in range(2)]
        for text, cells in zip(texts, columns(shown(*map("\n".join, texts), width=120)), strict=True):
            lines = [cell.replace("▸", "") for cell in cells[1:]]
            assert [line for line in lines if line] == [line for line in text if line]
            assert lines.count("") >= text.count("")


def test_columns_align_equal_lines() -> None:
    left, right = columns(shown(ONE, OTHER, 120))
    assert (left[0], right[0]) == NAMES
    assert left[1:] == ["The same start. Then it is ▸good.", "", "A line both have.", "end"]
    assert right[1:] == ["The same start. Then it is ▸bad, I say.", "Extra line.", "A line both have.", "end"]


def test_texts_are_stacked_without_room() -> None:
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
    assert "│" in "".join(shown(ONE, OTHER, 80, True, color=False)), "on request, a pipe has columns"


def test_pipes_keep_lines_whole() -> None:
    long = "word " * 60 + "end"
    assert long.replace("word", "▸word", 1) in plain(shown(long, "other", 80, color=False))


@pytest.mark.parametrize("width", [60, 100, 101, 160])
def test_wide_characters_are_wrapped_within_columns(width: int) -> None:
    one = "日本語のとても長い文章です。" * 9 + "\n🦊🐈 emoji 🦊" + "x" * 90
    other = "もう一つの文章、" * 14 + "\ne\u0301 combined"
    lines = shown(one, other, width, True)
    assert {cell_len(line) for line in plain(lines)} <= set(range(width + 1))
    left, right = columns(lines)
    squeezed = ["".join("".join(side[1:]).split()) for side in (left, right)]
    assert squeezed == ["▸" + "".join(text.split()) for text in (one, other)]
    dividers = {cell_len(line.split("│")[0]) for line in plain(lines) if "│" in line}
    assert len(dividers) == 1, "the divider is straight"


def test_common_beginning_is_dim_and_differences_coloured() -> None:
    text = "".join(shown(ONE, OTHER, 120))
    assert "\x1b[2mThe same start. Then it is " in text
    assert "\x1b[1;7;32m▸\x1b[0m\x1b[1;32mgood" in text
    assert "\x1b[1;7;31m▸\x1b[0m\x1b[1;31mbad" in text
    assert "\x1b[31mExtra line" in text
    assert "A line both have." in text
    assert "mA line both have." not in text, "common words are not coloured"


def test_equal_texts_have_no_mark() -> None:
    """Texts that differ in spaces only have a mark, and nothing coloured."""
    assert "▸" not in "".join(shown("same", "same", 120))
    text = "".join(shown("same  text", "same text", 120))
    assert text.count("▸") == 3
    assert "\x1b[32m" not in text


def test_columns_escape_control_characters() -> None:
    for width in (80, 120):
        text = "".join(plain(shown("a\x1b[31mb\u202e", "a\x1b[2J\x9b\r\x07", width)))
        assert "\\x1b[▸31mb\\u202e" in text
        assert "\\x1b[▸2J\\x9b\\r\\x07" in text
        assert all(character.isprintable() for character in text)
