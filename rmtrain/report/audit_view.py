"""An audit of labels in a terminal: rows, suspects and estimated noise by source and kind, and what changing labels did."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rmtrain.report.console import KeyValues, decimal, one_line, percent
from rmtrain.report.run_view import next_steps, rmtrain_command
from rmtrain.report.tables import Column, Row, Table

Numbers = Mapping[str, Any]
KIND_WORDS = {"winner_longer": "longer chosen", "winner_shorter": "shorter chosen", "equal": "equally long"}
TREATED = {"as_labelled": "all labels", "dropped": "suspects dropped", "flipped": "suspects flipped"}


def audit_report(document: Numbers) -> RenderableType:
    """Return the tables of an audit, and how to read them; `document` is that of `rmtrain audit --json`."""
    parts: list[RenderableType] = [
        KeyValues(
            {
                "audit": f"{document['rows']:,} labels, each scored by one of {document['folds']} models that was not trained on it",
                "accuracy": f"{decimal(document['accuracy'])} of the labels are those that the models predict",
                "suspects": f"{document['suspects']:,}, listed in {document['list']}",
            }
        ),
        Text(),
        noise_table(document),
        Text(_reading(document), style="dim"),
    ]
    if document["most_suspect"]:
        parts += [Text(), suspect_table(document["most_suspect"])]
    if document["effect"]:
        parts += [Text(), effect_table(document["effect"]), Text(_caution(document), style="dim")]
    return Group(*parts)


def noise_table(document: Numbers) -> Table:
    """Return rows, suspects and estimated noise of each source and kind of its labels, and of several sources together."""
    names = ("source", "kind", "rows", "suspects", "share", "accuracy", "noise, at most", "95 % interval")
    texts, optional = ("source", "kind"), ("share", "accuracy")
    columns = tuple(Column(name, "text" if name in texts else "number", optional=name in optional) for name in names)
    sources: Numbers = document["sources"]
    rows = []
    for source, numbers in ({**sources, "all": document} if len(sources) > 1 else sources).items():
        rows.append(Row((one_line(source), "all", *_cells(numbers)), first=True))
        rows += [Row(("", KIND_WORDS[kind], *_cells(part)), "subset") for kind, part in numbers["kinds"].items()]
    return Table("Labels", columns, rows)


def _cells(numbers: Numbers) -> tuple[str, ...]:
    noise = numbers["noise"]
    bounds = "–" if noise is None else f"[{decimal(noise['low'], 3)}, {decimal(noise['high'], 3)}]"
    return (
        f"{numbers['rows']:,}",
        f"{numbers['suspects']:,}",
        percent(numbers["suspects"], numbers["rows"]),
        decimal(numbers["accuracy"], 3),
        decimal(None if noise is None else noise["rate"], 3),
        bounds,
    )


def _reading(document: Numbers) -> str:
    if document["noise"] is None and not document["suspects"]:
        return "no estimate and no suspects: the models are not better than chance, so they cannot dispute a label; train longer"
    return (
        "noise: share of disputed labels where the models are most confident, an upper bound. Where they are not better than chance there "
        "is no estimate (–), and no suspect. Read some suspects before you use them: models can be sure and wrong."
    )


def suspect_table(suspects: Sequence[Numbers]) -> Table:
    """Return the most suspect rows, with the probability that the models give to such a label."""
    columns = (Column("most suspect", "text"), Column("kind", "text"), Column("margin"), Column("agreement"))
    rows = [
        Row(
            (
                one_line(suspect["id"]),
                KIND_WORDS[suspect["kind"]],
                decimal(suspect["margin"], 2),
                decimal(suspect["agreement"], 3),
            )
        )
        for suspect in suspects
    ]
    return Table("Most suspect", columns, rows)


def effect_table(effect: Numbers) -> Table:
    """Return the accuracy on the evaluation data of a run with each treatment of the suspects."""
    columns = (
        Column("trained with", "text"),
        Column("accuracy", style="bold"),
        Column("difference"),
        Column("95 % interval"),
        Column("p"),
    )
    rows = []
    for name, words in TREATED.items():
        numbers = effect[name]
        change = ("", "", "")
        if "difference" in numbers:
            bounds = f"[{decimal(numbers['low'], sign=True)}, {decimal(numbers['high'], sign=True)}]"
            change = (decimal(numbers["difference"], sign=True), bounds, decimal(numbers["p"]))
        rows.append(Row((words, decimal(numbers["accuracy"]), *change)))
    return Table("Effect", columns, rows)


def _caution(document: Numbers) -> str:
    text = "measured on the labels of the evaluation data as they are"
    if document["noise"] is None:
        return text
    shrunk = decimal(1 - 2 * document["noise"]["rate"], 2)
    return (
        f"{text}; if they are as noisy as those of training, a change of the true accuracy appears about {shrunk} times as large"
    )


def audit_commands(document: Numbers, arguments: Sequence[str], key: str) -> Text:
    """Return what to do next: read the suspects, then train without them. `key` is the source of the most suspect row."""
    if not document["most_suspect"]:
        return Text()
    row_id = document["most_suspect"][0]["id"]
    treated = f"{key}.suspects={{file: {document['list']}, labels: drop}}"
    commands = [
        ("read the most suspect row, then others of the list", rmtrain_command("inspect", *arguments, "--row", row_id)),
        (
            "train without the suspects of this source; labels: flip turns them around",
            rmtrain_command("train", *arguments, treated, "run.output_dir=DIR"),
        ),
    ]
    return next_steps(commands)
