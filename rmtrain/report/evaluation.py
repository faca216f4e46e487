"""The numbers of `evaluation.metrics.summarize`, as a person reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import decimal, percent

Summary = Mapping[str, Any]


def evaluation_summary(summary: Summary, title: str = "evaluation") -> RenderableType:
    """Accuracy with its interval, ties and loss, what length alone would give, a table of sources, and warnings.

    Args:
        summary: what `summarize` returned, or the same read from JSON.
        title: first line.
    """
    parts: list[RenderableType] = [Text(title, style="bold"), _headline(summary)]
    if len(summary["sources"]) > 1:
        parts += [Text(), _sources(summary["sources"])]
    if summary["warnings"]:
        parts += [Text(), _warnings(summary["warnings"])]
    return Group(*parts)


def interval(summary: Summary, digits: int = 4) -> str:
    """The 95 % interval of the accuracy, as `[0.6910, 0.7326]`."""
    return f"[{decimal(summary['accuracy_low'], digits)}, {decimal(summary['accuracy_high'], digits)}]"


def _headline(summary: Summary) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value, remark in (
        ("accuracy", decimal(summary["accuracy"]), f"95 % in {interval(summary)}, of {_counts(summary)}"),
        ("ties", f"{summary['ties']:,}", _ties(summary)),
        ("longer wins", decimal(summary["longer_wins"]), _longer_wins(summary)),
        ("loss", decimal(summary["loss"]), f"chance is 0.6931; calibration error {decimal(summary['calibration_error'], 3)}"),
        ("margin", decimal(summary["margin"], sign=True), _rewards(summary["rewards"])),
    ):
        grid.add_row(name, value, Text(remark))
    return grid


def _ties(summary: Summary) -> str:
    share = percent(summary["ties"], summary["preferences"] - summary["soft_ties"])
    half_credit = decimal(summary["half_credit_accuracy"])
    return f"{share}; {summary['wins']:,} right, {summary['losses']:,} wrong; half credit {half_credit}"


def _warnings(warnings: Sequence[str]) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for warning in warnings:
        grid.add_row(Text("!", style="bold red"), Text(warning))
    return grid


def _counts(summary: Summary) -> str:
    n, preferences, soft_ties = summary["n"], summary["preferences"], summary["soft_ties"]
    counted = f"{n:,} comparison{'s' if n != 1 else ''}"
    if preferences != n:
        counted += f" with {preferences:,} preferences"
    return counted + (f", {soft_ties:,} labelled ties left out" if soft_ties else "")


def _longer_wins(summary: Summary) -> str:
    if summary["longer_wins"] is None:
        return "the scores come without lengths"
    longer, shorter = (decimal(summary["accuracy_by_length"][key]["accuracy"], 3) for key in ("winner_longer", "winner_shorter"))
    return f"baseline; model: {longer} if winner longer, {shorter} if shorter"


def _rewards(rewards: Mapping[str, Mapping[str, float | None]]) -> str:
    sides = (f"{side} {decimal(values['mean'], 3, sign=True)} ± {decimal(values['std'], 3)}" for side, values in rewards.items())
    return f"rewards of {', '.join(sides)}"


def _sources(sources: Mapping[str, Summary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("source", overflow="fold")
    for name in ("n", "accuracy", "95 % interval", "ties", "loss", "longer"):
        table.add_column(name, justify="right", no_wrap=True)
    for source, numbers in sources.items():
        table.add_row(
            Text(source),
            f"{numbers['n']:,}",
            Text(decimal(numbers["accuracy"]), style="bold"),
            Text(interval(numbers, digits=3)),
            f"{numbers['ties']:,}",
            decimal(numbers["loss"]),
            decimal(numbers["longer_wins"]),
        )
    return table
