"""What is wrong with the data, and what could be learned from it in place of quality, for people to read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.report.formats import percent

SHOWN, NAMED = 3, 3
"""Faults of a kind that are shown, and rows named of each."""
BAR_WIDTH = 20
EXTREME = 0.9
"""Share from which on a rule that reads nothing decides nearly everything."""
ADVICE: Mapping[str, str] = {
    "overlap": "remove these rows from one side; their numbers are not held out",
    "benchmark": "remove these rows; results on the benchmark mean nothing with them",
    "contradictory": "keep the side you trust; objective.label_smoothing allows for what is left",
    "cycle": "remove one preference of each circle; no reward satisfies all",
    "duplicate": "set dedup on the source, or remove the later rows; they weigh more than others",
    "near_identical": "look whether the difference is meant; remove them if not",
    "short_winner": "look whether the winner was cut off, or the sides are swapped",
    "zero_margin": "look whether these are ties; remove them if so",
    "margin_outlier": "look for a misread score; one such margin outweighs a batch",
}
"""What to do about each kind of fault."""
RULES: Mapping[str, str] = {
    "longer": "is longer",
    "more_lines": "has more lines",
    "more_markdown": "has more markdown",
    "refuses": "refuses or apologises",
    "asks_back": "ends with a question",
}

Findings = Mapping[str, Any]


def findings_table(found: Mapping[str, Findings]) -> Table:
    """A line for each kind of fault: how many, the share of rows they are in, the first of them, and what to do.

    Args:
        found: by kind, as `summarize_findings` has it for a split.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("look at", overflow="fold")
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("of rows", justify="right", no_wrap=True)
    table.add_column("the first, and what to do", overflow="fold")
    for kind, numbers in found.items():
        examples = Text(_examples(numbers), overflow="fold")
        table.add_row(
            Text(_words(kind), style="yellow"),
            f"{numbers['found']:,}",
            percent(numbers["share"], 1),
            Text.assemble(examples, "\n", (ADVICE[kind], "dim")),
        )
    return table


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _examples(numbers: Findings) -> str:
    named = [_rows(example["ids"]) for example in numbers["examples"][:SHOWN]]
    return "; ".join(named) + (f"; {numbers['found'] - len(named):,} more" if numbers["found"] > len(named) else "")


def _rows(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")


def baselines_table(baselines: Mapping[str, Findings]) -> Table:
    """A line for each rule that reads nothing: how often it is right, with its interval, drawn from 50 % to either side.

    Args:
        baselines: by rule, as `label_baselines` has them.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("the winner", overflow="fold")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column(f"{0:<{BAR_WIDTH // 2 - 1}}50{'100 %':>{BAR_WIDTH // 2}}", width=BAR_WIDTH + 1, no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    for rule, numbers in baselines.items():
        decided = numbers["wins"] + numbers["losses"]
        if not decided:
            table.add_row(RULES[rule], "–", "", "", "0", style="dim")
            continue
        interval = f"[{100 * numbers['low']:.1f}, {100 * numbers['high']:.1f}]"
        style = "yellow" if is_extreme(numbers) else ""
        share = Text(percent(numbers["wins"], decided), style=style)
        table.add_row(RULES[rule], share, Text(interval), _bar(numbers, style), f"{decided:,}")
    return table


def is_extreme(numbers: Findings) -> bool:
    """Whether a rule, or its opposite, is surely right in nine of ten preferences."""
    return numbers["share"] is not None and bool(numbers["low"] >= EXTREME or numbers["high"] <= 1 - EXTREME)


def _bar(numbers: Findings, style: str) -> Text:
    """A line from the middle to the share, and a dot at each place its interval reaches."""
    low, share, high = (round(numbers[name] * BAR_WIDTH) for name in ("low", "share", "high"))
    middle = BAR_WIDTH // 2
    cells = [" "] * (BAR_WIDTH + 1)
    cells[low : high + 1] = "·" * (high + 1 - low)
    begin, end = sorted((middle, share))
    cells[begin : end + 1] = "━" * (end + 1 - begin)
    cells[middle] = "┃"
    return Text("".join(cells).rstrip(), style=style or "blue")


def findings_report(split: Findings) -> RenderableType:
    """Both tables of a split; without faults a line that says so.

    Args:
        split: as `audit` has it.
    """
    found = split["found"]
    faults: RenderableType = findings_table(found) if found else Text("nothing is wrong with these rows", style="green")
    return Group(faults, Text(), baselines_table(split["baselines"]))


def findings_notes(splits: Mapping[str, Findings]) -> list[str]:
    """A line for the faults of all splits, and one for each rule that decides nearly everything; none when all is well.

    Args:
        splits: as `audit` has them.
    """
    faults = [
        f"{numbers['found']:,} {_words(kind)}{' (eval)' if name == 'eval' else ''}"
        for name, split in splits.items()
        for kind, numbers in split["found"].items()
    ]
    notes = [f"data: {', '.join(faults)}; `rmtrain preprocess` shows the rows"] if faults else []
    return notes + list(_extremes(splits))


def _extremes(splits: Mapping[str, Findings]) -> Iterable[str]:
    for name, split in splits.items():
        for rule, numbers in split["baselines"].items():
            if is_extreme(numbers):
                decided = numbers["wins"] + numbers["losses"]
                yield (
                    f"{name}: the winner {RULES[rule]} in {percent(numbers['wins'], decided)} of {decided:,} preferences that differ "
                    "in it; a model can learn that in place of quality"
                )
