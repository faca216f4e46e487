"""The cells of a row by dotted path, such as `answers.0.text`, and what they hold: text, turns, transcripts, JSON, tool calls, tools."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from rmtrain.data.comparison import BadRow, Message, Turns
from rmtrain.data.rows.arrow import Unreadable
from rmtrain.data.rows.readers import SURROGATE, Row, has_lone_surrogate
from rmtrain.recipe.preference_labels import NUMBER
from rmtrain.recipe.schema import Messages, TextSource

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
    return str(value) if isinstance(value, Unreadable) else JSON_NAMES.get(type(value), type(value).__name__)


def decode_cell(cell: Any, column: str, settings: Messages) -> Any:
    """Return a cell or, with `messages.decode_json`, the JSON value of its text (null for an empty one); raises BadRow `not_json`.

    Messages that are encoded once more, in a list or within the text, are decoded as well.
    """
    if not settings.decode_json:
        return cell
    if isinstance(cell, str):
        cell = decode_json(cell, column) if cell.strip() else None
    if isinstance(cell, list):
        return [decode_messages(item, column, settings) for item in cell]
    return decode_messages(cell, column, settings)


def decode_messages(cell: Any, column: str, settings: Messages) -> Any:
    """Return a cell or, with `messages.decode_json`, the messages that it encodes as JSON text."""
    while settings.decode_json and isinstance(cell, str) and encodes_messages(cell, settings):
        cell = decode_json(cell, column)
    return cell


def decode_json(text: str, column: str) -> Any:
    """Return the JSON value of a text; raises BadRow `not_json`."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
        if has_lone_surrogate(text, value):
            raise BadRow("not_json", f"{column} has a lone surrogate (half of a UTF-16 pair)")
    except (ValueError, RecursionError) as error:
        problem = PYTHON_ADVICE if PYTHON_LITERAL.match(text) else str(error)[:80]
        raise BadRow("not_json", f"{column} is not JSON: {problem}") from None
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
TOOLS = "tools"
"""Template variable of the tools that a model may call."""
THOUGHTS = ("reasoning_content", "thinking")
"""Keys of the assistant's reasoning before the content."""
CARRIED_KEYS = ("name", "tool_call_id", *THOUGHTS)
"""Texts next to role and content that are passed to the chat template."""
ENCODED = re.compile(r"""\s*+(?:array\(|["'])?[\s\[(]*+\{\s*\\*["']""")
"""The beginning of an object, or of a list of objects, that is written as text."""
PYTHON_LITERAL = re.compile(r"\s*+(?:array\()?[\s\[({]*[\[({]\s*'")
PYTHON_ADVICE = "it is a Python literal (a repr); save it with json.dumps"
ENCODED_TURNS = re.compile(r"""\s*\[\s*(["']).*\1\s*\]\s*""", re.DOTALL)
"""A list of texts that is written as text."""
UNSUPPORTED_KEYS = ("images", "image", "audio", "audios", "video", "videos", "function_call")


def to_messages(cell: Any, column: str, settings: Messages, role: str) -> Turns:
    """Return the messages of a cell; empty system messages are left out.

    A cell is text, with the role `role`; a list of such texts, which are turns; a message, or a list of messages. Raises BadRow, naming the
    column, for any other, and for text that encodes messages.
    """
    if isinstance(cell, str):
        refuse_encoded(cell, column, settings)
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
        for text in cell:
            refuse_encoded(text, column, settings)
        return tuple({"role": role, "content": text} for text in cell)
    if isinstance(cell, list) and cell:
        messages = (_message(item, column, settings) for item in cell)
        return tuple(message for message in messages if message["role"] != "system" or message["content"].strip())
    if cell is None or cell == []:
        raise BadRow("empty_cell", f"{column} is {'null' if cell is None else 'an empty list'}")
    raise BadRow("not_messages", f"{column} is {kind_of(cell)}; expected text, a message or a list of messages")


def encodes_messages(text: str, settings: Messages) -> bool:
    """Return whether a text is messages as JSON, also where it is encoded more than once."""
    if not ENCODED.match(text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, str):
        return encodes_messages(value, settings)
    items, (role_keys, content_keys) = value if isinstance(value, list) else [value], _message_keys(settings)
    if not all(isinstance(item, dict) and item.keys() & role_keys and item.keys() & content_keys for item in items):
        return False
    return any(_role(item[key], settings) for item in items for key in role_keys & item.keys())


def refuse_encoded(text: str, column: str, settings: Messages) -> None:
    """Raise BadRow `messages_as_text` for text that is messages as JSON or as a Python literal."""
    if encodes_messages(text, settings):
        remedy = "decode them with prepare" if settings.decode_json else "set messages: {decode_json: true}"
        raise BadRow("messages_as_text", f"{column} has messages as JSON text; {remedy}")
    if ENCODED.match(text) and PYTHON_LITERAL.match(text):
        # By its keys, not by evaluating it: a list of numpy, as pandas writes it to CSV, has no commas.
        values = dict(re.findall(r"'(\w+)'\s*:\s*(?:'(\w*)')?", text))
        role_keys, content_keys = _message_keys(settings)
        if values.keys() & content_keys and any(_role(values[key], settings) for key in role_keys & values.keys()):
            raise BadRow("messages_as_text", f"{column} has messages as text: {PYTHON_ADVICE}")


def encodes_turns(cell: Any) -> bool:
    """Return whether a cell is text that is a list of texts, as JSON or as a Python literal."""
    return isinstance(cell, str) and ENCODED_TURNS.fullmatch(cell) is not None


def _message_keys(settings: Messages) -> tuple[set[str], set[str]]:
    """Return the keys that a message may have its role under, and those of its content."""
    return {"role", "from", settings.role_key}, {"content", "value", settings.content_key, CALL}


def _role(name: Any, settings: Messages) -> str | None:
    return (settings.roles.get(name) or ROLES.get(name.lower())) if isinstance(name, str) else None


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
    role = _role(name, settings)
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


def template_values(row: Row, source: TextSource) -> dict[str, Any]:
    """Return the template variables of a row, without those whose cell is null or missing; raises BadRow as `tool_definitions`."""
    values = {}
    for name, column in source.variables.items():
        cell = find_cell(row, column)
        if name == TOOLS:
            cell = tool_definitions(cell, column)
        elif source.messages.decode_json and isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
            cell = decode_json(cell, column)
        if not is_blank(cell):
            values[name] = cell
    return values


def tool_definitions(cell: Any, name: str) -> list[dict[str, Any]] | None:
    """Return the tools of a cell, a list of objects or JSON text of it; None where it has none.

    Raises BadRow, with the name of the cell: `not_json`, or `bad_tools` for any other value.
    """
    tools = decode_json(cell, name) if isinstance(cell, str) and cell.strip() else cell
    if is_blank(tools) or tools == []:  # templates write a heading for an empty list
        return None
    if not isinstance(tools, list):
        raise BadRow("bad_tools", f"{name} is {kind_of(tools)}; expected a list of tool definitions")
    definitions = [decode_json(tool, name) if isinstance(tool, str) else tool for tool in tools]
    for tool in definitions:
        if not isinstance(tool, dict):
            raise BadRow("bad_tools", f"{name} has {kind_of(tool)}; expected tool definitions")
    return definitions
