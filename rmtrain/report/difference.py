"""Where two texts part, and which words of each the other does not have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+|[^\w\s]")
"""Letters and digits that stand together, a sign, or one Chinese or Japanese character, which are written without spaces."""
ALIKE = 0.5
SHORTEST_PASSAGE = 3

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """How two texts differ.

    begin: characters that both begin with, up to the beginning of the first word that is not the same.
    spans: for each text, `(begin, end)` of the passages that the other does not have there; whole words.
    """

    begin: int
    spans: tuple[tuple[Span, ...], tuple[Span, ...]]


def difference(one: str, other: str) -> Difference | None:
    """The difference of two texts; None: they are equal.

    What they have in common is found by `difflib` on words. In texts that are not much alike single words that both happen to have do not
    count: only passages of three words or more do.
    """
    if one == other:
        return None
    begin = _word_at(one, other, _shared_beginning(one, other))
    spans = [[match.span() for match in WORD.finditer(text, begin)] for text in (one, other)]
    words = [[text[slice(*span)] for span in places] for text, places in zip((one, other), spans, strict=True)]
    matcher = SequenceMatcher(None, words[0], words[1])
    shortest = 1 if matcher.ratio() >= ALIKE else SHORTEST_PASSAGE
    shared = [block for block in matcher.get_matching_blocks() if block.size >= shortest]
    ours = _others(spans[0], [(block.a, block.a + block.size) for block in shared])
    theirs = _others(spans[1], [(block.b, block.b + block.size) for block in shared])
    return Difference(begin, (ours, theirs))


def _shared_beginning(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))


def _word_at(one: str, other: str, position: int) -> int:
    """The beginning of the word that the position is in, in either text."""
    begins = [match.start() for text in (one, other) for match in WORD.finditer(text) if match.start() < position < match.end()]
    return min(begins, default=position)


def _others(words: Sequence[Span], shared: Sequence[Span]) -> tuple[Span, ...]:
    """The passages between shared ones, from the first character of their first word to the last of their last."""
    ends = [0, *(end for _, end in shared)]
    begins = [*(begin for begin, _ in shared), len(words)]
    return tuple((words[end][0], words[begin - 1][1]) for end, begin in zip(ends, begins, strict=True) if end < begin)


def paired_lines(one: Sequence[str], other: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Which line of each text stands beside which: equal lines side by side, and the lines between them in order.

    Returns:
        Line numbers from 0, each once; None: the other text has a line there and this one has not.
    """
    pairs: list[tuple[int | None, int | None]] = []
    for _, begin, end, other_begin, other_end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for offset in range(max(end - begin, other_end - other_begin)):
            left, right = begin + offset, other_begin + offset
            pairs.append((left if left < end else None, right if right < other_end else None))
    return pairs
