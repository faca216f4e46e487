"""A diagnosis in a terminal: where rewards lie, what length does to accuracy, and how far confidence can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.console import decimal, percent
from rmtrain.report.diagnosis_figures import difference_words

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 20

Diagnosis = Mapping[str, Any]


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """Histograms of rewards by side and of margins, accuracy by difference in length, and calibration; what there is of them.

    Args:
        diagnosis: what `diagnose` returned.
    """
    parts: list[RenderableType] = []
    if diagnosis["rewards"] is not None:
        parts += [_histograms(diagnosis["rewards"], diagnosis["margins"])]
    if diagnosis["length_difference"]:
        rows = [(difference_words(row["low"], row["high"]), row) for row in diagnosis["length_difference"]]
        parts += [Text(), _shares("chosen is longer by", rows)]
    if diagnosis["calibration"] is not None:
        rows = [(f"{row['low']:.2f} to {row['high']:.2f}", row) for row in diagnosis["calibration"]["bins"]]
        parts += [Text(), _shares("confidence", rows)]
    return Group(*parts)


def blocks(counts: Sequence[int], most: int) -> str:
    """A histogram of one line; whatever is not empty shows."""
    return "".join(BLOCKS[0 if not count else max(1, round(count / most * (len(BLOCKS) - 1)))] for count in counts)


def _histograms(rewards: Diagnosis, margins: Diagnosis) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    most = max(*rewards["winners"], *rewards["losers"])
    low, high = (decimal(rewards["edges"][end], 1) for end in (0, -1))
    for name, side, style in (("chosen", "winners", "blue"), ("rejected", "losers", "")):
        grid.add_row(name, low, Text(blocks(rewards[side], most), style=style), high)
    edges, counts = margins["edges"], margins["counts"]
    zero = sum(edge < -1e-12 for edge in edges)
    drawn = blocks(counts, max(counts))
    line = Text.assemble((drawn[:zero], "red"), "│", (drawn[zero:], "blue"))
    ends = (
        decimal(edges[0], 1),
        f"{decimal(edges[-1], 1)}   right {percent(margins['right'], 1)}, wrong {percent(margins['wrong'], 1)}",
    )
    grid.add_row("margin", ends[0], line, ends[1])
    return grid


def _shares(heading: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(heading, justify="right", no_wrap=True)
    for name in ("n", "right", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"0{'50':>{BAR_WIDTH // 2}}{'100 %':>{BAR_WIDTH // 2 + 2}}", no_wrap=True)
    for name, numbers in rows:
        interval = f"[{decimal(numbers['accuracy_low'], 2)}, {decimal(numbers['accuracy_high'], 2)}]"
        table.add_row(name, f"{numbers['preferences']:,}", decimal(numbers["accuracy"], 3), Text(interval), _bar(numbers))
    return table


def _bar(numbers: Mapping[str, Any]) -> Text:
    """A dot at the share on a line as long as its interval, and the middle marked."""
    low, share, high = (round(numbers[name] * BAR_WIDTH) for name in ("accuracy_low", "accuracy", "accuracy_high"))
    cells = [" "] * (BAR_WIDTH + 1)
    cells[low : high + 1] = "─" * (high + 1 - low)
    cells[BAR_WIDTH // 2] = "┃"
    cells[share] = "●"
    return Text("".join(cells).rstrip())
