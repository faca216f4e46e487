"""Where texts part: nothing is lost, passages are whole words, and chance does not count."""

import random

import pytest

from rmtrain.report.text_diff import difference, paired_lines


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
def test_the_first_difference_and_the_words_of_one_side(
    one: str, other: str, begin: int, ours: list[str], theirs: list[str]
) -> None:
    assert marked(one, other) == (begin, ours, theirs)


def test_equal_texts_do_not_differ() -> None:
    assert difference("a b", "a b") is None


def test_words_that_unlike_texts_share_by_chance_do_not_count_but_passages_do() -> None:
    one = "It is the tall red house near my old school that I like the most of all."
    other = "Go to the shop and buy the bread, then eat it in the park near my old school please."
    _, ours, theirs = marked(one, other)
    assert [words for words in ours if "the" in words.split()], "a lone `the` is no common passage"
    assert not any("near my old school" in words for words in [*ours, *theirs])


def test_spans_lie_behind_the_beginning_in_order_and_apart() -> None:
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


def test_lines_are_paired_each_once_equal_ones_together() -> None:
    assert paired_lines(["a", "b", "c"], ["a", "x", "y", "c"]) == [(0, 0), (1, 1), (None, 2), (2, 3)]
    assert paired_lines(["b"], ["a", "b"]) == [(None, 0), (0, 1)]
    rng = random.Random(7)
    for _ in range(100):
        one, other = (rng.choices(["a", "b", "", "c"], k=rng.randint(1, 8)) for _ in range(2))
        pairs = paired_lines(one, other)
        assert [left for left, _ in pairs if left is not None] == list(range(len(one)))
        assert [right for _, right in pairs if right is not None] == list(range(len(other)))


def test_thousands_of_words_are_compared() -> None:
    rng = random.Random(1)
    words = [f"word{number}" for number in range(500)] + ["the", "of", "and"] * 100
    one, other = (" ".join([*rng.choices(words, k=4000), "and here the very same end"]) for _ in range(2))
    found = difference(one, other)
    assert found is not None
    assert one[found.spans[0][-1][1] :].strip().endswith("here the very same end")
