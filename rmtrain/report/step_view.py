"""An optimizer step as it is packed: a bar for each micro-batch, and a table of the comparisons."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
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
"""Two shades for each kind of token; they alternate, so that neighbouring comparisons look different."""
CHARACTERS = {"prefix": "░", "chosen": "█", "rejected": "▒", "other": "▓", "padding": "×"}
FREE, FREE_STYLE = "·", Style(dim=True)
MAX_BAR_WIDTH = 120
MIN_RUN_WIDTH = 2
MAX_LINES, MAX_BAR_LINES = 24, 6
WIDE_TABLE = 80

TokenRun = tuple[str, int]
"""A kind of `COLORS`, and the number of consecutive tokens of this kind."""


def step_view(step: Mapping[str, Any], limit: int | None = None) -> RenderableType:
    """Show an optimizer step: its numbers, the contents of each micro-batch of each rank, and its comparisons.

    Args:
        step: `step`, `steps`, `epoch`, `step_of_epoch`, `steps_per_epoch`, `layout`, `layout_is_auto`, `max_tokens`, `max_tokens_is_auto`,
            `world_size`, `comparisons`, `tokens`, `padded_tokens`, and `micro_batches`, each with `rank`, `number`, `tokens`, `padding`,
            `padded_tokens`, and `comparisons`, each with `id`, `source`, `prompt_length`, `prefix_length`, `response_lengths`, `tokens`,
            `margin` and `runs`, its `(kind, tokens)` in the order of the layout. All lengths in tokens.
        limit: maximum number of comparisons in the table; None: all.
    """
    batches, ranks = step["micro_batches"], step["world_size"]
    on_ranks = f" on each of {ranks} ranks" if ranks > 1 else ""
    auto_layout = " (`auto`, if the model supports it; `train` checks)" if step["layout_is_auto"] else ""
    auto_budget = " (`auto` on a CPU; on a GPU it depends on the memory)" if step["max_tokens_is_auto"] else ""
    facts = {
        "epoch": f"{step['epoch']}, step {step['step_of_epoch']:,} of its {step['steps_per_epoch']:,}",
        "holds": f"{step['comparisons']:,} comparisons in {_count(len(batches) // ranks, 'micro-batch', 'es')}{on_ranks}",
        "layout": f"{step['layout']}{auto_layout}",
        "budget": f"{step['max_tokens']:,} tokens per micro-batch{auto_budget}",
        "tokens": f"{step['tokens']:,}, {'padding included' if step['layout'] == 'padded' else _saved(step)}",
    }
    parts: list[RenderableType] = [
        Text.assemble((f"step {step['step']:,}", "bold cyan"), (f"  of {step['steps']:,}, counted from 0", "dim")),
        KeyValues(facts),
        Text(),
        BarLegend({kind for batch in batches for row in batch["comparisons"] for kind, _ in row["runs"]}),
    ]
    lines = max(1, min(MAX_BAR_LINES, MAX_LINES // len(batches)))
    for batch in batches:
        bar = TokenBar([row["runs"] for row in batch["comparisons"]], step["max_tokens"], lines)
        parts += [Text(), WrapText(_heading(batch, step)), bar]
    return Group(*parts, Text(), StepTable(batches, ranks > 1, limit))


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
        f"  {batch['tokens']:,} tokens{padding}  {_count(rows, 'comparison')}",
        ("" if step["layout"] == "padded" else f"  {_saved(batch)}", "dim"),
    )


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{ending if number != 1 else ''}"


def _saved(counts: Mapping[str, Any]) -> str:
    tokens, padded = counts["tokens"], counts["padded_tokens"]
    return f"avoids {padded - tokens:,} of {padded:,} if padded ({percent(padded - tokens, padded)})"


class TokenBar:
    """The tokens of each comparison in their order, over as many lines as they need to be visible; the whole bar is the budget.

    With colours, a character shows two samples, and comparisons alternate in shade; without, each kind has a character. `·` is free.
    """

    def __init__(self, comparisons: Sequence[Sequence[TokenRun]], budget: int, max_lines: int = MAX_BAR_LINES) -> None:
        self.runs = [(kind, COLORS[kind][number % 2], tokens) for number, runs in enumerate(comparisons) for kind, tokens in runs]
        self.budget, self.max_lines = budget, max_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(MAX_BAR_WIDTH, options.max_width)
        ends = np.cumsum([tokens for *_, tokens in self.runs], dtype=np.int64)
        used = int(ends[-1]) if self.runs else 0
        # As many lines as give a run of average length at least two characters.
        wanted = math.ceil(MIN_RUN_WIDTH * self.budget / (used / len(self.runs)) / width) if self.runs else 1
        lines = min(self.max_lines, max(1, wanted))

        # One sample in the middle of each part of the budget; a part that is used only at its beginning shows the last run.
        samples = width * lines * (2 if has_colours(console) else 1)
        begins = np.arange(samples) * (self.budget / samples)
        middles = np.minimum(begins + self.budget / samples / 2, used - 0.5)
        places = np.where(begins < used, np.searchsorted(ends, middles, side="right"), -1).reshape(lines, -1)
        for line in places.tolist():
            cells = zip(line[::2], line[1::2], strict=True) if has_colours(console) else line
            draw = self._coloured if has_colours(console) else self._plain
            yield from Segment.simplify(map(draw, cells))
            yield Segment.line()

    def _plain(self, place: int) -> Segment:
        return Segment(FREE, FREE_STYLE) if place < 0 else Segment(CHARACTERS[self.runs[place][0]])

    def _coloured(self, places: tuple[int, int]) -> Segment:
        left, right = (self.runs[place][1] if place >= 0 else None for place in places)
        if left is None:
            return Segment(FREE, FREE_STYLE)
        if left == right:
            return Segment("█", Style.parse(left))
        return Segment("▌", Style.parse(f"{left} on {right}" if right else left))


@dataclass(frozen=True, slots=True)
class BarLegend:
    """The meaning of the blocks of a bar with these kinds of tokens."""

    kinds: Collection[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        legend = Text()
        for kind in (kind for kind in COLORS if kind in self.kinds):
            legend.append("██" if has_colours(console) else CHARACTERS[kind] * 2, COLORS[kind][0])
            legend.append(f" {kind}   ")
        yield legend.append(FREE * 2, FREE_STYLE).append(" free")


class StepTable:
    """The first `limit` comparisons of a step, or all. A narrow terminal omits columns that follow from others."""

    def __init__(self, batches: Sequence[Mapping[str, Any]], with_ranks: bool, limit: int | None) -> None:
        self.rows = [(batch, row) for batch in batches for row in batch["comparisons"]]
        self.with_ranks, self.shown = with_ranks, len(self.rows) if limit is None else limit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= WIDE_TABLE or not console.is_terminal
        are_pairs = all(len(row["response_lengths"]) == 2 for _, row in self.rows)
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if is_wide else 1, 0, 0))
        for batch, row in self.rows[: self.shown]:
            lengths = [f"{length:,}" for length in row["response_lengths"]]
            cells = {
                "batch": f"{batch['rank']}.{batch['number']}" if self.with_ranks else str(batch["number"]),
                "row": escape_invisible(row["id"]),
                "source": escape_invisible(row["source"]),
                "prompt": f"{row['prompt_length']:,}",
                "prefix": f"{row['prefix_length']:,}",
                **({"chosen": lengths[0], "rejected": lengths[1]} if are_pairs else {"responses": " ".join(lengths)}),
                "tokens": f"{row['tokens']:,}",
                "margin": "–" if row["margin"] is None else f"{row['margin']:g}",
            }
            names = [name for name in cells if is_wide or name not in ("source", "tokens")]
            for name in names if not table.columns else ():
                is_text, may_fold = name in ("batch", "row", "source"), name in ("row", "source", "responses")
                table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not may_fold)
            table.add_row(*(Text(cells[name]) for name in names))
        yield NoWrap(table)
        if self.shown < len(self.rows):
            yield Text(f"and {len(self.rows) - self.shown:,} more", style="dim")
