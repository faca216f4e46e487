"""A row of a source to a comparison: where its prompt is, what its responses are, what its margin is."""

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from rmtrain.data.comparison import Comparison, Dropped, Message, Preference, TokenizedComparison
from rmtrain.data.json_reader import Row
from rmtrain.data.messages import BadRow, to_messages
from rmtrain.data.prefix import common_prefix_length
from rmtrain.recipe.schema import Messages, PairSource, Source, TokenizedSource

Turns = tuple[Message, ...]
TOKEN_COLUMNS = (
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    ("chosen_ids", "rejected_ids", None, None),
)
_MISSING = object()


def adapt(row: Row, index: int, source: Source) -> Comparison | TokenizedComparison | Dropped:
    """The comparison of a row, or why the row is dropped.

    Args:
        row: its columns.
        index: its number in the source, from 0; the row id is `label:index`.
        source: which columns hold what.
    """
    label = source.label
    row_id = f"{label}:{index}"
    try:
        if isinstance(source, TokenizedSource):
            return TokenizedComparison(row_id, label, *_tokenized(row), _preferences(row, source))
        return Comparison(row_id, label, *_pair(row, source), _preferences(row, source))
    except BadRow as problem:
        return Dropped(row_id, label, problem.reason, problem.detail)


def lookup(row: Any, path: str) -> Any:
    """The cell at a dotted path such as `answers.0.text`; a name that itself holds dots is found too.

    Raises:
        KeyError: there is none.
    """
    if isinstance(row, dict) and path in row:
        return row[path]
    cell = _descend(row, path.split("."))
    if cell is _MISSING:
        raise KeyError(path)
    return cell


def _descend(cell: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return cell
    if isinstance(cell, dict):
        for size in range(len(parts), 0, -1):
            name = ".".join(parts[:size])
            if name in cell and (found := _descend(cell[name], parts[size:])) is not _MISSING:
                return found
    elif isinstance(cell, list) and parts[0].isdecimal() and int(parts[0]) < len(cell):
        return _descend(cell[int(parts[0])], parts[1:])
    return _MISSING


def _cell(row: Row, column: str) -> Any:
    try:
        return lookup(row, column)
    except KeyError:
        raise BadRow("missing_column", f'no column "{column}"; it has: {", ".join(map(str, row))}') from None


def _pair(row: Row, source: PairSource) -> tuple[Turns, tuple[Turns, ...]]:
    columns, settings = (source.chosen, source.rejected), source.messages
    cells = [_cell(row, column) for column in columns]
    prompt_cell = _prompt_cell(row, source)
    _refuse_repeated_prompt(prompt_cell, cells)
    sides = [_side(cell, column, settings) for cell, column in zip(cells, columns, strict=True)]
    if prompt_cell is not None:
        explicit = _prompt(prompt_cell, source)
        sides = [_after_prompt(explicit, side) for side in sides]
    if source.system is not None:
        sides = [_with_system(_system(row, source.system), side) for side in sides]
    prompt, responses = split_prompt(sides, at_last_turn=settings.transcript == "hh")
    _check_turns(prompt, responses)
    return prompt, responses


def _side(cell: Any, column: str, settings: Messages) -> Turns:
    side = to_messages(cell, column, settings, "assistant")
    if not side or not side[-1]["content"].strip():
        raise BadRow("empty_response", f"{column} ends with an empty turn")
    return side


def _prompt_cell(row: Row, source: PairSource) -> Any:
    """The cell of an explicit prompt; None: the prompt is implicit."""
    if source.prompt == "implicit":
        return None
    if source.prompt == "auto":
        return row.get("prompt")
    return _cell(row, source.prompt)


def _prompt(cell: Any, source: PairSource) -> Turns:
    column = "prompt" if source.prompt == "auto" else source.prompt
    prompt = to_messages(cell, column, source.messages, "user")
    if isinstance(cell, str) and prompt[-1] == {"role": "assistant", "content": ""}:  # a transcript up to "Assistant:"
        prompt = prompt[:-1]
    if not prompt or not prompt[-1]["content"].strip():
        raise BadRow("empty_prompt", f"{column} is empty")
    return prompt


def _refuse_repeated_prompt(prompt: Any, cells: Sequence[Any]) -> None:
    start = prompt.strip() if isinstance(prompt, str) else ""
    if start and all(isinstance(cell, str) and cell.startswith(start) for cell in cells):
        raise BadRow("response_repeats_prompt", "both sides start with the text of the prompt; set prompt: implicit, or cut them")


def _after_prompt(prompt: Turns, side: Turns) -> Turns:
    """The whole conversation of a side: the prompt and the side, unless the side begins with the prompt already."""
    if _starts_with(side, prompt):
        return side
    if side and side[0]["role"] == "system" and _starts_with(side[1:], prompt):
        return side
    if prompt[0]["role"] == "system" and _starts_with(side, prompt[1:]):
        return (prompt[0], *side)
    if side and side[0]["role"] != "assistant":
        raise BadRow("different_prompts", "a side begins with another message than the prompt column")
    return (*prompt, *side)


def _starts_with(side: Turns, prompt: Turns) -> bool:
    return len(side) > len(prompt) and all(_same(ours, theirs) for ours, theirs in zip(prompt, side, strict=False))


def _same(one: Message, other: Message) -> bool:
    return one == other or bool(one["role"] == other["role"] and one["content"].strip() == other["content"].strip())


def _system(row: Row, column: str) -> str:
    text = _cell(row, column)
    if text is not None and not isinstance(text, str):
        raise BadRow("not_messages", f"{column} is no text")
    return text or ""


def _with_system(text: str, side: Turns) -> Turns:
    message: Message = {"role": "system", "content": text}
    if not text.strip() or (side and _same(side[0], message)):
        return side
    return (message, *side)


def split_prompt(sides: Sequence[Turns], at_last_turn: bool) -> tuple[Turns, tuple[Turns, ...]]:
    """The messages that all sides begin with, never the last of a side, and what follows on each side.

    Args:
        sides: whole conversations.
        at_last_turn: everything but the last message must be the prompt, as in HH transcripts.

    Raises:
        BadRow: the sides answer different prompts.
    """
    shared = 0
    for messages in zip(*(side[:-1] for side in sides), strict=False):
        if not all(_same(messages[0], message) for message in messages):
            break
        shared += 1
    if at_last_turn and any(len(side) != shared + 1 for side in sides):
        raise BadRow("different_prompts", "the sides differ before their last turn")
    if at_last_turn and not shared:
        raise BadRow("not_a_transcript", "a side does not start with \\n\\nHuman:")
    return sides[0][:shared], tuple(side[shared:] for side in sides)


def _check_turns(prompt: Turns, responses: Sequence[Turns]) -> None:
    opening = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    for response in responses:
        if response[-1]["role"] != "assistant":
            raise BadRow("role_order", f"a side ends with a turn of the {response[-1]['role']}")
        if response[0]["role"] != "assistant":
            raise BadRow("different_prompts", f"the sides part at a turn of the {response[0]['role']}")
        roles = [message["role"] for message in (*opening, *response)]
        in_turn = cycle(("user", "assistant") if opening else ("assistant", "user"))
        if roles != list(islice(in_turn, len(roles))):
            raise BadRow("role_order", f"expected user and assistant in turn, got {', '.join(roles[:12])}")
        if not all(message["content"].strip() for message in (*opening, *response)):
            raise BadRow("empty_message", "a turn before the last is empty")
    if all(len(response) == len(responses[0]) and all(map(_same, responses[0], response)) for response in responses):
        raise BadRow("identical", "the responses are the same")


def _preferences(row: Row, source: PairSource | TokenizedSource) -> tuple[Preference, ...]:
    return (Preference(winner=0, loser=1, margin=_margin(row, source)),)


def _margin(row: Row, source: PairSource | TokenizedSource) -> float:
    """The row's margin, finite and not negative."""
    if source.margin is None:
        return 0.0
    columns = (source.margin,) if isinstance(source.margin, str) else source.margin
    values = [value for value in (_number(row, column) for column in columns) if value is not None]
    if len(values) < len(columns):
        if source.margin_default is None:
            raise BadRow("bad_margin", f"no number in {' or '.join(columns)}; set margin_default, or remove the row")
        return source.margin_default
    margin = values[0] if len(values) == 1 else values[0] - values[1]
    if margin < 0:
        raise BadRow("bad_margin", f"expected at least 0, got {margin:g}")
    return margin


def _number(row: Row, column: str) -> float | None:
    try:
        value = lookup(row, column)
    except KeyError:
        return None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("bad_margin", f"{column}: expected a finite number, got {str(value)[:40]!r}")
    return float(value)


def _tokenized(row: Row) -> tuple[tuple[list[int], list[int]], int, int]:
    for chosen, rejected, chosen_mask, rejected_mask in TOKEN_COLUMNS:
        absent = [column for column in (chosen, rejected) if row.get(column) is None]
        if len(absent) == 1:
            raise BadRow("one_response", f"no tokens in {absent[0]}; a comparison needs two responses")
        if not absent:
            sequences = (_tokens(row, chosen, chosen_mask), _tokens(row, rejected, rejected_mask))
            prefix = common_prefix_length(sequences)
            return sequences, prefix, prefix
    expected = " or ".join(f"{chosen}, {rejected}" for chosen, rejected, _, _ in TOKEN_COLUMNS)
    raise BadRow("missing_column", f"expected columns {expected}; it has: {', '.join(map(str, row))}")


def _tokens(row: Row, column: str, mask_column: str | None) -> list[int]:
    tokens, mask = row[column], row.get(mask_column or "")
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise BadRow("not_tokens", f"{column}: expected a list of token ids")
    if mask is not None:
        if not isinstance(mask, list) or len(mask) != len(tokens) or not all(value in (0, 1) for value in mask):
            raise BadRow("not_tokens", f"{mask_column}: expected one 0 or 1 for each token of {column}")
        tokens = [token for token, real in zip(tokens, mask, strict=True) if real]
    if not tokens:
        raise BadRow("empty_response", f"{column} is empty")
    return tokens
