"""Cells of a source to messages: role and content under their usual names, text parts, lists of turns, transcripts, JSON."""

import json
import re
from collections.abc import Sequence
from typing import Any

from rmtrain.data.comparison import Message
from rmtrain.data.rows.readers import SURROGATE
from rmtrain.recipe.schema import Messages

CALL = "tool_calls"


def tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Calls with their arguments as an object: where they are JSON text, as the OpenAI API has it, they are decoded.

    Raises:
        ValueError: it is no list of calls, each with the name of a function, alone or in `function`.
    """
    if not isinstance(calls, list):
        raise ValueError("expected a list of calls")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise ValueError("expected an object for each call")
    if "function" in call:
        return {**call, "function": _function(call["function"])}
    return _function(call)


def _function(function: Any) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a call has no name of a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _decoded(arguments)
    return {**function, "arguments": {} if arguments is None else arguments}


def _decoded(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and not SURROGATE.search(text) else text


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
TRANSCRIPT_START = "\n\nHuman:"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
THOUGHTS = ("reasoning_content", "thinking")
"""Keys of what the assistant thought before it wrote the content."""
CARRIED_KEYS = ("name", "tool_call_id", *THOUGHTS)
"""Texts beside role and content that go to the chat template."""
UNSUPPORTED_KEYS = ("images", "image", "audio", "audios", "video", "videos", "function_call")


class BadRow(Exception):
    """Why a row cannot be used: the reason it is counted under, and what was found, without the row's text."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def decoded(cell: Any, column: str, settings: Messages) -> Any:
    """A cell as it is, or, with `messages.decode_json`, what its text says; raises BadRow where that is no JSON.

    Args:
        cell: any cell; only text is decoded.
        column: its name, for the detail of a refusal.
        settings: whether text is JSON.
    """
    if not settings.decode_json or not isinstance(cell, str):
        return cell
    if not cell.strip():
        return None
    try:
        value = json.loads(cell, parse_constant=_refuse_constant)
        if SURROGATE.search(cell):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("not_json", f"{column}: half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", f"{column} is no JSON: {str(error)[:80]}") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def to_messages(cell: Any, column: str, settings: Messages, role: str) -> tuple[Message, ...]:
    """The messages of a cell, as `Message` says; empty system messages are left out.

    Args:
        cell: text, a message, a list of messages, or a list of texts, which are turns of the same role.
        column: the cell's name, for the detail of a refusal.
        settings: key names, further role names, and whether text is a transcript.
        role: who says what is plain text.

    Raises:
        BadRow: the cell is none of these.
    """
    if isinstance(cell, str):
        return _from_text(cell, column, settings, role)
    if isinstance(cell, dict):
        return (_message(cell, column, settings),)
    if is_turns(cell):
        return _turns(cell, column, role)
    if isinstance(cell, list) and cell:
        messages = (_message(item, column, settings) for item in cell)
        return tuple(message for message in messages if message["role"] != "system" or message["content"].strip())
    if cell is None:
        raise BadRow("empty_cell", f"{column} is null")
    if cell == []:
        raise BadRow("empty_cell", f"{column} is an empty list")
    raise BadRow("not_messages", f"{column} is {kind_of(cell)}; expected text, a message or a list of messages")


def is_turns(cell: Any) -> bool:
    """Whether a cell is a list of texts, some of which may be null."""
    if not isinstance(cell, list) or not cell or isinstance(cell[0], dict):  # most lists are of messages
        return False
    return all(item is None or isinstance(item, str) for item in cell)


def _turns(texts: Sequence[str | None], column: str, role: str) -> tuple[Message, ...]:
    if None in texts:
        raise BadRow("empty_message", f"{column}: turn {texts.index(None) + 1} is null")
    return tuple({"role": role, "content": text} for text in texts)


def _from_text(text: str, column: str, settings: Messages, role: str) -> tuple[Message, ...]:
    is_transcript = text.startswith(TRANSCRIPT_START)
    if is_transcript and settings.transcript is None:
        raise BadRow("transcript", f"{column} looks like an HH transcript; set messages.transcript: hh")
    return split_transcript(text) if is_transcript else ({"role": role, "content": text},)


def split_transcript(text: str) -> tuple[Message, ...]:
    """The turns of an Anthropic HH transcript, `\\n\\nHuman: ... \\n\\nAssistant: ...`, without the space around them."""
    _, *parts = TRANSCRIPT_TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple({"role": "user" if name == "Human" else "assistant", "content": content.strip()} for name, content in turns)


def _message(item: Any, column: str, settings: Messages) -> Message:
    if not isinstance(item, dict):
        raise BadRow("not_messages", f"{column} holds {kind_of(item)}; expected messages")
    role = _value(item, settings.role_key, "from" if settings.role_key == "role" else None, column)
    content = _content(item, settings, column)
    message: Message = {"role": _role(role, column, settings)}
    extra = _beside_content(item, column, settings) if len(item) > 2 or CALL in item else {}
    message["content"] = "" if content is None and CALL in extra else _text(content, column)
    return message | extra


def _beside_content(item: dict[str, Any], column: str, settings: Messages) -> Message:
    """What a message has beside its role and content that a chat template is given."""
    for key in UNSUPPORTED_KEYS:
        if item.get(key):
            raise BadRow("unsupported_message", f'{column}: a message has "{key}", which is not supported')
    extra: Message = {}
    for key in CARRIED_KEYS:
        value = item.get(key)
        if isinstance(value, str) and value and key not in (settings.role_key, settings.content_key):
            extra[key] = value
        elif value and key in THOUGHTS and not isinstance(value, str):
            raise BadRow("not_messages", f'{column}: "{key}" of a message is {kind_of(value)}; expected text')
    if calls := item.get(CALL):
        try:
            extra[CALL] = tool_calls(calls)
        except ValueError as error:
            raise BadRow("not_messages", f"{column}: {CALL} of a message: {error}") from None
    return extra


def _content(item: dict[str, Any], settings: Messages, column: str) -> Any:
    if item.get(CALL) and settings.content_key not in item:
        return item.get("value") if settings.content_key == "content" else None
    return _value(item, settings.content_key, "value" if settings.content_key == "content" else None, column)


def _value(item: dict[str, Any], key: str, other: str | None, column: str) -> Any:
    if key in item:
        return item[key]
    if other is not None and other in item:
        return item[other]
    raise BadRow("not_messages", f'{column}: a message has no "{key}"; it has: {", ".join(map(str, item))}')


def _role(name: Any, column: str, settings: Messages) -> str:
    if isinstance(name, str):
        role = settings.roles.get(name) or ROLES.get(name.lower())
        if role is not None:
            return role
    raise BadRow("unknown_role", f"{column}: role {str(name)[:40]!r} is not known; say what it is in messages.roles")


def _text(content: Any, column: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, column) for part in content)
    if content is None:
        raise BadRow("empty_message", f"{column}: the content of a message is null")
    raise BadRow("not_messages", f"{column}: the content of a message is {kind_of(content)}; expected text or text parts")


def _part(part: Any, column: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text", part.get("value")) if isinstance(part, dict) else None
    if kind == "text" and isinstance(text, str):
        return text
    if kind is not None and kind != "text":
        raise BadRow("not_text", f"{column}: a content part is {str(kind)[:40]!r}; only text is supported")
    raise BadRow("not_messages", f'{column}: a content part is {kind_of(part)}; expected {{"type": "text", "text": ...}}')


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        dict: "an object",
        list: "a list",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
