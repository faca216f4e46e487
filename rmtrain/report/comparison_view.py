"""One row in a terminal: a comparison as tokens and text, or a dropped row as its source has it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rmtrain.data.rows.messages import cells
from rmtrain.report.console import KeyValues, NoWrap, WrapText, escape_invisible, has_colours
from rmtrain.report.tables import Excerpt
from rmtrain.report.terminal import TerminalConsole
from rmtrain.report.text_diff import SideBySide

MAX_PREFERENCES = 12
CONTEXT = 40
MATCH_STYLE = "bold reverse yellow"
USUAL = {"margin": 0.0, "probability": 1.0, "weight": 1.0}
MAX_PATH_WIDTH = 24
RESPONSE_STYLES = ("color(16) on color(117)", "color(16) on color(223)", "color(16) on color(157)", "color(16) on color(219)")
PREFIX_STYLES = ("dim", "dim underline")
REWARD_STYLE = "bold color(231) on color(161)"
MARK_STYLE = "bold"
ID_STYLE = "dim"
BOUNDARY = "╎"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
WHITESPACE = str.maketrans(" \t\n", "·⇥⏎")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}
"""Bytes by the characters of byte-level tokenizers."""


def comparison_view(
    row: Mapping[str, Any], tokenizer: Any, *, show_ids: bool = False, side_by_side: bool | None = None
) -> RenderableType:
    """Show a comparison. Of more than two responses, the best and the worst are shown in full, and the others as a table.

    Args:
        row: `id`, `source`, `split`, `row`, `prompt`, `prompt_length`, `prefix_length`, `preferences`, `targets`, `weight`, `ranking`,
            `compared`, and
            `responses`, each with `name`, `rank`, `length`, `reward_index`, `ids`, `text` and `own_text`, the text after the prompt. After
            a search also `found`, with `in`, `response`, `begin` and `end`, in characters of that response's `text`.
        side_by_side: show texts in columns; None: if the terminal is wide enough.
    """
    shown = [row["responses"][number] for number in dict.fromkeys(row["compared"])]
    parts: list[RenderableType] = [KeyValues(_facts(row))]
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
        for name in ("rank", "response", "tokens"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("text")
        for number in others:
            response = row["responses"][number]
            rank = f"{response['rank']} of {len(row['ranking'])}"
            table.add_row(rank, str(number), f"{response['length']:,}", Excerpt(response["own_text"]))
        parts += [Text(), _title("others", "best first"), table]
    return Group(*parts)


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
    if "found" in row:
        facts["found"] = _found(row["found"], responses[row["found"]["response"]]["text"])
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


def visualize_tokens(ids: Sequence[int], tokenizer: Any, console: Console | None = None) -> None:
    """Print token ids as text in alternating colours, on stdout by default; without colours, a thin line separates the tokens."""
    (console or TerminalConsole()).print(TokenStrip(ids, tokenizer), crop=False)


@dataclass(frozen=True, slots=True, eq=False)
class TokenStrip:
    """Token ids as one text.

    Tokens of a response alternate between four background colours. Prefix tokens are dim, every other one underlined; special tokens
    are reversed. Whitespace is drawn: `·` is a space, `⇥` a tab and `⏎` a line feed, which also starts a new line. Invisible characters
    and parts of characters are escapes such as `\\xe2`.

    prefix_length: number of leading tokens that all responses share; `│` follows them.
    reward_index: the token whose logit is the reward, marked `⟦...⟧`.
    show_ids: print each token's id after it, in subscript digits.
    """

    ids: Sequence[int]
    tokenizer: Any
    prefix_length: int = 0
    reward_index: int | None = None
    show_ids: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield WrapText(self.text(boundaries=not has_colours(console)))

    def text(self, boundaries: bool = False) -> Text:
        """Return the styled text; with `boundaries`, a thin line separates the tokens."""
        special = special_ids(self.tokenizer)
        is_word_piece = _uses(self.tokenizer, "WordPiece")
        text = Text(overflow="fold")
        for index, (token_id, string) in enumerate(zip(self.ids, token_strings(self.ids, self.tokenizer), strict=True)):
            in_prefix = index < self.prefix_length
            if index == self.prefix_length > 0:
                text.append("│", MARK_STYLE)
            elif boundaries and index and not text.plain.endswith("\n"):
                text.append(BOUNDARY, ID_STYLE)
            if is_word_piece and index and not string.startswith("##"):
                text.append(" ")

            drawn = escape_invisible(string).translate(WHITESPACE)
            if index == self.reward_index:
                text.append(f"⟦{drawn}⟧", REWARD_STYLE)
            elif token_id in special:
                text.append(drawn, "dim reverse" if in_prefix else "bold reverse")
            else:
                styles = PREFIX_STYLES if in_prefix else RESPONSE_STYLES
                text.append(drawn, styles[(index - self.prefix_length) % len(styles)])
            if self.show_ids:
                text.append(str(token_id).translate(SUBSCRIPTS), ID_STYLE)
            text.append("\n" * string.count("\n"))
        return text


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token.

    A token with only a part of a character's UTF-8 bytes gives escapes: an emoji that is split in two may give `\\xf0\\x9f` and
    `\\x98\\x80`. WordPiece tokens keep their `##`. Added and special tokens give their own content.
    """
    # `tokenizer.decode` of a single token would replace incomplete characters and drop leading spaces.
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = _uses(tokenizer, "ByteLevel")
    strings = []
    for token_id in map(int, ids):
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token_id in added:
            strings.append(added[token_id])
            continue
        if token is None:
            raw = f"<no token {token_id}>".encode()
        elif isinstance(token, bytes):
            raw = token
        elif is_byte_level:
            raw = bytes(BYTE_OF[char] for char in token) if all(char in BYTE_OF for char in token) else token.encode()
        elif byte := BYTE_TOKEN.fullmatch(token):
            raw = bytes.fromhex(byte[1])
        else:
            raw = token.replace("▁", " ").encode()
        strings.append(raw.decode(errors="backslashreplace"))
    return strings


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that structure a text, such as end, padding and turn marks."""
    return {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )


def _uses(tokenizer: Any, kind: str) -> bool:
    """Return True if the decoder or pre-tokenizer has a part of this kind, such as `ByteLevel` or `WordPiece`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.decoder, backend.pre_tokenizer]
    return any(part is not None and f'"type":"{kind}"'.encode() in part.__getstate__() for part in parts)
