"""A row as its source has it, cell by cell, under the paths that a recipe names columns by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rmtrain.data.rows.cells import cells
from rmtrain.report.console import KeyValues, NoWrap, WrapText, escape_invisible
from rmtrain.report.tables import Excerpt
from rmtrain.report.text_diff import SideBySide
from rmtrain.report.tokens import TokenStrip

NAMED_PREFERENCES = 12
CONTEXT = 40
MATCH_STYLE = "bold reverse yellow"
USUAL = {"margin": 0.0, "probability": 1.0, "weight": 1.0}


def comparison_view(
    row: Mapping[str, Any], tokenizer: Any, *, show_ids: bool = False, side_by_side: bool | None = None
) -> RenderableType:
    """A comparison: of more than two responses the best and the worst in full, and the others in the order of their ranking.

    Args:
        row: `id`, `source`, `split`, `row`, `prompt`, `prompt_length`, `prefix_length`, `preferences`, `ranking`, `compared`, and of each
            of its `responses` `name`, `rank`, `length`, `reward_index`, `ids`, `text` and `own_text`, the text after the prompt; where it
            was searched for, `found`, with `response`, `begin` and `end` in that response's text.
        tokenizer: gives token ids as strings.
        show_ids: write each token's id.
        side_by_side: texts in columns; None: where the terminal is wide enough.
    """
    compared = [row["responses"][number] for number in row["compared"]]
    parts: list[RenderableType] = [KeyValues(_facts(row))]
    for response in compared:
        strip = TokenStrip(
            response["ids"],
            tokenizer,
            prefix_length=row["prefix_length"],
            reward_index=response["reward_index"],
            show_ids=show_ids,
        )
        parts += [Text(), _title(response["name"], "tokens"), strip]
    prompt = WrapText(Text(escape_invisible(row["prompt"]).strip("\n")))
    parts += [Text(), _title("prompt", "text"), prompt, Text(), _title("responses", "text")]
    names = tuple(response["name"] for response in compared)
    parts.append(SideBySide((names[0], names[1]), (compared[0]["own_text"], compared[1]["own_text"]), side_by_side))
    others = [number for number in row["ranking"] if number not in row["compared"]]
    return Group(*parts, *(_others(row, others) if others else []))


def _is_pair(row: Mapping[str, Any]) -> bool:
    return [response["name"] for response in row["responses"]] == ["chosen", "rejected"]


def _title(name: str, kind: str) -> Text:
    return Text.assemble((name, "bold underline"), (f" as {kind}", "dim"))


def _facts(row: Mapping[str, Any]) -> dict[str, str | Text]:
    lengths = [response["length"] for response in row["responses"]]
    named = ", ".join(f"{response['name']} {response['length']:,}" for response in row["responses"])
    prefix, whole = row["prefix_length"], sum(lengths)
    unique = whole - (len(lengths) - 1) * prefix
    facts: dict[str, str | Text] = {
        "row": f"{row['row']:,} of {row['split']}, id {escape_invisible(row['id'])}",
        "source": escape_invisible(row["source"]),
        "tokens": f"{named}; the prompt is {row['prompt_length']:,} of each",
        "shared": f"the first {prefix:,}, up to │; with them computed once, {unique:,} tokens instead of {whole:,}",
    }
    if _is_pair(row):
        facts["margin"] = f"{row['preferences'][0]['margin']:g}"
        unusual = _unusual(row["preferences"][0], "probability", "weight")
        facts |= {"preference": unusual} if unusual else {}
    else:
        facts["preferred"] = _preferred(row["preferences"])
    facts["reward"] = "read at the token marked ⟦ ⟧"
    if "found" in row:
        facts["found"] = _found(row)
    return facts


def _preferred(edges: Sequence[Mapping[str, Any]]) -> str:
    named = [
        f"{edge['winner']} over {edge['loser']}" + (f" ({said})" if (said := _unusual(edge, *USUAL)) else "")
        for edge in edges[:NAMED_PREFERENCES]
    ]
    more = f" and {len(edges) - NAMED_PREFERENCES} more" if len(edges) > NAMED_PREFERENCES else ""
    return f"responses {', '.join(named)}{more}"


def _unusual(edge: Mapping[str, Any], *names: str) -> str:
    """The values of an edge that are not as usual, in words."""
    return ", ".join(f"{name} {edge[name]:g}" for name in names if edge[name] != USUAL[name])


def _found(row: Mapping[str, Any]) -> Text:
    """The place that was searched for, with what stands around it."""
    found = row["found"]
    response = row["responses"][found["response"]]
    text, begin, end = response["text"], found["begin"], found["end"]
    before, after = text[max(0, begin - CONTEXT) : begin], text[end : end + CONTEXT]
    pieces = [
        "…" if begin > CONTEXT else "",
        *map(_one_line, (before, text[begin:end], after)),
        "…" if end + CONTEXT < len(text) else "",
    ]
    head, left, match, right, tail = pieces
    return Text.assemble(f"{found['in']}: ", (head + left, "dim"), (match, MATCH_STYLE), (right + tail, "dim"))


def _one_line(text: str) -> str:
    return escape_invisible(text).replace("\n", "⏎").replace("\t", "⇥")


def _others(row: Mapping[str, Any], numbers: Sequence[int]) -> Iterator[RenderableType]:
    yield Text()
    yield Text.assemble(("others", "bold underline"), (" best first", "dim"))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("rank", "response", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("text")
    for number in numbers:
        response = row["responses"][number]
        place = f"{response['rank']} of {len(row['ranking'])}"
        table.add_row(place, str(number), f"{response['length']:,}", Excerpt(response["own_text"]))
    yield table


WIDEST_PATH = 24


def dropped_view(row: Mapping[str, Any]) -> RenderableType:
    """A row that is not used: why, and all that it holds.

    Args:
        row: `id`, `source`, `reason`, `detail`, and `row`: its columns, or its line as text where it could not be parsed; None: it is
            not there any more.
    """
    facts = KeyValues({name: escape_invisible(row[name]) for name in ("id", "source", "reason", "detail")})
    content = row["row"]
    if content is None:
        return Group(facts, Text(), Text("it is not in its source any more", style="yellow"))
    if isinstance(content, str):
        return Group(facts, Text(), WrapText(Text(escape_invisible(content))))
    return Group(facts, Text(), RawRow(content))


class RawRow:
    """The cells of a row, each under its dotted path; what cannot be seen or moves a cursor is shown as escapes.

    Args:
        row: its columns, nested as they are.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.cells = [(escape_invisible(path), value) for path, value in cells(row)]

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
        yield NoWrap(table)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(20, options.max_width), options.max_width)


def _shown(value: Any) -> Text:
    if isinstance(value, str):
        return Text(escape_invisible(value)) if value else Text("empty text", style="dim italic")
    return Text(
        "null" if value is None else escape_invisible(str(value)), style="dim italic" if value in (None, [], {}) else "yellow"
    )
