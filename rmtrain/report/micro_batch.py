"""An optimizer step as it is packed: a bar for each micro-batch, and the comparisons that are in them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import percent, revealed
from rmtrain.report.surroundings import Facts, Flowing, Unfolded, has_colours
from rmtrain.report.token_bar import TokenBar, bar_legend

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
        Facts(_facts(step)),
        Text(),
        _Legend([kind for batch in batches for row in batch["comparisons"] for kind, _ in row["runs"]]),
    ]
    for batch in batches:
        bar = TokenBar([row["runs"] for row in batch["comparisons"]], step["max_tokens"], lines)
        parts += [Text(), Flowing(_heading(batch, step)), bar]
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
        yield Unfolded(table)
        if self.shown < len(self.rows):
            yield Text(f"and {len(self.rows) - self.shown:,} more", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)

    def _cells(self, batch: Mapping[str, Any], row: Mapping[str, Any], is_wide: bool) -> dict[str, str]:
        lengths = [f"{length:,}" for length in row["response_lengths"]]
        return {
            "batch": f"{batch['rank']}.{batch['number']}" if self.with_ranks else str(batch["number"]),
            "row": revealed(row["id"]),
            **({"source": revealed(row["source"])} if is_wide else {}),
            "prompt": f"{row['prompt_length']:,}",
            "prefix": f"{row['prefix_length']:,}",
            **(dict(zip(PAIR, lengths, strict=True)) if self.are_pairs else {"responses": " ".join(lengths)}),
            **({"tokens": f"{row['tokens']:,}"} if is_wide else {}),
            "margin": "–" if row["margin"] is None else f"{row['margin']:g}",
        }
