"""The numbers of benchmarks, and of two models on the same rows, as a person reads them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import decimal

Numbers = Mapping[str, Any]
MAX_SUBSETS = 30


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
    rows = [("total", numbers, "bold"), *_sections(numbers)]
    cells = {name: [column(row) for _, row, _ in rows] for name, column in COLUMNS.items()}
    shown = [name for name, values in cells.items() if any(values) and (name != "strict" or values != cells["score"])]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(Text(numbers["title"]), overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for place, (title, _, style) in enumerate(rows):
        table.add_row(Text(title, style=style), *(Text(cells[name][place], style=style) for name in shown))
    parts: list[RenderableType] = [table]
    if numbers["others"]:
        parts.append(Text("; ".join(f"{name} {decimal(value)}" for name, value in numbers["others"].items())))
    if numbers["longer_wins"] is not None:
        parts.append(Text(f"preferring the longer response gives {decimal(numbers['longer_wins'])}"))
    if numbers["settings"]:
        parts.append(Text(_settings(numbers["settings"]), style="dim"))
    return [*parts, *map(_warning, numbers["warnings"])]


def _sections(numbers: Numbers) -> Iterator[tuple[str, Numbers, str]]:
    """Each section, and under it its subsets, where there are not too many."""
    subsets = numbers["subsets"] if len(numbers["subsets"]) <= MAX_SUBSETS else {}
    for section, values in numbers["sections"].items():
        yield section, values, ""
        for name, subset in subsets.items():
            if subset["section"] == section != name:
                yield f"  {name}", subset, "dim"


def _interval(numbers: Numbers) -> str:
    return "" if numbers["low"] is None else f"[{decimal(numbers['low'], 3)}, {decimal(numbers['high'], 3)}]"


def _value(key: str) -> Callable[[Numbers], str]:
    return lambda numbers: "" if numbers[key] is None else decimal(numbers[key])


def _count(key: str) -> Callable[[Numbers], str]:
    return lambda numbers: "" if numbers[key] is None else f"{numbers[key]:,}"


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


COLUMNS: Mapping[str, Callable[[Numbers], str]] = {
    "n": _count("n"),
    "score": _value("score"),
    "95 % interval": _interval,
    "strict": _value("strict"),
    "half": _value("half_credit"),
    "ties": _count("ties"),
}
"""What stands in a column; one that is empty, or of strict numbers that are the scores, is left out."""
