"""Evaluations on the terminal: headline, sources, diagnosis, samples, benchmarks, and two evaluations compared.

The tables of sources, of length differences and of calibration are also those of the HTML report and of the model card.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.report.console import decimal, percent
from rmtrain.report.lengths import BLOCKS
from rmtrain.report.tables import SHARE_SCALE, Bar, Column, Excerpt, Numbers, Row, Table, warning_lines

MAX_SUBSETS = 30
"""Subsets of a benchmark that are listed; of benchmarks with more only the sections are."""
MAX_OTHERS = 16
"""Further numbers of a benchmark that are listed."""


def evaluation_summary(summary: Numbers, title: str = "evaluation") -> RenderableType:
    """Return the numbers of preferences and of targets, as far as there are any, a table of several sources, and warnings.

    `summary` is as `summarize` returns it, or the same read from JSON.
    """
    lines = [
        *(_preference_lines(summary) if summary["preferences"] else ()),
        *(_target_lines(summary) if summary["targets"] else ()),
    ]
    if not summary["preferences"]:
        lines.append(("loss", decimal(summary["loss"]), f"chance is {decimal(summary['chance_loss'])}"))
    parts: list[RenderableType] = [Text(title, style="bold"), _headline(title, lines)]
    if len(summary["sources"]) > 1:
        parts += [Text(), source_table(summary)]
    if summary["warnings"]:
        parts += [Text(), warning_lines(summary["warnings"])]
    return Group(*parts)


def _preference_lines(summary: Numbers) -> list[tuple[str, str, str]]:
    rewards = [
        f"{side} {decimal(values['mean'], 3, sign=True)} ± {decimal(values['std'], 3)}"
        for side, values in summary["rewards"].items()
    ]
    share_of_ties = percent(summary["ties"], summary["preferences"] - summary["soft_ties"])
    ties = f"{share_of_ties}; {summary['wins']:,} right, {summary['losses']:,} wrong; half credit"
    loss = f"chance is {decimal(summary['chance_loss'])}; calibration error {decimal(summary['calibration_error'], 3)}"
    return [
        ("accuracy", decimal(summary["accuracy"]), f"95 % in {interval(summary, 4)}, of {_counts(summary)}"),
        ("ties", f"{summary['ties']:,}", f"{ties} {decimal(summary['half_credit_accuracy'])}"),
        ("longer wins", decimal(summary["longer_wins"]), _longer_wins(summary)),
        ("loss", decimal(summary["loss"]), loss),
        ("margin", decimal(summary["margin"], sign=True), f"rewards of {', '.join(rewards)}"),
    ]


def _target_lines(summary: Numbers) -> list[tuple[str, str, str]]:
    """Return the numbers of targets that apply to them."""
    within, r2 = summary["spearman_within"], decimal(summary["r2"])
    among = "" if within is None else f"; {decimal(within)} within a prompt"
    error = decimal(summary["target_calibration_error"], 3)
    lines = (
        ("spearman", "spearman", f"of {summary['targets']:,} rewards and targets{among}"),
        ("mse", "mse", f"R² {r2}, in the units of the targets"),
        ("auc", "auc", "right responses against wrong ones"),
        ("at half", "accuracy_at_half", "of the targets are on the side of 0.5 that sigmoid(reward) says"),
        ("brier", "brier", f"calibration error {error}"),
    )
    return [(name, decimal(summary[key]), remark) for name, key, remark in lines if summary[key] is not None]


def interval(numbers: Numbers, digits: int = 3) -> str:
    """Return the 95 % interval of an accuracy, as `[0.691, 0.733]`."""
    return f"[{decimal(numbers['accuracy_low'], digits)}, {decimal(numbers['accuracy_high'], digits)}]"


def _headline(title: str, lines: Sequence[tuple[str, str, str]]) -> Table:
    columns = (Column("", "text", "cyan"), Column("", "number", "bold"), Column("", "text"))
    return Table(title, columns, [Row(line) for line in lines])


def _counts(summary: Numbers) -> str:
    n, preferences, soft_ties = summary["n"], summary["preferences"], summary["soft_ties"]
    counted = f"{n:,} comparison{'s' if n != 1 else ''}"
    if preferences != n:
        counted += f" with {preferences:,} preferences"
    return counted + (f", {soft_ties:,} labelled ties left out" if soft_ties else "")


def _longer_wins(summary: Numbers) -> str:
    if summary["longer_wins"] is None:
        return "the scores have no lengths"
    longer, shorter = (decimal(summary["accuracy_by_length"][key]["accuracy"], 3) for key in ("winner_longer", "winner_shorter"))
    return f"baseline; model: {longer} if winner longer, {shorter} if shorter"


def source_table(summary: Numbers, digits: int = 3) -> Table:
    """Return the numbers of each source, and of several sources together as the last row, `all`; `digits` are those of the interval."""
    sources: Numbers = summary["sources"]
    columns = [Column("source", "text"), Column("n")]
    if summary["preferences"]:
        columns += [Column("accuracy", style="bold"), Column("95 % interval"), Column("ties")]
    named = [name for name in ("spearman", "mse", "auc", "brier") if summary[name] is not None]
    columns += [*(Column(name, style="bold") for name in named), Column("loss")]
    if summary["preferences"]:
        columns += [Column("longer wins"), Column("half credit", optional=True)]
    rows = []
    for source, numbers in ({**sources, "all": summary} if len(sources) > 1 else sources).items():
        cells = {
            "source": source,
            "n": f"{numbers['n']:,}",
            "accuracy": decimal(numbers["accuracy"]),
            "95 % interval": interval(numbers, digits),
            "ties": f"{numbers['ties']:,}",
            "longer wins": decimal(numbers["longer_wins"]),
            **{name: decimal(numbers[name]) for name in named},
            "loss": decimal(numbers["loss"]),
            "half credit": decimal(numbers["half_credit_accuracy"]),
        }
        rows.append(Row(tuple(cells[column.name] for column in columns)))
    return Table("Sources", tuple(columns), rows)


def diagnosis_view(diagnosis: Numbers) -> RenderableType:
    """Return histograms of rewards and margins, accuracy by difference in length, and calibration, as far as `diagnose` has numbers."""
    parts: list[RenderableType] = []
    if diagnosis["rewards"] is not None:
        parts.append(_histograms(diagnosis["rewards"], diagnosis["margins"]))
    if diagnosis["length_difference"]:
        parts += [Text(), length_difference_table(diagnosis["length_difference"])]
    if diagnosis["calibration"] is not None:
        parts += [Text(), calibration_table(diagnosis["calibration"])]
    return Group(*parts)


def _histograms(rewards: Numbers, margins: Numbers) -> Table:
    most = max(*rewards["winners"], *rewards["losers"])
    low, high = (decimal(rewards["edges"][end], 1) for end in (0, -1))
    rows = [
        Row((name, low, Text(blocks(rewards[side], most), style=style), high))
        for name, side, style in (("chosen", "winners", "blue"), ("rejected", "losers", ""))
    ]
    edges, counts = margins["edges"], margins["counts"]
    zero = sum(edge < -1e-12 for edge in edges)
    drawn = blocks(counts, max(counts))
    bars = Text.assemble((drawn[:zero], "red"), "│", (drawn[zero:], "blue"))
    shares = f"right {percent(margins['right'], 1)}, wrong {percent(margins['wrong'], 1)}"
    rows.append(Row(("margin", decimal(edges[0], 1), bars, f"{decimal(edges[-1], 1)}   {shares}")))
    columns = (Column("", "text", "cyan"), Column(), Column("", "bar"), Column("", "text"))
    return Table("histograms", columns, rows)


def blocks(counts: Sequence[int], most: int) -> str:
    """Draw a histogram of one line; every bin that is not empty shows."""
    return "".join(BLOCKS[0 if not count else max(1, round(count / most * (len(BLOCKS) - 1)))] for count in counts)


def length_difference_table(bins: Sequence[Numbers]) -> Table:
    """Return the accuracy by the number of tokens that the chosen response is longer than the rejected one."""
    return share_table("chosen is longer by", [(difference_words(row["low"], row["high"]), row) for row in bins])


def difference_words(low: int | None, high: int | None) -> str:
    """Name a range of tokens more or fewer, as `+12 to +31`, `−32 or less` or `equal`."""
    if low is None:
        return f"−{-(high or 0):,} or less"
    if high is None:
        return f"+{low:,} or more"
    if low == high:
        return f"{low:+,}".replace("-", "−") if low else "equal"
    return f"{low:+,} to {high:+,}".replace("-", "−")


def calibration_table(curve: Numbers) -> Table:
    """Return the accuracy by confidence, `sigmoid(|margin|)`."""
    table = share_table("confidence", [(f"{row['low']:.2f} to {row['high']:.2f}", row) for row in curve["bins"]])
    means = [decimal(row["confidence"], 3) for row in curve["bins"]]
    rows = [Row((*row.cells[:2], mean, *row.cells[2:])) for row, mean in zip(table.rows, means, strict=True)]
    return Table("Calibration", (*table.columns[:2], Column("mean", optional=True), *table.columns[2:]), rows)


def share_table(heading: str, rows: Sequence[tuple[str, Numbers]]) -> Table:
    """Return the accuracy of each named part of the preferences with its 95 % interval, as numbers and drawn."""
    columns = (Column(heading), Column("n"), Column("accuracy"), Column("95 % interval"), Column(SHARE_SCALE, "bar"))
    drawn = []
    for name, numbers in rows:
        accuracy = numbers["accuracy"]
        bar = "" if accuracy is None else Bar(numbers["accuracy_low"], numbers["accuracy_high"], accuracy)
        drawn.append(Row((name, f"{numbers['preferences']:,}", decimal(accuracy, 3), interval(numbers), bar)))
    return Table(heading, columns, drawn)


def sample_table(samples: Sequence[Mapping[str, Any]], title: str = "samples") -> RenderableType:
    """Return three lines for each pair: the end of its prompt, then both responses with their `rewards`, chosen first.

    `✓` marks a chosen response that has the greater reward, `=` a tie and `✗` an error.
    """
    rows = []
    for sample in samples:
        chosen, rejected = sample["rewards"]
        mark = ("✓", "green") if chosen > rejected else ("=", "bold red") if chosen == rejected else ("✗", "bold red")
        margin = Text(decimal(chosen - rejected, 3, sign=True), style=mark[1])
        rows += [
            Row((Text.assemble(mark, " margin"), margin, Excerpt(sample["prompt"], keep="end", style="dim")), first=True),
            Row(("  chosen", decimal(chosen, 3, sign=True), Excerpt(sample["chosen"]))),
            Row(("  rejected", decimal(rejected, 3, sign=True), Excerpt(sample["rejected"]))),
        ]
    right = sum(sample["rewards"][0] > sample["rewards"][1] for sample in samples)
    table = Table(title, (Column("", "text"), Column(), Column("", "text")), rows)
    return Group(Text.assemble((title, "bold"), f"  {right} of {len(samples)} right"), table)


def benchmark_report(benchmarks: Mapping[str, Numbers], gates: Mapping[str, Numbers]) -> RenderableType:
    """Return a table for each benchmark with the settings its numbers depend on, then the gates and the files of scores.

    `benchmarks` are as `measure` returns them, by name, with `settings` and `scores`.
    """
    parts: list[RenderableType] = []
    for numbers in benchmarks.values():
        parts.append(benchmark_table(numbers))
        if numbers["ours"]:
            parts.append(Text(f"{numbers['ours']}: defined by rmtrain, no official script was read", style="dim"))
        if numbers["others"]:
            shown = list(numbers["others"].items())[:MAX_OTHERS]
            more = f"; and {len(numbers['others']) - len(shown)} more with --json" if len(shown) < len(numbers["others"]) else ""
            parts.append(Text("; ".join(f"{name} {decimal(value)}" for name, value in shown) + more))
        if numbers["longer_wins"] is not None:
            longer, shorter = decimal(numbers["longer_wins"]), decimal(numbers["shorter_wins"])
            parts.append(Text(f"preferring the longer response gives {longer}, the shorter {shorter}"))
        if numbers["settings"]:
            settings = numbers["settings"]
            length, template = settings.get("max_length"), str(settings.get("template_sha256"))[:8]
            counts = f"{settings.get('rows_cut', 0):,} rows cut, {settings.get('rows_dropped', 0):,} dropped"
            limit = f"max_length {length:,}" if length else "no max_length"
            parts.append(Text(f"{settings.get('dtype')}, {limit}, {counts}, template {template}", style="dim"))
        parts += [warning_lines(numbers["warnings"]), Text()] if numbers["warnings"] else [Text()]
    parts += [Text(f"gate          {name} {'passed' if gate['passed'] else 'missed'}") for name, gate in gates.items()]
    return Group(*parts, *(Text(f"scores        {numbers['scores']}") for numbers in benchmarks.values()))


BENCHMARK_COLUMNS: Mapping[str, Callable[[Numbers], str]] = {
    "n": lambda row: "" if row["n"] is None else f"{row['n']:,}",
    "score": lambda row: "" if row["score"] is None else decimal(row["score"]),
    "95 % interval": lambda row: "" if row["low"] is None else f"[{decimal(row['low'], 3)}, {decimal(row['high'], 3)}]",
    "strict": lambda row: "" if row["strict"] is None else decimal(row["strict"]),
    "half": lambda row: "" if row["half_credit"] is None else decimal(row["half_credit"]),
    "ties": lambda row: "" if row["ties"] is None else f"{row['ties']:,}",
}


def benchmark_table(numbers: Numbers) -> Table:
    """Return the total of a benchmark, its sections, and below each its subsets, unless they are more than `MAX_SUBSETS`.

    A column that is empty is left out, and so are strict numbers that equal the scores.
    """
    subsets = numbers["subsets"] if len(numbers["subsets"]) <= MAX_SUBSETS else {}
    lines = [("total", numbers, "total")]
    for section, values in numbers["sections"].items():
        lines.append((section, values, ""))
        inside = {name: subset for name, subset in subsets.items() if subset["section"] == section != name}
        lines += [(f"  {name}", subset, "subset") for name, subset in inside.items()]
    texts = {name: [text(row) for _, row, _ in lines] for name, text in BENCHMARK_COLUMNS.items()}
    shown = [name for name, cells in texts.items() if any(cells) and (name != "strict" or cells != texts["score"])]
    rows = [Row((title, *(texts[name][number] for name in shown)), kind) for number, (title, _, kind) in enumerate(lines)]
    return Table(numbers["title"], (Column(numbers["title"], "text"), *map(Column, shown)), rows)


def difference_report(compared: Numbers) -> RenderableType:
    """Return both values of a metric and their difference with its interval, as `compare` returns them, and warnings."""
    one, other = compared["one"], compared["other"]
    bounds = f"[{decimal(compared['low'], sign=True)}, {decimal(compared['high'], sign=True)}]"
    sure = "differs from 0" if compared["low"] > 0 or compared["high"] < 0 else "may be 0"
    counts = (
        f"of {compared['units']:,} rows {compared['better']:,} better, {compared['worse']:,} worse, {compared['equal']:,} equal"
    )
    lines = (
        ("first", decimal(one["value"]), one["path"]),
        ("second", decimal(other["value"]), other["path"]),
        ("difference", decimal(compared["difference"], sign=True), f"95 % in {bounds}: {sure}; {counts}"),
    )
    metric = compared["metric"]
    return Group(Text(metric, style="bold"), _headline(metric, lines), warning_lines(compared["warnings"]))
