"""Two responses as text beside one another, with what they share and where they part."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import WrapText, escape_invisible, has_colours

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
    return [Passage(escape_invisible(piece.text), piece.kind) for piece in pieces if piece.text or piece.kind == "first"]


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
    return [*pieces, Passage(escape_invisible(prompt[start:].strip("\n")), "same")]


def beginning(text: str) -> list[Passage]:
    """The beginning of a response."""
    pieces = [Passage(escape_invisible(text[:PROMPT].strip("\n")), "same")]
    return [*pieces, _cut(len(text) - PROMPT)] if len(text) > PROMPT else pieces


COMFORTABLE_WIDTH, SMALLEST_WIDTH = 100, 60
STYLES = ("green", "red")
MARK = "▸"
FIRST_WORD = re.compile(r"\s*\S*")
DIVIDED = Box("    \n  │ \n ─┼ \n  │ \n    \n    \n  │ \n    \n")


class SideBySide:
    """Two texts in columns, equal lines beside one another; one above the other where there is no room.

    What both begin with is dim, `▸` stands where they part, and the words that only one of them has are coloured.

    Args:
        names: of the texts.
        texts: as they are; what cannot be seen is shown as escapes.
        in_columns: True wherever 60 columns are there, False never; None: in terminals of 100 columns and more.
    """

    def __init__(self, names: tuple[str, str], texts: tuple[str, str], in_columns: bool | None = None) -> None:
        self.names, self.in_columns = names, in_columns
        self.texts = (escape_invisible(texts[0]), escape_invisible(texts[1]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = difference(*self.texts)
        styled = [_styled(text, found, side) for side, text in enumerate(self.texts)]
        yield WrapText(_legend(found, has_colours(console)))
        if self._has_room(console, options.max_width):
            yield self._columns(styled, options.max_width)
            return
        for name, text, style in zip(self.names, styled, STYLES, strict=True):
            yield Text()
            yield Text(name, style=f"bold {style}")
            yield WrapText(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)

    def _has_room(self, console: Console, width: int) -> bool:
        if self.in_columns is None:
            return console.is_terminal and width >= COMFORTABLE_WIDTH
        return self.in_columns and width >= SMALLEST_WIDTH

    def _columns(self, styled: Sequence[Text], width: int) -> RenderableType:
        column = (width - 3) // 2
        table = Table(box=DIVIDED, show_edge=False, pad_edge=False, padding=(0, 1), border_style="dim")
        for name, style in zip(self.names, STYLES, strict=True):
            table.add_column(Text(name, style=f"bold {style}"), width=column, overflow="fold")
        lines = [text.split("\n", allow_blank=True) for text in styled]
        for numbers in paired_lines(*(text.split("\n") for text in self.texts)):
            table.add_row(*(Text() if at is None else side[at] for side, at in zip(lines, numbers, strict=True)))
        return table


def _styled(text: str, found: Difference | None, side: int) -> Text:
    if found is None:
        return Text(text)
    styled = Text(text)
    styled.stylize("dim", 0, found.begin)
    for begin, end in found.spans[side]:
        styled.stylize(STYLES[side], begin, end)
    shared, own = styled.divide([found.begin])
    first_word = FIRST_WORD.match(own.plain)
    assert first_word is not None, "the pattern matches the empty string"
    own.stylize("bold", 0, first_word.end())
    return Text.assemble(shared, (MARK, f"bold reverse {STYLES[side]}"), own)


def _legend(found: Difference | None, coloured: bool) -> Text:
    if found is None:
        return Text("the texts are the same; only their tokens differ", style="yellow")
    if not any(found.spans):
        return Text.assemble((MARK, "bold reverse"), (" they part here, in spaces only", "dim"))
    meaning = "; words of one side only are coloured, what both begin with is dim" if coloured else ""
    return Text.assemble((MARK, "bold reverse"), (f" they part here{meaning}", "dim"))
