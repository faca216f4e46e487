"""The cells of a row by dotted path, such as `answers.0.text`, and the messages in them: text, turns, transcripts, JSON, tool calls."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from rmtrain.data.comparison import BadRow, Message, Turns
from rmtrain.data.rows.readers import SURROGATE, Row, has_lone_surrogate
from rmtrain.recipe.schema import Messages
from rmtrain.recipe.sources import NUMBER

INDEX_DIGITS = 9  # int() raises for a text of more than 4,300 digits
MISSING = object()
"""Default of `find_cell` that no cell is equal to."""
JSON_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def cells(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(path, cell)` for each leaf of a row in order; an empty list or object is a leaf."""
    if not value or not isinstance(value, Mapping | list):
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from cells(inner, f"{path}.{name}" if path else str(name))


def find_cell(row: Any, path: str, default: Any = None) -> Any:
    """Return the cell at a dotted path such as `answers.0.text`, or `default` where it is missing; names may contain dots themselves."""
    if isinstance(row, dict):
        if path in row:
            return row[path]
        parts = path.split(".")
        for size in range(len(parts) - 1, 0, -1):
            name, rest = ".".join(parts[:size]), ".".join(parts[size:])
            if name in row and (cell := find_cell(row[name], rest, MISSING)) is not MISSING:
                return cell
    elif isinstance(row, list):
        index, dot, rest = path.partition(".")
        if index.isdecimal() and len(index) <= INDEX_DIGITS and int(index) < len(row):
            return find_cell(row[int(index)], rest, default) if dot else row[int(index)]
    return default


def require_cell(row: Row, column: str) -> Any:
    """Return the cell of a column; raises BadRow where it is missing."""
    cell = find_cell(row, column, MISSING)
    if cell is MISSING:
        raise BadRow("missing_column", f'no column "{column}"; it has: {", ".join(map(str, row))}')
    return cell


def is_blank(cell: Any) -> bool:
    """Return whether a cell holds nothing: null, text of spaces only, or NaN."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def to_number(cell: Any) -> float | None:
    """Return a cell as a finite number, also where the number is written as text; None for anything else, including true and false."""
    if isinstance(cell, str):
        cell = cell.strip()
        if not NUMBER.fullmatch(cell):
            return None
    elif isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
        return None
    try:
        number = float(cell)
    except (OverflowError, ValueError):  # an integer that is too large, a signalling NaN
        return None
    return number if math.isfinite(number) else None


def kind_of(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    return JSON_NAMES.get(type(value), type(value).__name__)


def decode_cell(cell: Any, column: str, settings: Messages) -> Any:
    """Return a cell or, with `messages.decode_json`, the JSON value of its text (null for an empty one); raises BadRow `not_json`."""
    if not settings.decode_json or not isinstance(cell, str):
        return cell
    if not cell.strip():
        return None

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(cell, parse_constant=refuse)
        if has_lone_surrogate(cell, value):
            raise BadRow("not_json", f"{column} has a lone surrogate (half of a UTF-16 pair)")
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", f"{column} is not JSON: {str(error)[:80]}") from None
    return value


ALIASES = {
    "system": ("developer",),
    "user": ("human", "prompter"),
    "assistant": ("gpt", "bot", "chatbot", "chatgpt", "ai", "model"),
    "tool": ("function", "observation", "ipython"),
}
ROLES = {name: role for role, aliases in ALIASES.items() for name in (role, *aliases)}
SHAREGPT_KEYS = {"role": "from", "content": "value"}
"""Keys that are understood in place of the usual ones."""
TRANSCRIPT_START = "\n\nHuman:"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
CALL = "tool_calls"
THOUGHTS = ("reasoning_content", "thinking")
"""Keys of the assistant's reasoning before the content."""
CARRIED_KEYS = ("name", "tool_call_id", *THOUGHTS)
"""Texts next to role and content that are passed to the chat template."""
UNSUPPORTED_KEYS = ("images", "image", "audio", "audios", "video", "videos", "function_call")


def to_messages(cell: Any, column: str, settings: Messages, role: str) -> Turns:
    """Return the messages of a cell; empty system messages are left out.

    A cell is text, with the role `role`; a list of such texts, which are turns; a message, or a list of messages. Raises BadRow, naming the
    column, for any other.
    """
    if isinstance(cell, str):
        if not cell.startswith(TRANSCRIPT_START):
            return ({"role": role, "content": cell},)
        if settings.transcript is None:
            raise BadRow("transcript", f"{column} looks like an HH transcript; set messages.transcript: hh")
        return split_transcript(cell)
    if isinstance(cell, dict):
        return (_message(cell, column, settings),)
    if is_turns(cell):
        if None in cell:
            raise BadRow("empty_message", f"{column}: turn {cell.index(None) + 1} is null")
        return tuple({"role": role, "content": text} for text in cell)
    if isinstance(cell, list) and cell:
        messages = (_message(item, column, settings) for item in cell)
        return tuple(message for message in messages if message["role"] != "system" or message["content"].strip())
    if cell is None or cell == []:
        raise BadRow("empty_cell", f"{column} is {'null' if cell is None else 'an empty list'}")
    raise BadRow("not_messages", f"{column} is {kind_of(cell)}; expected text, a message or a list of messages")


def is_turns(cell: Any) -> bool:
    """Return whether a cell is a list of texts, some of which may be null."""
    if not isinstance(cell, list) or not cell or isinstance(cell[0], dict):  # most lists are lists of messages
        return False
    return all(item is None or isinstance(item, str) for item in cell)


def split_transcript(text: str) -> Turns:
    """Return the turns of an Anthropic HH transcript, `\\n\\nHuman: ... \\n\\nAssistant: ...`, without the space around them."""
    _, *parts = TRANSCRIPT_TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple({"role": "user" if name == "Human" else "assistant", "content": content.strip()} for name, content in turns)


def _message(item: Any, column: str, settings: Messages) -> Message:
    if not isinstance(item, dict):
        raise BadRow("not_messages", f"{column} contains {kind_of(item)}; expected messages")
    name = _value(item, settings.role_key, column)
    role = (settings.roles.get(name) or ROLES.get(name.lower())) if isinstance(name, str) else None
    if role is None:
        raise BadRow("unknown_role", f"{column}: unknown role {str(name)[:40]!r}; map it in messages.roles")
    calls, key = item.get(CALL), settings.content_key
    may_lack_content = calls and key not in item and SHAREGPT_KEYS.get(key, key) not in item
    content = None if may_lack_content else _value(item, key, column)
    more = _further_keys(item, column, settings) if len(item) > 2 or calls else {}
    text = "" if content is None and CALL in more else _text(content, column)
    return {"role": role, "content": text, **more}


def _value(item: dict[str, Any], key: str, column: str) -> Any:
    for name in (key, SHAREGPT_KEYS.get(key, key)):
        if name in item:
            return item[name]
    raise BadRow("not_messages", f'{column}: a message has no "{key}"; it has: {", ".join(map(str, item))}')


def _text(content: Any, column: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise BadRow("empty_message", f"{column}: the content of a message is null")
    if not isinstance(content, list):
        raise BadRow("not_messages", f"{column}: the content of a message is {kind_of(content)}; expected text or text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("value")) if isinstance(part, dict) else part
        if kind not in (None, "text"):
            raise BadRow("not_text", f"{column}: a content part is {str(kind)[:40]!r}; only text is supported")
        if not isinstance(text, str) or (isinstance(part, dict) and kind is None):
            expected = 'expected {"type": "text", "text": ...}'
            raise BadRow("not_messages", f"{column}: a content part is {kind_of(part)}; {expected}")
        texts.append(text)
    return "".join(texts)


def _further_keys(item: dict[str, Any], column: str, settings: Messages) -> Message:
    """Return the keys next to role and content that are passed to the chat template."""
    for key in UNSUPPORTED_KEYS:
        if item.get(key):
            raise BadRow("unsupported_message", f'{column}: a message has "{key}", which is not supported')
    more: Message = {}
    for key in CARRIED_KEYS:
        value = item.get(key)
        if isinstance(value, str) and value and key not in (settings.role_key, settings.content_key):
            more[key] = value
        elif value and key in THOUGHTS and not isinstance(value, str):
            raise BadRow("not_messages", f'{column}: "{key}" of a message is {kind_of(value)}; expected text')
    if calls := item.get(CALL):
        try:
            more[CALL] = tool_calls(calls)
        except ValueError as error:
            raise BadRow("not_messages", f"{column}: {CALL} of a message: {error}") from None
    return more


def tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Return calls with their arguments as an object; arguments as JSON text, as the OpenAI API has them, are decoded.

    Raises ValueError unless each call has the name of a function, directly or under `function`.
    """
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError("expected a list of objects")
    return [{**call, "function": _function(call["function"])} if "function" in call else _function(call) for call in calls]


def _function(function: Any) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a call has no function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not SURROGATE.search(arguments):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            value = None
        arguments = value if isinstance(value, dict) else arguments
    return {**function, "arguments": {} if arguments is None else arguments}
