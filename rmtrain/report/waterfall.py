"""What became of the rows: read, left out as the recipe asks, dropped for faults, gathered into others, kept."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from rmtrain.data.waterfall import ASKED_FOR
from rmtrain.report.formats import percent

BAR_WIDTH = 24


def waterfall_table(waterfall: Mapping[str, Mapping[str, Any]]) -> Table:
    """Each source's rows from read to kept, with a bar of what each reason took away; with several sources, their sum at the end.

    What the recipe itself leaves out comes first, `as asked` and in yellow; faults follow, in red.

    Args:
        waterfall: for each source its counts, `{"read": n, "dropped": {reason: n}, "gathered": n, "kept": n}`, and `left_out`, responses
            by reason, where there are any.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("data", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", width=BAR_WIDTH)
    parts = dict(waterfall)
    if len(parts) > 1:
        parts["all sources"] = total(waterfall)
    for source, counts in parts.items():
        _add_source(table, source, counts)
    return table


def total(waterfall: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all sources together."""
    dropped: Counter[str] = Counter()
    for counts in waterfall.values():
        dropped.update(counts["dropped"])
    return {
        "read": sum(counts["read"] for counts in waterfall.values()),
        "dropped": dict(dropped),
        "gathered": sum(counts["gathered"] for counts in waterfall.values()),
        "kept": sum(counts["kept"] for counts in waterfall.values()),
    }


def _add_source(table: Table, source: str, counts: Mapping[str, Any]) -> None:
    read, kept = counts["read"], counts["kept"]
    if table.row_count:
        table.add_row()
    table.add_row(Text(source, style="bold"), f"{read:,}", "", _bar(0, read, read, "dim"))
    left = read
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: (item[0] not in ASKED_FOR, -item[1])):
        asked, style = (", as asked", "yellow") if reason in ASKED_FOR else ("", "red")
        name = Text(f"  − {reason.replace('_', ' ')}{asked}")
        table.add_row(name, f"{count:,}", percent(count, read), _bar(left - count, left, read, style))
        left -= count
    if gathered := counts["gathered"]:
        table.add_row("  ∪ gathered", f"{gathered:,}", percent(gathered, read), _bar(kept, left, read, "blue"))
    table.add_row("  = kept", f"{kept:,}", percent(kept, read), _bar(0, kept, read, "green"), style="green")
    for reason, count in sorted(counts.get("left_out", {}).items(), key=lambda item: -item[1]):
        table.add_row(f"    without responses: {reason.replace('_', ' ')}", f"{count:,}", "", "", style="dim")


def _bar(begin: int, end: int, size: int, style: str) -> Text:
    """A line from begin to end, of a whole that takes the bar's full width; anything shows, and only the whole fills it."""
    first, last = (BAR_WIDTH * point // size if size else 0 for point in (begin, end))
    return Text(" " * first + "━" * max(last - first, int(end > begin)), style=style)
