"""The difference of two texts: as spans, as passages for the HTML report, and side by side for a terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal, NamedTuple

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import WrapText, escape_invisible, has_colours

# A word: letters and digits, one sign, or one Chinese or Japanese character, since those are written without spaces.
WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+|[^\w\s]")
SIMILAR = 0.5
MIN_SHARED_WORDS = 3

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first character of the first word that differs, and for each text the passages, in whole words, that only it has there."""

    begin: int
    spans: tuple[tuple[Span, ...], tuple[Span, ...]]


def difference(one: str, other: str) -> Difference | None:
    """Return the difference of two texts by words; None if they are equal.

    Texts that are not similar share many single words by chance, so that only passages of three words or more count there.
    """
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    first = next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))
    words = [match.span() for text in (one, other) for match in WORD.finditer(text)]
    begin = min((low for low, high in words if low < first < high), default=first)

    places, others = ([match.span() for match in WORD.finditer(text, begin)] for text in (one, other))
    matcher = SequenceMatcher(None, [one[low:high] for low, high in places], [other[low:high] for low, high in others])
    shortest = 1 if matcher.ratio() >= SIMILAR else MIN_SHARED_WORDS
    blocks = [block for block in matcher.get_matching_blocks() if block.size >= shortest]
    shared = ([(block.a, block.a + block.size) for block in blocks], [(block.b, block.b + block.size) for block in blocks])
    return Difference(begin, (_between(places, shared[0]), _between(others, shared[1])))


def _between(words: Sequence[Span], shared: Sequence[Span]) -> tuple[Span, ...]:
    """Return the passages between shared ones, from the first character of their first word to the last of their last word."""
    ends = [0, *(end for _, end in shared)]
    begins = [*(begin for begin, _ in shared), len(words)]
    return tuple((words[end][0], words[begin - 1][1]) for end, begin in zip(ends, begins, strict=True) if end < begin)


MAX_COMPARED = 6000
MAX_SHOWN = 1400
MAX_EXCERPT = 700
CONTEXT = 160
"""Characters before the first difference that are shown of a long text."""
MOSTLY = 0.6
FIRST_SPACE = re.compile(r"\s+")
MAX_WORD = 40


class Passage(NamedTuple):
    """A part of a text.

    kind: `first` is the first word that the other text does not have at that place, `other` all others, and `cut` a note on the number
        of characters left out.
    """

    text: str
    kind: Literal["same", "first", "other", "cut"]


def passages(one: str, other: str) -> tuple[list[Passage], list[Passage]]:
    """Split two texts into passages that mark their differences. Long texts are cut around the first difference.

    If a text has nothing at the first difference, its `first` passage is empty.
    """
    found = difference(one[:MAX_COMPARED], other[:MAX_COMPARED])
    if found is None:
        return _passages(one, (), len(one)), _passages(other, (), len(other))
    return _passages(one, found.spans[0], found.begin), _passages(other, found.spans[1], found.begin)


def _passages(text: str, spans: Sequence[Span], begin: int) -> list[Passage]:
    start = begin - CONTEXT if 2 * CONTEXT < begin < len(text) else 0
    end = min(len(text), start + MAX_SHOWN)
    marked = [(low, min(high, end)) for low, high in _marked(text, spans, begin) if low < end or low == begin]
    parts = [_cut(start)] if start else []
    place = start
    for number, (low, high) in enumerate(marked):
        parts += [Passage(text[place:low], "same"), Passage(text[low:high], "other" if number else "first")]
        place = high
    parts.append(Passage(text[place:end], "same"))
    if end < len(text):
        parts.append(_cut(len(text) - end))
    return [Passage(escape_invisible(part.text), part.kind) for part in parts if part.text or part.kind == "first"]


def _marked(text: str, spans: Sequence[Span], begin: int) -> list[Span]:
    """Return the first word of the first difference, or an empty span where the text has nothing, then all other differences."""
    if not spans and begin >= len(text):
        return [(begin, begin)] if begin else []
    if not spans or (spans[0][0] > begin and text[begin : spans[0][0]].strip()):
        return [(begin, begin), *spans]
    low, high = spans[0]
    word = WORD.search(text, low, high)
    end = word.end() if word else high
    if sum(last - first for first, last in spans) > MOSTLY * len(text):
        return [(low, end)]  # with nearly all of a text marked, no mark would stand out
    return [(low, end), *([(end, high)] if end < high else []), *spans[1:]]


def _cut(characters: int) -> Passage:
    return Passage(f" [{characters:,} characters left out] ", "cut")


def prompt_end(prompt: str) -> list[Passage]:
    """Return the end of a prompt; a long one starts at a word, if there is one nearby."""
    start = max(0, len(prompt) - MAX_EXCERPT)
    space = FIRST_SPACE.search(prompt, start, start + MAX_WORD) if start else None
    start = space.end() if space else start
    return [*([_cut(start)] if start else []), Passage(escape_invisible(prompt[start:].strip("\n")), "same")]


def beginning(text: str) -> list[Passage]:
    """Return the beginning of a response."""
    cut = [_cut(len(text) - MAX_EXCERPT)] if len(text) > MAX_EXCERPT else []
    return [Passage(escape_invisible(text[:MAX_EXCERPT].strip("\n")), "same"), *cut]


COMFORTABLE_WIDTH, MIN_WIDTH = 100, 60
STYLES = ("green", "red")
MARK = "▸"
FIRST_WORD = re.compile(r"\s*\S*")
DIVIDED = Box("    \n  │ \n ─┼ \n  │ \n    \n    \n  │ \n    \n")


class SideBySide:
    """Two named texts in columns, with equal lines next to each other; one below the other if there is not enough room.

    The common beginning is dim, `▸` marks its end, and words that only one text has are coloured. With `in_columns` 60 characters are
    enough for columns; None: in terminals of 100 or more; False: never.
    """

    def __init__(self, names: tuple[str, str], texts: tuple[str, str], in_columns: bool | None = None) -> None:
        self.names, self.in_columns = names, in_columns
        self.texts = (escape_invisible(texts[0]), escape_invisible(texts[1]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = difference(*self.texts)
        if found is None:
            yield Text("the texts are equal; only their tokens differ", style="yellow")
        else:
            meaning = "; the common beginning is dim, words of one side only are coloured" if has_colours(console) else ""
            meaning = meaning if any(found.spans) else ", in spaces only"
            yield WrapText(Text.assemble((MARK, "bold reverse"), (f" marks the first difference{meaning}", "dim")))
        styled = [_mark_difference(text, found, side) for side, text in enumerate(self.texts)]

        width = options.max_width
        is_wanted = console.is_terminal if self.in_columns is None else self.in_columns
        if not is_wanted or width < (MIN_WIDTH if self.in_columns else COMFORTABLE_WIDTH):
            for name, text, style in zip(self.names, styled, STYLES, strict=True):
                yield from (Text(), Text(name, style=f"bold {style}"), WrapText(text))
            return
        table = Table(box=DIVIDED, show_edge=False, pad_edge=False, padding=(0, 1), border_style="dim")
        for name, style in zip(self.names, STYLES, strict=True):
            table.add_column(Text(name, style=f"bold {style}"), width=(width - 3) // 2, overflow="fold")
        lines, other_lines = (text.split("\n", allow_blank=True) for text in styled)
        matcher = SequenceMatcher(None, self.texts[0].split("\n"), self.texts[1].split("\n"), autojunk=False)
        for _, begin, end, other_begin, other_end in matcher.get_opcodes():
            for pair in zip_longest(lines[begin:end], other_lines[other_begin:other_end], fillvalue=Text()):
                table.add_row(*pair)
        yield table


def _mark_difference(text: str, found: Difference | None, side: int) -> Text:
    styled = Text(text)
    if found is None:
        return styled
    styled.stylize("dim", 0, found.begin)
    for begin, end in found.spans[side]:
        styled.stylize(STYLES[side], begin, end)
    shared, own = styled.divide([found.begin])
    first_word = FIRST_WORD.match(own.plain)
    assert first_word is not None, "the pattern matches the empty string"
    own.stylize("bold", 0, first_word.end())
    return Text.assemble(shared, (MARK, f"bold reverse {STYLES[side]}"), own)
