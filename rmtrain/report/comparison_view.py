"""One row in a terminal: a comparison as tokens and text, or a dropped row as its source has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from rmtrain.data.rows.messages import cells
from rmtrain.report.console import KeyValues, NoWrap, WrapText, decimal, escape_invisible
from rmtrain.report.tables import Excerpt
from rmtrain.report.text_diff import SideBySide
from rmtrain.report.token_strip import AHEAD, RewardScale, RewardStrip, ScaleLegend, TokenStrip, parting_marks

MAX_PREFERENCES = 12
CONTEXT = 40
MATCH_STYLE = "bold reverse yellow"
USUAL = {"margin": 0.0, "probability": 1.0, "weight": 1.0}
MAX_PATH_WIDTH = 24


def comparison_view(
    row: Mapping[str, Any], tokenizer: Any, *, show_ids: bool = False, side_by_side: bool | None = None
) -> RenderableType:
    """Show a comparison. Of more than two responses, the best and the worst are shown in full, and the others as a table.

    Args:
        row: `id`, `source`, `split`, `row`, `prompt`, `prompt_length`, `prefix_length`, `preferences`, `targets`, `weight`, `ranking`,
            `compared`, and
            `responses`, each with `name`, `rank`, `length`, `reward_index`, `ids`, `text` and `own_text`, the text after the prompt. After
            a search also `found`, with `in`, `response`, `begin` and `end`, in characters of that response's `text`. With the rewards of
            a `model` also its path, `rewards_part`, and for each response its `reward` and its `token_rewards`.
        side_by_side: show texts in columns; None: if the terminal is wide enough.
    """
    shown = [row["responses"][number] for number in dict.fromkeys(row["compared"])]
    parts: list[RenderableType] = [KeyValues(_facts(row))]
    if "model" in row:
        parts += _reward_strips(row, shown, tokenizer)
    else:
        prefix = row["prefix_length"] if len(row["responses"]) > 1 else row["prompt_length"]
        for response in shown:
            strip = TokenStrip(response["ids"], tokenizer, prefix, response["reward_index"], show_ids)
            parts += [Text(), _title(response["name"], "as tokens"), strip]
    prompt = Text(escape_invisible(row["prompt"]).strip("\n"))
    parts += [Text(), _title("prompt", "as text"), WrapText(prompt), Text(), _title("responses", "as text")]
    if len(shown) == 1:
        parts.append(WrapText(Text(escape_invisible(shown[0]["own_text"]))))
    else:
        best, worst = shown
        parts.append(SideBySide((best["name"], worst["name"]), (best["own_text"], worst["own_text"]), side_by_side))

    others = [number for number in row["ranking"] if number not in row["compared"]]
    if others:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("rank", "response", "tokens", *(["reward"] if "model" in row else ())):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("text")
        for number in others:
            response = row["responses"][number]
            rank = f"{response['rank']} of {len(row['ranking'])}"
            reward = [decimal(response["reward"], 3, sign=True)] if "model" in row else []
            table.add_row(rank, str(number), f"{response['length']:,}", *reward, Excerpt(response["own_text"]))
        parts += [Text(), _title("others", "best first"), table]
    return Group(*parts)


def _reward_strips(row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[RenderableType]:
    """Return the tokens of the responses that are shown, with the reward after each, on one scale."""
    first = min(row["prompt_length"], row["first_difference"])
    scale = RewardScale.of(reward for response in shown for reward in response["token_rewards"][first:])
    marks = parting_marks(row["first_difference"], row["rewards_part"]) if len(shown) > 1 else {}
    parts: list[RenderableType] = [ScaleLegend(scale)]
    for response in shown:
        strip = RewardStrip(response["ids"], tokenizer, response["token_rewards"], scale, first, marks)
        note = f"reward {decimal(response['reward'], 3, sign=True)}, and after each token"
        parts += [Text(), _title(response["name"], note), strip]
    return parts


def _title(name: str, note: str) -> Text:
    return Text.assemble((name, "bold underline"), (f" {note}", "dim"))


def _facts(row: Mapping[str, Any]) -> dict[str, str | Text]:
    responses, edges, prefix = row["responses"], row["preferences"], row["prefix_length"]
    lengths = ", ".join(f"{response['name']} {response['length']:,}" for response in responses)
    total = sum(response["length"] for response in responses)
    unique = total - (len(responses) - 1) * prefix
    facts: dict[str, str | Text] = {
        "row": f"{row['row']:,} of {row['split']}, id {escape_invisible(row['id'])}",
        "source": escape_invisible(row["source"]),
        "tokens": f"{lengths}; the prompt is {row['prompt_length']:,} of each",
    }
    if len(responses) > 1:
        facts["shared"] = f"the first {prefix:,}, up to │; {unique:,} tokens are computed instead of {total:,}"
    if row["weight"] != 1:
        facts["weight"] = f"{row['weight']:g}"
    if row["targets"]:
        facts["targets"] = ", ".join(f"response {target['response']}: {target['value']:g}" for target in row["targets"])
    elif [response["name"] for response in responses] == ["chosen", "rejected"]:
        facts["margin"] = f"{edges[0]['margin']:g}"
        if unusual := _unusual(edges[0], ("probability", "weight")):
            facts["preference"] = unusual
    else:
        named = []
        for edge in edges[:MAX_PREFERENCES]:
            unusual = _unusual(edge, tuple(USUAL))
            named.append(f"{edge['winner']} over {edge['loser']}" + (f" ({unusual})" if unusual else ""))
        more = f" and {len(edges) - MAX_PREFERENCES} more" if len(edges) > MAX_PREFERENCES else ""
        facts["preferred"] = f"responses {', '.join(named)}{more}"
    facts["reward"] = "read at the token marked ⟦ ⟧"
    if "model" in row:
        facts |= _reward_facts(row, [responses[number] for number in dict.fromkeys(row["compared"])])
    if "found" in row:
        facts["found"] = _found(row["found"], responses[row["found"]["response"]]["text"])
    return facts


def _reward_facts(row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> dict[str, str | Text]:
    """Return what the rewards of a model say; tokens are counted from the first of the response."""
    facts: dict[str, str | Text] = {
        "reward": "read at the token marked ⟦ ⟧, as in training; after any other token, that of the text cut there",
        "model": escape_invisible(row["model"]),
    }
    if len(shown) < 2:
        return facts
    ahead, behind = sorted(shown, key=lambda response: -response["reward"])
    lead = ahead["reward"] - behind["reward"]
    facts["rewards"] = ", ".join(f"{response['name']} {decimal(response['reward'], 3, sign=True)}" for response in shown)
    if row["rewards_part"] is None:
        facts["rewards"] += "; they are equal"
        return facts
    before = shown[0]["token_rewards"][max(0, row["prompt_length"] - 1)]
    after_prompt = "" if not row["prompt_length"] or before is None else f"; {decimal(before, 3, sign=True)} after the prompt"
    facts["rewards"] += after_prompt
    facts["rewards"] += f"; {ahead['name']} is ahead by {decimal(lead, 3)}"
    tokens, rewards = (row[name] - row["prompt_length"] + 1 for name in ("first_difference", "rewards_part"))
    facts["they part"] = f"at token {tokens:,} (│); {ahead['name']} is ahead from token {rewards:,} ({AHEAD}) to the end"
    return facts


def _unusual(edge: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the values of a preference that differ from the usual ones."""
    return ", ".join(f"{name} {edge[name]:g}" for name in names if edge[name] != USUAL[name])


def _found(found: Mapping[str, Any], text: str) -> Text:
    """Return the place of the match and the characters around it, on one line."""
    begin, end = found["begin"], found["end"]
    before, match, after = (
        escape_invisible(part).replace("\n", "⏎").replace("\t", "⇥")
        for part in (text[max(0, begin - CONTEXT) : begin], text[begin:end], text[end : end + CONTEXT])
    )
    before = f"…{before}" if begin > CONTEXT else before
    after = f"{after}…" if end + CONTEXT < len(text) else after
    return Text.assemble(f"{found['in']}: ", (before, "dim"), (match, MATCH_STYLE), (after, "dim"))


def dropped_view(row: Mapping[str, Any]) -> RenderableType:
    """Show a dropped row: `id`, `source`, `reason`, `detail`, and as `row` its columns, or its line as text if it could not be parsed."""
    facts = KeyValues({name: escape_invisible(row[name]) for name in ("id", "source", "reason", "detail")})
    content: RenderableType
    match row["row"]:
        case None:
            content = Text("its source no longer has this row", style="yellow")
        case str(line):
            content = WrapText(Text(escape_invisible(line)))
        case columns:
            content = RowCells(columns)
    return Group(facts, Text(), content)


@dataclass(frozen=True, slots=True)
class RowCells:
    """The cells of a row with nested columns, each under its dotted path."""

    row: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="cyan", overflow="fold", max_width=MAX_PATH_WIDTH if console.is_terminal else None)
        table.add_column(overflow="fold")
        had_lines = False
        for path, value in cells(self.row):
            has_lines = isinstance(value, str) and "\n" in value
            if table.row_count and (had_lines or has_lines):
                table.add_row()  # an empty line sets texts of several lines apart
            had_lines = has_lines
            if isinstance(value, str) and value:
                shown = Text(escape_invisible(value))
            elif value in ("", None, [], {}):
                shown = Text({"": "empty text", "None": "null"}.get(str(value), str(value)), style="dim italic")
            else:
                shown = Text(escape_invisible(str(value)), style="yellow")
            table.add_row(Text(escape_invisible(path)), shown)
        yield NoWrap(table)
