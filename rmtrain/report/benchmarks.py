"""The numbers of benchmarks, and of two models on the same rows, as a person reads them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import decimal

Numbers = Mapping[str, Any]
MAX_SUBSETS = 30
COLUMNS = ("n", "score", "95 % interval", "strict", "half", "ties")


def benchmark_report(found: Mapping[str, Numbers], gates: Mapping[str, Numbers]) -> RenderableType:
    """A table for each benchmark with what its numbers depend on, then the gates.

    Args:
        found: what `measure` returned by name, with `settings` and `scores`.
        gates: for each, whether it `passed`.
    """
    parts: list[RenderableType] = []
    for numbers in found.values():
        parts += [*_benchmark(numbers), Text()]
    lines = [Text(f"gate          {name} {'passed' if gate['passed'] else 'missed'}") for name, gate in gates.items()]
    return Group(*parts, *lines, *(Text(f"scores        {numbers['scores']}") for numbers in found.values()))


def difference_report(compared: Numbers) -> RenderableType:
    """What `compare` returned."""
    one, other = compared["one"], compared["other"]
    interval = f"[{decimal(compared['low'], sign=True)}, {decimal(compared['high'], sign=True)}]"
    sure = "differs from 0" if compared["low"] > 0 or compared["high"] < 0 else "may be 0"
    counts = (
        f"of {compared['units']:,} rows {compared['better']:,} better, {compared['worse']:,} worse, {compared['equal']:,} equal"
    )
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("first", decimal(one["value"]), Text(one["path"]))
    grid.add_row("second", decimal(other["value"]), Text(other["path"]))
    grid.add_row("difference", decimal(compared["difference"], sign=True), Text(f"95 % in {interval}: {sure}; {counts}"))
    return Group(Text(compared["metric"], style="bold"), grid, *map(_warning, compared["warnings"]))


def _benchmark(numbers: Numbers) -> list[RenderableType]:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(Text(numbers["title"]), overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row(*_cells("total", numbers, "bold"))
    for name, section in numbers["sections"].items():
        table.add_row(*_cells(name, section))
    if 1 < len(numbers["subsets"]) <= MAX_SUBSETS and set(numbers["subsets"]) != set(numbers["sections"]):
        for name, subset in numbers["subsets"].items():
            table.add_row(*_cells(f"  {name}", subset, "dim"))
    parts: list[RenderableType] = [table]
    if numbers["others"]:
        parts.append(Text("; ".join(f"{name} {decimal(value)}" for name, value in numbers["others"].items())))
    if numbers["longer_wins"] is not None:
        parts.append(Text(f"preferring the longer response gives {decimal(numbers['longer_wins'])}"))
    if numbers["settings"]:
        parts.append(Text(_settings(numbers["settings"]), style="dim"))
    return [*parts, *map(_warning, numbers["warnings"])]


def _cells(name: str, numbers: Numbers, style: str = "") -> list[Text]:
    interval = "" if numbers["low"] is None else f"[{decimal(numbers['low'], 3)}, {decimal(numbers['high'], 3)}]"
    counts = ("–" if numbers[key] is None else f"{numbers[key]:,}" for key in ("n", "ties"))
    n, ties = counts
    values = (n, decimal(numbers["score"]), interval, decimal(numbers["strict"]), decimal(numbers["half_credit"]), ties)
    return [Text(name, style=style), *(Text(value, style=style) for value in values)]


def _settings(settings: Numbers) -> str:
    length = settings.get("max_length")
    parts = [
        f"{settings.get('dtype')}",
        f"max_length {length:,}" if length else "no max_length",
        f"{settings.get('rows_cut', 0):,} rows cut",
        f"{settings.get('rows_dropped', 0):,} dropped",
        f"template {str(settings.get('template_sha256'))[:8]}",
    ]
    return ", ".join(parts)


def _warning(line: str) -> RenderableType:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_row(Text("!", style="bold red"), Text(line))
    return grid
