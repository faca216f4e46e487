"""A row as its source has it, cell by cell, under the paths that a recipe names columns by."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.data.rows.cells import cells
from rmtrain.report.formats import revealed
from rmtrain.report.surroundings import Facts, Flowing, Unfolded

WIDEST_PATH = 24


def dropped_view(row: Mapping[str, Any]) -> RenderableType:
    """A row that is not used: why, and all that it holds.

    Args:
        row: `id`, `source`, `reason`, `detail`, and `row`: its columns, or its line as text where it could not be parsed; None: it is
            not there any more.
    """
    facts = Facts({name: revealed(row[name]) for name in ("id", "source", "reason", "detail")})
    content = row["row"]
    if content is None:
        return Group(facts, Text(), Text("it is not in its source any more", style="yellow"))
    if isinstance(content, str):
        return Group(facts, Text(), Flowing(Text(revealed(content))))
    return Group(facts, Text(), RawRow(content))


class RawRow:
    """The cells of a row, each under its dotted path; what cannot be seen or moves a cursor is shown as escapes.

    Args:
        row: its columns, nested as they are.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.cells = [(revealed(path), value) for path, value in cells(row)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="cyan", overflow="fold", max_width=WIDEST_PATH if console.is_terminal else None)
        table.add_column(overflow="fold")
        had_lines = False
        for path, value in self.cells:
            has_lines = isinstance(value, str) and "\n" in value
            if table.row_count and (had_lines or has_lines):
                table.add_row()
            table.add_row(Text(path), _shown(value))
            had_lines = has_lines
        yield Unfolded(table)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)


def _shown(value: Any) -> Text:
    if isinstance(value, str):
        return Text(revealed(value)) if value else Text("empty text", style="dim italic")
    return Text("null" if value is None else revealed(str(value)), style="dim italic" if value in (None, [], {}) else "yellow")
