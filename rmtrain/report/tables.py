"""Sample comparisons with their rewards: what the model makes of them at this point of the training."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.report.console import compact, decimal, escape_invisible, percent

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
    for reason, count in sorted(counts["dropped"].items(), key=lambda item: (item[0] not in INTENTIONAL_DROPS, -item[1])):
        asked, style = (", as asked", "yellow") if reason in INTENTIONAL_DROPS else ("", "red")
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


SHOWN, NAMED = 3, 3
"""Faults of a kind that are shown, and rows named of each."""
BASELINE_BAR_WIDTH = 20
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
    table.add_column(
        f"{0:<{BASELINE_BAR_WIDTH // 2 - 1}}50{'100 %':>{BASELINE_BAR_WIDTH // 2}}", width=BASELINE_BAR_WIDTH + 1, no_wrap=True
    )
    table.add_column("of", justify="right", no_wrap=True)
    for rule, numbers in baselines.items():
        decided = numbers["wins"] + numbers["losses"]
        if not decided:
            table.add_row(RULES[rule], "–", "", "", "0", style="dim")
            continue
        interval = f"[{100 * numbers['low']:.1f}, {100 * numbers['high']:.1f}]"
        style = "yellow" if is_extreme(numbers) else ""
        share = Text(percent(numbers["wins"], decided), style=style)
        table.add_row(RULES[rule], share, Text(interval), _baseline_bar(numbers, style), f"{decided:,}")
    return table


def is_extreme(numbers: Findings) -> bool:
    """Whether a rule, or its opposite, is surely right in nine of ten preferences."""
    return numbers["share"] is not None and bool(numbers["low"] >= EXTREME or numbers["high"] <= 1 - EXTREME)


def _baseline_bar(numbers: Findings, style: str) -> Text:
    """A line from the middle to the share, and a dot at each place its interval reaches."""
    low, share, high = (round(numbers[name] * BASELINE_BAR_WIDTH) for name in ("low", "share", "high"))
    middle = BASELINE_BAR_WIDTH // 2
    cells = [" "] * (BASELINE_BAR_WIDTH + 1)
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


def run_header(
    *,
    name: str,
    directory: str,
    device: str,
    model: str,
    parameters: int,
    trainable: int,
    comparisons: int,
    tokens: int,
    steps: int,
    batch_size: int,
    notes: Mapping[str, str] | None = None,
) -> RenderableType:
    """What is about to be trained, on what, with how much.

    Args:
        name: of the run.
        directory: where the run writes.
        device: such as `cpu` or `4 × NVIDIA H100`.
        model: Hub id, directory, or architecture of a scratch model.
        parameters, trainable: how many there are, and how many of them train.
        comparisons, tokens: of one epoch.
        steps, batch_size: optimizer steps of the whole run, and comparisons of each.
        notes: further facts, by name.
    """
    share = "all train" if trainable == parameters else f"{compact(trainable)} train ({percent(trainable, parameters)})"
    facts = {
        "model": f"{model}, {compact(parameters)} parameters, {share}",
        "data": f"{comparisons:,} comparisons, {compact(tokens)} tokens an epoch",
        "steps": f"{steps:,} of {batch_size:,} comparisons",
        "device": device,
        **(notes or {}),
        "writes to": directory,
    }
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(Text(key), Text(value))
    return Group(Text.assemble(("rmtrain ", "bold cyan"), (name, "bold")), grid)


def next_steps(commands: Sequence[tuple[str, str]], title: str = "next") -> Text:
    """Commands to copy, each under a line that says what it is for.

    Print it with `soft_wrap=True`: a command that is wider than the terminal then stays one line to copy.

    Args:
        commands: pairs of purpose and command.
        title: first line.
    """
    text = Text(title, style="")
    text.stylize("bold")
    for purpose, command in commands:
        text.append(f"\n  # {purpose}", "dim")
        text.append(f"\n  {command}", "cyan")
    return text


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
        self.text = " ⏎ ".join(" ".join(line.split()) for line in escape_invisible(text).strip().splitlines() if line.strip())
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
