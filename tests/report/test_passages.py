"""Two responses in passages: nothing is lost or made up, and the first difference is where they part."""

from hypothesis import given
from hypothesis import strategies as st

from rmtrain.report.console import escape_invisible
from rmtrain.report.text_diff import LONGEST, PROMPT, Passage, beginning, passages, prompt_end

TEXTS = st.text(alphabet="ab \n,é東", max_size=60)


def joined(pieces: list[Passage]) -> str:
    return "".join(piece.text for piece in pieces)


@given(TEXTS, TEXTS)
def test_short_texts_are_whole_and_part_at_one_place(one: str, other: str) -> None:
    ours, theirs = passages(one, other)
    assert joined(ours) == escape_invisible(one)
    assert joined(theirs) == escape_invisible(other)
    for pieces in (ours, theirs):
        assert sum(piece.kind == "first" for piece in pieces) <= 1
    if one != other:
        assert any(piece.kind == "first" for piece in [*ours, *theirs])


def test_the_first_differing_word_is_marked_and_later_ones_less() -> None:
    ours, theirs = passages("A spider has eight legs and two eyes.", "A spider has six legs and many eyes.")
    assert [piece for piece in ours if piece.kind != "same"] == [Passage("eight", "first"), Passage("two", "other")]
    assert [piece for piece in theirs if piece.kind != "same"] == [Passage("six", "first"), Passage("many", "other")]


def test_texts_with_little_in_common_have_only_their_first_word_marked() -> None:
    ours, theirs = passages("Certainly, here is the poem you wanted", "No")
    assert [piece for piece in ours if piece.kind != "same"] == [Passage("Certainly", "first")]
    assert theirs == [Passage("No", "first")]


def test_what_is_missing_has_an_empty_place() -> None:
    ours, theirs = passages("It is red.", "It is bright red.")
    assert [piece.kind for piece in ours] == ["same", "first", "same"]
    assert ours[1].text == ""
    assert Passage("bright", "first") in theirs


def test_long_texts_are_cut_around_the_first_difference_and_say_so() -> None:
    shared = "word " * 1000
    ours, _ = passages(shared + "left " * 2000, shared + "right " * 2000)
    assert ours[0].kind == ours[-1].kind == "cut"
    assert "characters left out" in ours[0].text
    assert any(piece.kind == "first" and piece.text == "left" for piece in ours)
    assert len(joined(ours)) < LONGEST + 100


def test_prompts_keep_their_end_and_responses_their_beginning() -> None:
    text = "first " + "middle " * 400 + "last"
    cut, end = prompt_end(text)
    assert cut.kind == "cut"
    assert end.text.startswith("middle")
    assert end.text.endswith("last")
    start, rest = beginning(text)
    assert start.text.startswith("first")
    assert rest.kind == "cut"
    assert len(end.text) <= PROMPT
    assert prompt_end("short\n") == [Passage("short", "same")]


def test_invisible_characters_are_shown() -> None:
    ours, _ = passages("a\x1b[31m b", "a c")
    assert "\x1b" not in joined(ours)
    assert "\\x1b" in joined(ours)
