"""Rows to conversations: where the prompt is, what follows it on each side, and whether roles and turns are in order."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rmtrain.data.comparison import Message
from rmtrain.data.rows.cells import require_cell
from rmtrain.data.rows.messages import CALL, BadRow, decoded, is_turns, kind_of, to_messages
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.schema import PairSource, TextSource

Turns = tuple[Message, ...]
IMAGE_COLUMNS = ("images", "image")
NAMED_ROLES = 12
FOLLOWED = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""What each role may follow. Results of tools stand between two turns of the assistant."""


@dataclass(frozen=True, slots=True)
class Side:
    """A response as a row has it: the name of its column or place, and the cell."""

    name: str
    cell: Any


@dataclass(frozen=True, slots=True)
class Opening:
    """What a row says before its responses: an explicit prompt, with the cell it came from, and the text of a system message.

    Without an explicit prompt `prompt` is None: it is what the responses begin with.
    """

    source: TextSource
    prompt: Turns | None
    cell: Any
    system: str

    def conversation(self, side: Side) -> Turns:
        """The whole conversation of a side, ending in its reply; raises BadRow where the side is none."""
        replies = to_messages(side.cell, side.name, self.source.messages, "assistant")
        if not replies or is_empty(replies[-1]):
            raise BadRow("empty_response", f"{side.name} ends with an empty turn")
        asked = self.prompt if self.prompt is not None and is_turns(self.cell) else ()
        if is_turns(side.cell) and max(len(asked), len(replies)) > 1:
            whole = self._in_turn(asked, replies, side.name)
        else:
            whole = replies if self.prompt is None else _after_prompt(self.prompt, replies)
        return _with_system(self.system, whole)

    def _in_turn(self, asked: Turns, replies: Turns, name: str) -> Turns:
        """The turns of the prompt and those of a side, one after the other."""
        if len(asked) != len(replies):
            questions = f"the prompt {len(asked)} turns" if asked else "the prompt no list of turns"
            hint = "; for several responses set lists: true" if isinstance(self.source, PairSource) else ""
            raise BadRow("role_order", f"{name} is a list of {len(replies)} texts, and {questions}{hint}")
        return tuple(chain.from_iterable(zip(asked, replies, strict=True)))

    def refuse_repeated(self, sides: Sequence[Side]) -> None:
        """Raise BadRow where the prompt is text, and the text of every side begins with it."""
        start = self.cell.strip() if isinstance(self.cell, str) else ""
        if start and all(isinstance(side.cell, str) and side.cell.startswith(start) for side in sides):
            raise BadRow(
                "response_repeats_prompt", "both sides start with the text of the prompt; set prompt: implicit, or cut them"
            )


def opening(row: Row, source: TextSource) -> Opening:
    """What a row says before its responses; raises BadRow where that cannot be read."""
    for column in IMAGE_COLUMNS:
        if row.get(column):
            raise BadRow("images", f'the row has "{column}"; only text is supported')
    cell = _prompt_cell(row, source)
    prompt = None if cell is None else _prompt(cell, source)
    return Opening(source, prompt, cell, "" if source.system is None else _system(row, source.system))


def read_side(row: Row, column: str, source: TextSource) -> Side:
    """The side in a column; raises BadRow where there is no such column."""
    return Side(column, decoded(require_cell(row, column), column, source.messages))


def _prompt_cell(row: Row, source: TextSource) -> Any:
    """The cell of an explicit prompt; None: the prompt is implicit."""
    if source.prompt == "implicit":
        return None
    if source.prompt == "auto":
        return decoded(row.get("prompt"), "prompt", source.messages)
    cells = [decoded(require_cell(row, column), column, source.messages) for column in source.prompt_columns]
    if len(cells) == 1:
        cell = cells[0]
    else:
        cell = "\n".join(filter(None, (_line(*part) for part in zip(cells, source.prompt_columns, strict=True))))
    if cell is None or cell == []:
        raise BadRow("empty_prompt", f"{source.prompt_columns[0]} is {'null' if cell is None else 'an empty list'}")
    return cell


def _line(cell: Any, column: str) -> str:
    if cell is not None and not isinstance(cell, str):
        raise BadRow("not_messages", f"{column} is {kind_of(cell)}; the columns of a prompt of several must be text")
    return cell if cell and cell.strip() else ""


def _prompt(cell: Any, source: TextSource) -> Turns:
    column = " and ".join(source.prompt_columns) or "prompt"
    prompt = to_messages(cell, column, source.messages, "user")
    if isinstance(cell, str) and prompt[-1] == {"role": "assistant", "content": ""}:  # a transcript up to "Assistant:"
        prompt = prompt[:-1]
    if not prompt or is_empty(prompt[-1]):
        raise BadRow("empty_prompt", f"{column} is empty")
    return prompt


def _system(row: Row, column: str) -> str:
    text = require_cell(row, column)
    if text is not None and not isinstance(text, str):
        raise BadRow("not_messages", f"{column} is no text")
    return text or ""


def _with_system(text: str, side: Turns) -> Turns:
    message: Message = {"role": "system", "content": text}
    if not text.strip() or (side and is_same(side[0], message)):
        return side
    return (message, *side)


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
    return len(side) > len(prompt) and all(is_same(ours, theirs) for ours, theirs in zip(prompt, side, strict=False))


def is_empty(message: Message) -> bool:
    """Whether a message says nothing: no text, and no call of a tool."""
    return not message["content"].strip() and CALL not in message


def is_same(one: Message, other: Message) -> bool:
    """Whether two messages say the same, save for the space around it."""
    return one == other or (one["role"] == other["role"] and text_of(one) == text_of(other))


def text_of(message: Message) -> str:
    """All that a message says, without the space around it: its content and, if it has more, that as JSON."""
    content: str = message["content"].strip()
    if len(message) == 2:
        return content
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return f"{content}\n{json.dumps(rest, sort_keys=True, default=str)}"


def split_prompt(sides: Sequence[Turns], at_last_turn: bool) -> tuple[Turns, tuple[Turns, ...]]:
    """The messages that all sides begin with, never the last of a side, and what follows on each side.

    Args:
        sides: whole conversations.
        at_last_turn: everything but the last message must be the prompt, as in HH transcripts.

    Raises:
        BadRow: the sides answer different prompts, or their roles and turns are out of order.
    """
    shared = 0
    for messages in zip(*(side[:-1] for side in sides), strict=False):
        if not all(is_same(messages[0], message) for message in messages):
            break
        shared += 1
    if at_last_turn and any(len(side) != shared + 1 for side in sides):
        raise BadRow("different_prompts", "the sides differ before their last turn")
    if at_last_turn and not shared:
        raise BadRow("not_a_transcript", "a side does not start with \\n\\nHuman:")
    prompt, responses = sides[0][:shared], tuple(side[shared:] for side in sides)
    for response in responses:
        _check_turns(prompt, response)
    return prompt, responses


def _check_turns(prompt: Turns, response: Turns) -> None:
    if response[-1]["role"] != "assistant":
        raise BadRow("role_order", f"a side ends with a turn of the {response[-1]['role']}")
    if response[0]["role"] != "assistant":
        raise BadRow("different_prompts", f"the sides part at a turn of the {response[0]['role']}")
    opening = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    turns = (*opening, *response)
    first = "user" if opening else "assistant"
    roles = [message["role"] for message in turns]
    if roles[0] != first or not all(map(_follows, roles, roles[1:])):
        raise BadRow("role_order", f"expected user and assistant in turn, got {', '.join(roles[:NAMED_ROLES])}")
    if any(is_empty(message) and message["role"] != "tool" for message in turns):
        raise BadRow("empty_message", "a turn before the last is empty")


def _follows(before: str, role: str) -> bool:
    """Whether a turn of a role may follow one of another."""
    return before in FOLLOWED.get(role, ())
