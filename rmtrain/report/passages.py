"""Two responses side by side as passages: what both have, and where they part."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rmtrain.report.difference import WORD, Span, difference
from rmtrain.report.formats import revealed

BEFORE = 160
"""Characters of a shared beginning that are shown before the first difference."""
LONGEST = 1400
"""Characters that are shown of a response."""
PROMPT = 700
LONGEST_WORD = 40
SPACE = re.compile(r"\s+")
COMPARED = 6000
"""Characters that are compared."""
MOSTLY = 0.6
"""Where more than this of a text is its own, marking all of it says nothing."""


class Passage(NamedTuple):
    """A piece of a text.

    kind: `first` is the first word that the other does not have there, `other` what else it does not have, `cut` says what is left out.
    """

    text: str
    kind: Literal["same", "first", "other", "cut"]


def passages(one: str, other: str) -> tuple[list[Passage], list[Passage]]:
    """Both texts in passages; long ones are cut, and say by how much.

    Where the first difference is that a text has nothing there, its `first` passage is empty. Of texts that have little in common only
    the first word is marked.
    """
    found = difference(one[:COMPARED], other[:COMPARED])
    if found is None:
        return _shown(one, (), len(one)), _shown(other, (), len(other))
    return _shown(one, found.spans[0], found.begin), _shown(other, found.spans[1], found.begin)


def _shown(text: str, spans: Sequence[Span], begin: int) -> list[Passage]:
    start = begin - BEFORE if begin > 2 * BEFORE and begin < len(text) else 0
    end = min(len(text), start + LONGEST)
    marked = [(low, min(high, end)) for low, high in _marked(text, spans, begin) if low < end or low == begin]
    pieces = [_cut(start)] if start else []
    place = start
    for number, (low, high) in enumerate(marked):
        pieces += [Passage(text[place:low], "same"), Passage(text[low:high], "other" if number else "first")]
        place = high
    pieces.append(Passage(text[place:end], "same"))
    pieces += [_cut(len(text) - end)] if end < len(text) else []
    return [Passage(revealed(piece.text), piece.kind) for piece in pieces if piece.text or piece.kind == "first"]


def _marked(text: str, spans: Sequence[Span], begin: int) -> list[Span]:
    """The first word of the first difference, or the empty place where it is missing, then all other differences."""
    if not spans and begin >= len(text):
        return [(begin, begin)] if begin else []
    if not spans or (spans[0][0] > begin and text[begin : spans[0][0]].strip()):
        return [(begin, begin), *spans]
    low, high = spans[0]
    word = WORD.search(text, low, high)
    end = word.end() if word else high
    own = sum(last - first for first, last in spans)
    others = [] if own > MOSTLY * len(text) else [*([(end, high)] if end < high else []), *spans[1:]]
    return [(low, end), *others]


def _cut(characters: int) -> Passage:
    return Passage(f" [{characters:,} characters left out] ", "cut")


def prompt_end(prompt: str) -> list[Passage]:
    """The end of a prompt, from the beginning of a word on where there is one."""
    start = max(0, len(prompt) - PROMPT)
    if start:
        start = next((found.end() for found in [SPACE.search(prompt, start, start + LONGEST_WORD)] if found), start)
    pieces = [_cut(start)] if start else []
    return [*pieces, Passage(revealed(prompt[start:].strip("\n")), "same")]


def beginning(text: str) -> list[Passage]:
    """The beginning of a response."""
    pieces = [Passage(revealed(text[:PROMPT].strip("\n")), "same")]
    return [*pieces, _cut(len(text) - PROMPT)] if len(text) > PROMPT else pieces
