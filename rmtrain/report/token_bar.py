"""The tokens of a micro-batch as blocks: what they belong to, and how much of the budget they fill."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from rmtrain.report.surroundings import has_colours

COLORS = {
    "prefix": ("color(24)", "color(31)"),
    "chosen": ("color(71)", "color(114)"),
    "rejected": ("color(131)", "color(174)"),
    "other": ("color(136)", "color(179)"),
    "padding": ("color(239)", "color(243)"),
}
"""For each kind of token two shades, which alternate from comparison to comparison."""
CHARACTERS = {"prefix": "░", "chosen": "█", "rejected": "▒", "other": "▓", "padding": "×"}
KINDS = tuple(COLORS)
FREE = "·"
FREE_STYLE = Style(dim=True)
WIDEST_BAR = 120
CELLS_OF_A_SEGMENT = 2

TokenRun = tuple[str, int]
"""A kind of `COLORS`, and how many tokens of it follow one another."""


class TokenBar:
    """Tokens in their order, over as many lines as it takes to see them; all lines together are the budget, `·` what is left of it.

    In colours a character is two blocks, and comparisons alternate in shade; without, kinds differ by their characters.

    Args:
        comparisons: of each comparison its runs of tokens.
        budget: tokens that fill the bar.
        most_lines: no more lines than that.
    """

    def __init__(self, comparisons: Sequence[Sequence[TokenRun]], budget: int, most_lines: int = 6) -> None:
        runs = [(KINDS.index(kind), parity % 2, tokens) for parity, runs in enumerate(comparisons) for kind, tokens in runs]
        self.codes = np.array([2 * kind + parity for kind, parity, _ in runs], dtype=np.int64)
        self.ends = np.cumsum([tokens for *_, tokens in runs], dtype=np.int64)
        self.budget, self.most_lines = budget, most_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDEST_BAR, options.max_width)
        draw, blocks = (_coloured, 2) if has_colours(console) else (_plain, 1)
        codes = self._sampled(width * self._lines(width) * blocks)
        for line in codes.reshape(-1, width * blocks).tolist():
            yield from draw(line)
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), min(WIDEST_BAR, options.max_width))

    def _lines(self, width: int) -> int:
        """As many as give a segment of average length some cells."""
        if not len(self.ends):
            return 1
        average = int(self.ends[-1]) / len(self.ends)
        return min(self.most_lines, max(1, math.ceil(CELLS_OF_A_SEGMENT * self.budget / average / width)))

    def _sampled(self, count: int) -> NDArray[np.int64]:
        """What stands in the middle of each of `count` equal parts of the budget: a code, or -1 for nothing."""
        used = int(self.ends[-1]) if len(self.ends) else 0
        begins = np.arange(count) * (self.budget / count)
        middles = np.minimum(begins + self.budget / count / 2, used - 0.5)
        codes = np.full(count, -1)
        filled = begins < used
        codes[filled] = self.codes[np.searchsorted(self.ends, middles[filled], side="right")]
        return codes


def bar_legend(kinds: Iterable[str], coloured: bool) -> Text:
    """What the blocks of a bar mean."""
    legend = Text()
    for kind in (kind for kind in KINDS if kind in set(kinds)):
        legend.append("██" if coloured else CHARACTERS[kind] * 2, COLORS[kind][0])
        legend.append(f" {kind}   ")
    legend.append(FREE * 2, FREE_STYLE)
    legend.append(" free")
    return legend


def _coloured(codes: Sequence[int]) -> Iterable[Segment]:
    """Two blocks a character, the left one in the colour of the letter and the right one in that of the ground."""
    for (left, right), cells in groupby(zip(codes[::2], codes[1::2], strict=True)):
        count = sum(1 for _ in cells)
        if left < 0:
            yield Segment(FREE * count, FREE_STYLE)
        elif left == right:
            yield Segment("█" * count, Style.parse(_color(left)))
        else:
            ground = f" on {_color(right)}" if right >= 0 else ""
            yield Segment("▌" * count, Style.parse(f"{_color(left)}{ground}"))


def _plain(codes: Sequence[int]) -> Iterable[Segment]:
    for code, cells in groupby(codes):
        count = sum(1 for _ in cells)
        yield Segment(FREE * count, FREE_STYLE) if code < 0 else Segment(CHARACTERS[KINDS[code // 2]] * count)


def _color(code: int) -> str:
    return COLORS[KINDS[code // 2]][code % 2]
