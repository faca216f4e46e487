"""One `Table` for terminal, HTML page and Markdown, and the tables of a run's data: waterfall, findings and baselines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.report.console import escape_invisible, markdown_text, percent

BAR_WIDTH = 24
"""Characters of a bar in a terminal."""
LEAST_TEXT = 10
"""Characters of a folded text that a narrow terminal shows at least."""
SHARE_SCALE = f"0{'50':>{BAR_WIDTH // 2}}{'100 %':>{BAR_WIDTH // 2}}"
"""Heading of a column of bars that are shares from 0 to 100 %."""
ROW_STYLES = {"kept": "green", "left_out": "dim", "undecided": "dim", "total": "bold", "subset": "dim"}
BAR_STYLES = {"source": "dim", "asked": "yellow", "dropped": "red", "kept": "green", "extreme": "yellow"}

Numbers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a whole, drawn to scale: both ends from 0 to 1, and where there is one the `dot` of an estimate between them."""

    start: float
    end: float
    dot: float | None = None

    def text(self, style: str) -> Text:
        """Draw it with characters. A bar that is not empty shows; an interval with a dot also has a mark at one half."""
        if self.dot is None:
            first, last = int(BAR_WIDTH * self.start + 1e-9), int(BAR_WIDTH * self.end + 1e-9)
            return Text(" " * first + "━" * max(last - first, int(self.end > self.start)), style=style)
        start, dot, end = (round(BAR_WIDTH * place) for place in (self.start, self.dot, self.end))
        cells = [" "] * (BAR_WIDTH + 1)
        cells[start : end + 1] = "─" * (end + 1 - start)
        cells[BAR_WIDTH // 2] = "┃"
        cells[dot] = "●"
        return Text("".join(cells).rstrip(), style=style)


class Excerpt:
    """The start or the end of a text, cut to two lines of the width that is available; `⏎` replaces line breaks."""

    def __init__(self, text: str, keep: Literal["start", "end"] = "start", style: str = "") -> None:
        self.text = " ⏎ ".join(" ".join(line.split()) for line in escape_invisible(text).strip().splitlines() if line.strip())
        self.keep, self.style = keep, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(2, options.max_width)
        rows = [row.plain.rstrip() for row in Text(self.text, overflow="fold").wrap(console, width)]
        if len(rows) > 2 and self.keep == "start":
            rows = [rows[0], set_cell_size(rows[1], width - 1).rstrip() + "…"]
        elif len(rows) > 2:
            rows = rows[-2:]
            while cell_len(rows[0]) >= width:
                rows[0] = rows[0][1:]
            rows[0] = "…" + rows[0]
        yield Text("\n".join(rows), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), min(cell_len(self.text) or 1, options.max_width))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Table`: its heading, the kind of its cells, and their rich style in a terminal.

    Text is on the left and may be folded; numbers are on the right, bars on the left, and both stay whole. A column of bars and an
    `optional` one are left out in a terminal that is too narrow for them, also before text is folded in a `whole` one.
    """

    name: str = ""
    kind: Literal["text", "number", "bar"] = "number"
    style: str = ""
    optional: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Cells of a `Table`, and their `kind`, which selects the style in a terminal and is the CSS class in HTML.

    A cell is a string, styled text without invisible characters, a `Bar`, or, in a table for the terminal alone, any rich renderable.
    A `first` row starts a group.
    """

    cells: tuple[Any, ...]
    kind: str = ""
    first: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. `print` it on a rich console, hand it to the template of the page, or call `markdown`."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Row]
    gap: int = 2

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, gap = list(range(len(self.columns))), self.gap
        optional = [number for number in shown if self.columns[number].optional or self.columns[number].kind == "bar"]
        # no number is ever cut: a narrow terminal first loses space between columns, then the optional columns from the right
        while (gap > 1 or optional) and self._least_width(shown, gap) > options.max_width:
            if gap > 1:
                gap = 1
            else:
                shown.remove(optional.pop())
        fits = self._least_width(shown, gap, LEAST_TEXT // 2) <= options.max_width
        yield self._grid(shown, gap) if fits else self._lines(shown)

    def _least_width(self, shown: Sequence[int], gap: int, least_text: int = LEAST_TEXT) -> int:
        """Return the characters of a line that leaves numbers and bars whole, and of each text a few characters."""
        total = gap * (len(shown) - 1)
        for number in shown:
            cells = [self.columns[number].name, *(row.cells[number] for row in self.rows)]
            widths = [
                BAR_WIDTH + 1 if isinstance(cell, Bar) else cell_len(plain(cell))
                for cell in cells
                if isinstance(cell, Bar | str | Text)
            ]
            column = self.columns[number]
            folds = column.kind == "text" and not (column.whole and least_text == LEAST_TEXT)
            total += min(max(widths), least_text) if folds else max(widths)
        return total

    def _grid(self, shown: Sequence[int], gap: int) -> RichTable:
        has_header = any(column.name for column in self.columns)
        grid = RichTable(box=None, show_header=has_header, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
        for column in (self.columns[number] for number in shown):
            side: Literal["left", "right"] = "right" if column.kind == "number" else "left"
            heading = Text(escape_invisible(column.name))
            grid.add_column(heading, justify=side, style=column.style, no_wrap=column.kind != "text", overflow="fold")
        for row in self.rows:
            if row.first and grid.row_count:
                grid.add_row()
            bar_style = BAR_STYLES.get(row.kind, "blue")
            cells = [row.cells[number] for number in shown]
            # a string is text, never markup
            cells = [Text(escape_invisible(cell)) if isinstance(cell, str) else cell for cell in cells]
            drawn = [cell.text(bar_style) if isinstance(cell, Bar) else cell for cell in cells]
            grid.add_row(*drawn, style=ROW_STYLES.get(row.kind, ""))
        return grid

    def _lines(self, shown: Sequence[int]) -> RichTable:
        """Return the rows for a terminal that is narrower than their numbers: a line for each cell, with the name of its column."""
        grid = RichTable.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="bold", overflow="fold")
        grid.add_column(overflow="fold")
        for row in self.rows:
            if grid.row_count:
                grid.add_row()
            for number in shown:
                cell = row.cells[number]
                if not isinstance(cell, str) or cell.strip():
                    value = Text(escape_invisible(cell.strip())) if isinstance(cell, str) else cell
                    grid.add_row(Text(escape_invisible(self.columns[number].name)), value, style=ROW_STYLES.get(row.kind, ""))
        return grid

    def markdown(self) -> str:
        """Return a Markdown table without the columns of bars."""
        shown = [number for number, column in enumerate(self.columns) if column.kind != "bar"]
        lines = [
            [markdown_text(self.columns[number].name) for number in shown],
            ["---:" if self.columns[number].kind == "number" else "---" for number in shown],
            *([markdown_text(plain(row.cells[number])) for number in shown] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(cell: str | Text) -> str:
    """Return the text of a cell; invisible characters are escaped."""
    return escape_invisible(cell.plain if isinstance(cell, Text) else cell)


def warning_lines(warnings: Sequence[str]) -> Table:
    """Return warnings, each behind a red exclamation mark."""
    return Table("warnings", (Column("", "text", "bold red"), Column("", "text")), [Row(("!", line)) for line in warnings], gap=1)


def waterfall_table(waterfall: Mapping[str, Numbers]) -> Table:
    """Return each source's rows from read to kept, with a bar for what each reason took away or added; the sum of all is last.

    Args:
        waterfall: for each source its counts, `{"read": n, "dropped": {reason: n}, "gathered": n, "kept": n}`, and where there are any
            `left_out`, responses by reason, and `added`, comparisons by kind.
    """
    columns = (Column("data", "text"), Column("rows"), Column("share"), Column("", "bar"))
    rows: list[Row] = []
    for source, counts in with_total(waterfall).items():
        rows += _source_rows(source, counts)
    return Table("rows", columns, rows)


def with_total(waterfall: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Return the counts of each source, and of several sources together as `all sources`."""
    if len(waterfall) < 2:
        return dict(waterfall)
    counts = list(waterfall.values())
    dropped, added = Counter[str](), Counter[str]()
    for source in counts:
        dropped.update(source["dropped"])
        added.update(source.get("added", {}))
    sums = {key: sum(source[key] for source in counts) for key in ("read", "gathered", "kept")}
    return {**waterfall, "all sources": {**sums, "dropped": dict(dropped)} | ({"added": dict(added)} if added else {})}


def _source_rows(source: str, counts: Numbers) -> list[Row]:
    read, kept, gathered, added = counts["read"], counts["kept"], counts["gathered"], counts.get("added", {})
    most = read + sum(added.values())

    def row(name: str, kind: str, count: int, start: int) -> Row:
        bar = Bar(start / most, (start + count) / most) if read else Bar(0.0, 0.0)
        return Row((name, f"{count:,}", percent(count, read), bar), kind)

    bar = Bar(0.0, read / most if read else 0.0)
    rows = [Row((Text(escape_invisible(source), "bold"), f"{read:,}", "", bar), "source", first=True)]
    left = read
    # rows that the recipe itself leaves out come first
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: (item[0] not in INTENTIONAL_DROPS, -item[1])):
        left -= count
        is_asked = reason in INTENTIONAL_DROPS
        name = f"  − {_words(reason)}{', as asked' if is_asked else ''}"
        rows.append(row(name, "asked" if is_asked else "dropped", count, left))
    for kind, count in sorted(added.items()):
        rows.append(row(f"  + {_words(kind)}, as asked", "added", count, left))
        left += count
    if gathered:
        rows.append(row("  ∪ gathered", "gathered", gathered, kept))
    rows.append(row("  = kept", "kept", kept, 0))
    left_out = sorted(counts.get("left_out", {}).items(), key=lambda item: -item[1])
    return rows + [
        Row((f"    without responses: {_words(reason)}", f"{count:,}", "", ""), "left_out") for reason, count in left_out
    ]


EXTREME = 0.9
"""Share of preferences from which a rule that does not read the text decides nearly all of them."""
MAX_EXAMPLES, MAX_IDS = 3, 3
"""Faults of a kind that are listed, and rows named for each."""
ADVICE: Mapping[str, str] = {
    "overlap": "remove these rows from one side; their numbers are not held out",
    "benchmark": "remove these rows; results on the benchmark mean nothing with them",
    "one_sided_labels": "check that `label` names the right column and what its values mean",
    "unset_variable": "set tools or template_columns of the source, so that the template writes what its rows have",
    "contradictory": "keep the side you trust; objective.label_smoothing allows for what is left",
    "cycle": "remove one preference of each circle; no reward satisfies all",
    "duplicate": "set dedup on the source, or remove the later rows; they weigh more than others",
    "near_identical": "check that the difference is meant; otherwise remove them",
    "short_winner": "check whether the winner was cut off, or the sides are swapped",
    "zero_margin": "check whether these are ties; if so, remove them",
    "margin_outlier": "check for a misread score; one such margin outweighs a batch",
}
"""Remedy for each kind of fault."""
RULES: Mapping[str, str] = {
    "longer": "is longer",
    "more_lines": "has more lines",
    "more_markdown": "has more markdown",
    "refuses": "refuses or apologises",
    "asks_back": "ends with a question",
}
"""Rules that pick a winner without reading the text, as the end of a sentence that starts with "the winner"."""


def findings_table(found: Mapping[str, Numbers]) -> Table:
    """Return a row for each kind of fault, as `summarize_findings` returns them: number, share of rows, first row ids, and remedy."""
    last = Column("the first, and what to do", "text")
    columns = (Column("look at", "text", "yellow"), Column("found"), Column("of rows"), last)
    rows = []
    for kind, numbers in found.items():
        examples = numbers["examples"][:MAX_EXAMPLES]
        named = [", ".join(one["ids"][:MAX_IDS]) + (", …" if len(one["ids"]) > MAX_IDS else "") for one in examples]
        if numbers["found"] > len(examples):
            named.append(f"{numbers['found'] - len(examples):,} more")
        text = Text.assemble(escape_invisible("; ".join(named)), "\n", (ADVICE[kind], "dim"))
        rows.append(Row((_words(kind), f"{numbers['found']:,}", percent(numbers["share"], 1), text)))
    return Table("findings", columns, rows)


def baselines_table(baselines: Mapping[str, Numbers]) -> Table:
    """Return a row for each rule, as `label_baselines` returns them: its accuracy with its interval, and the preferences it decides."""
    bar = Column(SHARE_SCALE, "bar")
    columns = (Column("the winner", "text"), Column("share"), Column("95 % interval"), Column("of"), bar)
    rows = []
    for rule, numbers in baselines.items():
        decided = numbers["wins"] + numbers["losses"]
        if not decided:
            rows.append(Row((RULES[rule], "–", "–", "0", ""), "undecided"))
            continue
        share = Text(percent(numbers["wins"], decided), "yellow" if is_extreme(numbers) else "")
        interval = f"[{100 * numbers['low']:.1f}, {100 * numbers['high']:.1f}]"
        drawn = Bar(numbers["low"], numbers["high"], numbers["share"])
        rows.append(Row((RULES[rule], share, interval, f"{decided:,}", drawn), "extreme" if is_extreme(numbers) else ""))
    return Table("baselines", columns, rows)


def is_extreme(numbers: Numbers) -> bool:
    """Return whether a rule, or its opposite, is right in at least nine of ten preferences, beyond its interval."""
    return numbers["share"] is not None and bool(numbers["low"] >= EXTREME or numbers["high"] <= 1 - EXTREME)


def findings_report(split: Numbers) -> RenderableType:
    """Return both tables of a split, as `findings_of` returns it."""
    found = split["found"]
    faults: RenderableType = findings_table(found) if found else Text("no faults found", style="green")
    return Group(faults, Text(), baselines_table(split["baselines"]))


def findings_notes(splits: Mapping[str, Numbers]) -> list[str]:
    """Return one line for the faults of all splits of `findings_of`, and one for each rule that decides nearly everything."""
    faults = [
        f"{numbers['found']:,} {_words(kind)}{' (eval)' if name == 'eval' else ''}"
        for name, split in splits.items()
        for kind, numbers in split["found"].items()
    ]
    notes = [f"data: {', '.join(faults)}; run `rmtrain preprocess` to list the rows"] if faults else []
    for name, split in splits.items():
        for rule, numbers in split["baselines"].items():
            decided = numbers["wins"] + numbers["losses"]
            if is_extreme(numbers):
                remedy = "; set balance: longer, or augment, on the source" if (name, rule) == ("train", "longer") else ""
                notes.append(
                    f"{name}: the winner {RULES[rule]} in {percent(numbers['wins'], decided)} of {decided:,} preferences that differ "
                    f"in this; a model can learn this instead of quality{remedy}"
                )
    return notes


def _words(key: str) -> str:
    return key.replace("_", " ")
