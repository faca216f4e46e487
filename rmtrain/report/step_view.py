"""An optimizer step as it is packed: a bar for each micro-batch, and the comparisons that are in them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import KeyValues, NoWrap, WrapText, escape_invisible, has_colours, percent

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


LINES_OF_ALL_BARS, LINES_OF_A_BAR = 24, 6
WIDE_TABLE = 80
PAIR, FOLDED = ("chosen", "rejected"), ("row", "source", "responses")


def step_view(step: Mapping[str, Any], limit: int | None = None) -> RenderableType:
    """A step: what it is, how each micro-batch of each rank is filled, and its comparisons.

    Args:
        step: `step`, `steps`, `epoch`, `step_of_epoch`, `steps_per_epoch`, `layout`, `layout_is_auto`, `max_tokens`, `max_tokens_is_auto`,
            `world_size`, `comparisons`, `tokens`, `padded_tokens`, and `micro_batches`, each with `rank`, `number`, `tokens`, `padding`,
            `padded_tokens`, and `comparisons`, each with `id`, `source`, `prompt_length`, `prefix_length`, `response_lengths`, `tokens`,
            `margin` and `runs`, its runs of tokens as they lie, `(kind, number)`.
        limit: most comparisons in the table; None: all.
    """
    batches = step["micro_batches"]
    lines = max(1, min(LINES_OF_A_BAR, LINES_OF_ALL_BARS // len(batches)))
    parts: list[RenderableType] = [
        Text.assemble((f"step {step['step']:,}", "bold cyan"), (f"  of {step['steps']:,}, counted from 0", "dim")),
        KeyValues(_facts(step)),
        Text(),
        _Legend([kind for batch in batches for row in batch["comparisons"] for kind, _ in row["runs"]]),
    ]
    for batch in batches:
        bar = TokenBar([row["runs"] for row in batch["comparisons"]], step["max_tokens"], lines)
        parts += [Text(), WrapText(_heading(batch, step)), bar]
    return Group(*parts, Text(), _StepTable(batches, step["world_size"] > 1, limit))


def _facts(step: Mapping[str, Any]) -> dict[str, str]:
    ranks = step["world_size"]
    each = len(step["micro_batches"]) // ranks
    where = f" on each of {ranks} ranks" if ranks > 1 else ""
    auto_layout = ", what `auto` takes where the model allows, which `train` probes" if step["layout_is_auto"] else ""
    auto_budget = ", what `auto` is on a CPU; a GPU takes what its memory holds" if step["max_tokens_is_auto"] else ""
    return {
        "epoch": f"{step['epoch']}, step {step['step_of_epoch']:,} of its {step['steps_per_epoch']:,}",
        "holds": f"{step['comparisons']:,} comparisons in {each:,} micro-batch{'es' if each > 1 else ''}{where}",
        "layout": step["layout"] + auto_layout,
        "budget": f"{step['max_tokens']:,} tokens a micro-batch{auto_budget}",
        "tokens": f"{step['tokens']:,}, " + ("padding included" if step["layout"] == "padded" else _against_padding(step)),
    }


def _against_padding(counts: Mapping[str, Any]) -> str:
    tokens, padded = counts["tokens"], counts["padded_tokens"]
    return f"avoids {padded - tokens:,} of {padded:,} if padded ({percent(padded - tokens, padded)})"


def _heading(batch: Mapping[str, Any], step: Mapping[str, Any]) -> Text:
    rank = f"rank {batch['rank']} " if step["world_size"] > 1 else ""
    name = (f"{rank}micro-batch {batch['number']}", "bold")
    rows = len(batch["comparisons"])
    if not rows:
        return Text.assemble(name, "  empty: this rank has fewer, and computes its shortest comparison with weight 0")
    padding = f", {percent(batch['padding'], batch['tokens'])} of them padding" if batch["padding"] else ""
    return Text.assemble(
        name,
        (f"  {percent(batch['tokens'], step['max_tokens'])} full", "cyan"),
        f"  {batch['tokens']:,} tokens{padding}  {rows:,} comparison{'s' if rows > 1 else ''}",
        ("" if step["layout"] == "padded" else f"  {_against_padding(batch)}", "dim"),
    )


class _Legend:
    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar_legend(self.kinds, has_colours(console))


class _StepTable:
    """The comparisons of a step; where there is little room, what follows from the other columns is left out."""

    def __init__(self, batches: Sequence[Mapping[str, Any]], with_ranks: bool, limit: int | None) -> None:
        self.rows = [(batch, row) for batch in batches for row in batch["comparisons"]]
        self.with_ranks, self.shown = with_ranks, len(self.rows) if limit is None else limit
        self.are_pairs = all(len(row["response_lengths"]) == 2 for _, row in self.rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= WIDE_TABLE or not console.is_terminal
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if is_wide else 1, 0, 0))
        cells = [self._cells(batch, row, is_wide) for batch, row in self.rows[: self.shown]]
        for name in cells[0] if cells else ():
            is_text = name in ("batch", "row", "source")
            table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=name not in FOLDED)
        for row in cells:
            table.add_row(*map(Text, row.values()))
        yield NoWrap(table)
        if self.shown < len(self.rows):
            yield Text(f"and {len(self.rows) - self.shown:,} more", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)

    def _cells(self, batch: Mapping[str, Any], row: Mapping[str, Any], is_wide: bool) -> dict[str, str]:
        lengths = [f"{length:,}" for length in row["response_lengths"]]
        return {
            "batch": f"{batch['rank']}.{batch['number']}" if self.with_ranks else str(batch["number"]),
            "row": escape_invisible(row["id"]),
            **({"source": escape_invisible(row["source"])} if is_wide else {}),
            "prompt": f"{row['prompt_length']:,}",
            "prefix": f"{row['prefix_length']:,}",
            **(dict(zip(PAIR, lengths, strict=True)) if self.are_pairs else {"responses": " ".join(lengths)}),
            **({"tokens": f"{row['tokens']:,}"} if is_wide else {}),
            "margin": "–" if row["margin"] is None else f"{row['margin']:g}",
        }
