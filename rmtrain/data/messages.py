"""Cells of a source to messages: role and content under their usual names, text parts, transcripts."""

import re
from typing import Any

from rmtrain.data.comparison import Message
from rmtrain.recipe.schema import Messages

ROLES = {
    "system": "system",
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
}
TRANSCRIPT_START = "\n\nHuman:"
TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
UNSUPPORTED_KEYS = ("tool_calls", "images", "reasoning_content", "thinking")


class BadRow(Exception):
    """Why a row cannot be used: the reason it is counted under, and what was found, without the row's text."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def to_messages(cell: Any, column: str, settings: Messages, role: str) -> tuple[Message, ...]:
    """The messages of a cell, each `{"role": system | user | assistant, "content": str}`; empty system messages are left out.

    Args:
        cell: text, a message, or a list of messages.
        column: the cell's name, for the detail of a refusal.
        settings: key names, further role names, and whether text is a transcript.
        role: who says a cell that is plain text.

    Raises:
        BadRow: the cell is none of these.
    """
    if isinstance(cell, str):
        return _from_text(cell, column, settings, role)
    if isinstance(cell, dict):
        return (_message(cell, column, settings),)
    if isinstance(cell, list) and cell:
        messages = (_message(item, column, settings) for item in cell)
        return tuple(message for message in messages if message["role"] != "system" or message["content"].strip())
    if cell is None:
        raise BadRow("empty_cell", f"{column} is null")
    if cell == []:
        raise BadRow("empty_cell", f"{column} is an empty list")
    raise BadRow("not_messages", f"{column} is {_kind(cell)}; expected text, a message or a list of messages")


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
        raise BadRow("not_messages", f"{column} holds {_kind(item)}; expected messages")
    role = _value(item, settings.role_key, "from" if settings.role_key == "role" else None, column)
    content = _value(item, settings.content_key, "value" if settings.content_key == "content" else None, column)
    for key in UNSUPPORTED_KEYS:
        if item.get(key):
            raise BadRow("unsupported_message", f'{column}: a message has "{key}", which is not supported')
    return {"role": _role(role, column, settings), "content": _text(content, column)}


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
    raise BadRow("not_messages", f"{column}: the content of a message is {_kind(content)}; expected text or text parts")


def _part(part: Any, column: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind is not None and kind != "text":
        raise BadRow("not_text", f"{column}: a content part is {str(kind)[:40]!r}; only text is supported")
    raise BadRow("not_messages", f'{column}: a content part is {_kind(part)}; expected {{"type": "text", "text": ...}}')


def _kind(value: Any) -> str:
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
