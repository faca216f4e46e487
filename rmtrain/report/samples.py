"""Sample comparisons with their rewards: what the model makes of them at this point of the training."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import decimal, revealed

TEXT_LINES = 2


def sample_table(samples: Sequence[Mapping[str, Any]], title: str = "samples") -> RenderableType:
    """Each comparison as three rows: the prompt's end, then both responses with their rewards, `✓` where the chosen one is above.

    Args:
        samples: one mapping for each pair, with `prompt`, `chosen` and `rejected` as text and `rewards`, chosen first.
        title: first line.
    """
    right = sum(sample["rewards"][0] > sample["rewards"][1] for sample in samples)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for number, sample in enumerate(samples):
        if number:
            table.add_row()
        _add_sample(table, sample)
    return Group(Text.assemble((title, "bold"), f"  {right} of {len(samples)} right"), table)


def _add_sample(table: Table, sample: Mapping[str, Any]) -> None:
    chosen, rejected = sample["rewards"]
    mark = ("✓", "green") if chosen > rejected else ("=", "bold red") if chosen == rejected else ("✗", "bold red")
    margin = Text(decimal(chosen - rejected, 3, sign=True), style=mark[1])
    table.add_row(Text.assemble(mark, " margin"), margin, Excerpt(sample["prompt"], keep="end", style="dim"))
    table.add_row("  chosen", decimal(chosen, 3, sign=True), Excerpt(sample["chosen"]))
    table.add_row("  rejected", decimal(rejected, 3, sign=True), Excerpt(sample["rejected"]))


class Excerpt:
    """The beginning or the end of a text, cut to a few lines of whatever width there is; `⏎` stands for line breaks.

    Args:
        text: any text; its invisible characters are shown as escapes.
        keep: the part that stays.
        lines: most lines.
        style: of the text.
    """

    def __init__(self, text: str, keep: Literal["start", "end"] = "start", lines: int = TEXT_LINES, style: str = "") -> None:
        self.text = " ⏎ ".join(" ".join(line.split()) for line in revealed(text).strip().splitlines() if line.strip())
        self.keep, self.lines, self.style = keep, lines, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(2, options.max_width)
        rows = [row.plain.rstrip() for row in Text(self.text, overflow="fold").wrap(console, width)]
        if len(rows) > self.lines and self.keep == "start":
            rows = [*rows[: self.lines - 1], set_cell_size(rows[self.lines - 1], width - 1).rstrip() + "…"]
        elif len(rows) > self.lines:
            rows = rows[-self.lines :]
            while cell_len(rows[0]) >= width:
                rows[0] = rows[0][1:]
            rows[0] = "…" + rows[0]
        yield Text("\n".join(rows), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), min(cell_len(self.text) or 1, options.max_width))
