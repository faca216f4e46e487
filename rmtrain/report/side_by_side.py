"""Two responses as text beside one another, with what they share and where they part."""

import re
from collections.abc import Sequence

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.report.difference import Difference, difference, paired_lines
from rmtrain.report.formats import revealed
from rmtrain.report.surroundings import Flowing, has_colours

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
        self.texts = (revealed(texts[0]), revealed(texts[1]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = difference(*self.texts)
        styled = [_styled(text, found, side) for side, text in enumerate(self.texts)]
        yield Flowing(_legend(found, has_colours(console)))
        if self._has_room(console, options.max_width):
            yield self._columns(styled, options.max_width)
            return
        for name, text, style in zip(self.names, styled, STYLES, strict=True):
            yield Text()
            yield Text(name, style=f"bold {style}")
            yield Flowing(text)

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
