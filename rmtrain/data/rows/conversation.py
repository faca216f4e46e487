"""Rows to conversations, and conversations to a comparison: their shared prompt, checked roles and turns, and each different response."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

from rmtrain.data.comparison import BadRow, Comparison, Message, Preference, Target, Turns
from rmtrain.data.rows.messages import (
    CALL,
    PYTHON_ADVICE,
    PYTHON_LITERAL,
    decode_cell,
    encodes_turns,
    is_turns,
    kind_of,
    refuse_encoded,
    require_cell,
    to_messages,
)
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.schema import PairSource, TextSource

IMAGE_COLUMNS = ("images", "image")
NAMED_ROLES = 12
FOLLOWED = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""The roles that each role may follow. Results of tools come between two turns of the assistant."""


class ResponseCell(NamedTuple):
    """A response as a row has it: the name of its column or path, and the cell."""

    name: str
    cell: Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """The context of a row's responses."""

    source: TextSource
    turns: Turns | None
    """None: the prompt is implicit, the common beginning of the responses."""
    cell: Any
    """The cell that an explicit prompt was read from."""
    system: str
    """Text of a system message."""

    def conversation(self, response: ResponseCell) -> Turns:
        """Return the whole conversation of a response, ending in its reply; raises BadRow where the cell is not a response."""
        replies = to_messages(response.cell, response.name, self.source.messages, "assistant")
        if not replies or _is_empty(replies[-1]):
            raise BadRow("empty_response", f"{response.name} ends with an empty turn")
        questions = self.turns if self.turns is not None and is_turns(self.cell) else ()
        if is_turns(response.cell) and max(len(questions), len(replies)) > 1:
            if len(questions) != len(replies):
                prompt = f"the prompt {len(questions)} turns" if questions else "the prompt is not a list of turns"
                hint = "; for several responses set lists: true" if isinstance(self.source, PairSource) else ""
                raise BadRow("role_order", f"{response.name} has {len(replies)} turns, but {prompt}{hint}")
            whole = tuple(chain.from_iterable(zip(questions, replies, strict=True)))
        else:
            whole = replies if self.turns is None else _after_prompt(self.turns, replies)
        system: Message = {"role": "system", "content": self.system}
        needs_system = self.system.strip() and not (whole and _is_same(whole[0], system))
        return (system, *whole) if needs_system else whole

    def conversations(self, responses: Sequence[ResponseCell]) -> list[Turns]:
        """Return the conversation of each response; raises BadRow also where all are texts that begin with the prompt, or encode turns."""
        if encodes_turns(self.cell) and all(encodes_turns(response.cell) for response in responses):
            remedy = f": {PYTHON_ADVICE}" if PYTHON_LITERAL.match(self.cell) else "; set messages: {decode_json: true}"
            raise BadRow("messages_as_text", f"the prompt and {responses[0].name} have lists of turns as text{remedy}")
        start = self.cell.strip() if isinstance(self.cell, str) else ""
        if start and all(isinstance(response.cell, str) and response.cell.startswith(start) for response in responses):
            detail = "all responses begin with the prompt; remove it from them, or set prompt: implicit"
            raise BadRow("response_repeats_prompt", detail)
        return [self.conversation(response) for response in responses]


def read_prompt(row: Row, source: TextSource) -> Prompt:
    """Return the prompt of a row; raises BadRow where it cannot be read."""
    for column in IMAGE_COLUMNS:
        if row.get(column):
            raise BadRow("images", f'the row has "{column}"; only text is supported')
    cell = _prompt_cell(row, source)
    turns = None
    if cell is not None:
        column = " and ".join(source.prompt_columns) or "prompt"
        turns = to_messages(cell, column, source.messages, "user")
        if isinstance(cell, str) and turns[-1] == {"role": "assistant", "content": ""}:  # a transcript that ends in "Assistant:"
            turns = turns[:-1]
        if not turns or _is_empty(turns[-1]):
            raise BadRow("empty_prompt", f"{column} is empty")
    system = None if source.system is None else require_cell(row, source.system)
    if system is not None and not isinstance(system, str):
        raise BadRow("not_messages", f"{source.system} is {kind_of(system)}; expected text")
    refuse_encoded(system or "", str(source.system), source.messages)
    return Prompt(source, turns, cell, system or "")


def _prompt_cell(row: Row, source: TextSource) -> Any:
    """Return the cell of an explicit prompt; None: the prompt is implicit."""
    if source.prompt == "implicit":
        return None
    if source.prompt == "auto":
        return decode_cell(row.get("prompt"), "prompt", source.messages)
    cells = [decode_cell(require_cell(row, column), column, source.messages) for column in source.prompt_columns]
    if len(cells) > 1:
        for column, cell in zip(source.prompt_columns, cells, strict=True):
            if cell is not None and not isinstance(cell, str):
                raise BadRow("not_messages", f"{column} is {kind_of(cell)}; several prompt columns must be text")
            refuse_encoded(cell or "", column, source.messages)
        return "\n".join(cell for cell in cells if cell and cell.strip())
    if cells[0] is None or cells[0] == []:
        raise BadRow("empty_prompt", f"{source.prompt_columns[0]} is {'null' if cells[0] is None else 'an empty list'}")
    return cells[0]


def read_response(row: Row, column: str, source: TextSource) -> ResponseCell:
    """Return the response in a column; raises BadRow where the column is missing."""
    return ResponseCell(column, decode_cell(require_cell(row, column), column, source.messages))


def _after_prompt(prompt: Turns, turns: Turns) -> Turns:
    """Return the prompt and the turns that follow it, unless the turns begin with the prompt themselves."""

    def starts_with(turns: Turns, prompt: Turns) -> bool:
        return len(turns) > len(prompt) and all(_is_same(ours, theirs) for ours, theirs in zip(prompt, turns, strict=False))

    has_system = bool(turns) and turns[0]["role"] == "system"
    if starts_with(turns, prompt) or (has_system and starts_with(turns[1:], prompt)):
        return turns
    if prompt[0]["role"] == "system" and starts_with(turns, prompt[1:]):
        return (prompt[0], *turns)
    if turns and turns[0]["role"] != "assistant":
        raise BadRow("different_prompts", "a response begins with a message that is not in the prompt column")
    return (*prompt, *turns)


def _is_empty(message: Message) -> bool:
    """Return whether a message has neither text nor a tool call."""
    return not message["content"].strip() and CALL not in message


def _is_same(one: Message, other: Message) -> bool:
    """Return whether two messages are equal, ignoring the space around their content."""
    return one == other or (one["role"] == other["role"] and text_of(one) == text_of(other))


def text_of(message: Message) -> str:
    """Return the content of a message without the space around it and, if the message has more keys, those as JSON."""
    content: str = message["content"].strip()
    if len(message) == 2:
        return content
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    return f"{content}\n{json.dumps(more, sort_keys=True, default=str)}"


ResponseKey = tuple[tuple[str, str], ...]


def response_key(response: Turns) -> ResponseKey:
    """Return a key that is equal for responses with the same roles and texts, ignoring the space around them."""
    return tuple((message["role"], text_of(message)) for message in response)


def assemble(
    conversations: Sequence[Turns],
    edges: Sequence[Preference],
    source: TextSource,
    row_id: str,
    targets: Sequence[Target] = (),
) -> Comparison:
    """Return the comparison of whole conversations: of two or more that `edges` compare, or of any number that have `targets`.

    Equal responses are merged, and those that no label names are left out. Raises BadRow where they answer different prompts, roles are
    out of order, or only equal responses are compared (`identical`).
    """
    prompt, responses = _split_prompt(conversations, at_last_turn=source.messages.transcript == "hh")
    if len(responses) == 2 and not targets:  # the usual case, without building the keys of all messages
        one, other = responses
        if len(one) != len(other) or not all(map(_is_same, one, other)):
            return Comparison(row_id, source.title, prompt, responses, tuple(edges))
    first: dict[ResponseKey, int] = {}
    same_as = [first.setdefault(response_key(response), number) for number, response in enumerate(responses)]
    moved = [replace(edge, winner=same_as[edge.winner], loser=same_as[edge.loser]) for edge in edges]
    moved_targets = [replace(target, response=same_as[target.response]) for target in targets]
    used, kept, kept_targets = pruned([edge for edge in moved if edge.winner != edge.loser], moved_targets)
    if not used:
        raise BadRow("identical", "the responses are the same")
    return Comparison(row_id, source.title, prompt, tuple(responses[number] for number in used), kept, kept_targets)


def _split_prompt(conversations: Sequence[Turns], at_last_turn: bool) -> tuple[Turns, tuple[Turns, ...]]:
    """Split conversations into the messages that all begin with, which never include the last one, and the rest of each.

    With `at_last_turn`, everything but the last message must be the prompt, as in HH transcripts.
    """
    shared = 0
    for messages in zip(*(turns[:-1] for turns in conversations), strict=False):
        if not all(_is_same(messages[0], message) for message in messages):
            break
        shared += 1
    if at_last_turn and any(len(turns) != shared + 1 for turns in conversations):
        raise BadRow("different_prompts", "the conversations differ before their last turn")
    if at_last_turn and not shared:
        raise BadRow("not_a_transcript", "a conversation does not start with \\n\\nHuman:")
    prompt, responses = conversations[0][:shared], tuple(turns[shared:] for turns in conversations)
    for response in responses:
        _check_turns(prompt, response)
    return prompt, responses


def _check_turns(prompt: Turns, response: Turns) -> None:
    if response[-1]["role"] != "assistant":
        raise BadRow("role_order", f"a response ends with a turn of the {response[-1]['role']}")
    if response[0]["role"] != "assistant":
        raise BadRow("different_prompts", f"the conversations first differ at a turn of the {response[0]['role']}")
    has_system = bool(prompt) and prompt[0]["role"] == "system"
    turns = (*prompt[has_system:], *response)
    roles = [message["role"] for message in turns]
    begins_well = roles[0] == ("user" if len(turns) > len(response) else "assistant")
    if not begins_well or any(before not in FOLLOWED.get(role, ()) for before, role in pairwise(roles)):
        raise BadRow("role_order", f"expected user and assistant in turn, got {', '.join(roles[:NAMED_ROLES])}")
    if any(_is_empty(message) and message["role"] != "tool" for message in turns):
        raise BadRow("empty_message", "a turn before the last is empty")


def pruned(
    edges: Sequence[Preference], targets: Sequence[Target]
) -> tuple[list[int], tuple[Preference, ...], tuple[Target, ...]]:
    """Return the responses that a label names, in order, and the labels renumbered to these alone, equal preferences merged."""
    named = {response for edge in edges for response in (edge.winner, edge.loser)} | {target.response for target in targets}
    used = sorted(named)
    place = {response: number for number, response in enumerate(used)}
    moved = merged(replace(edge, winner=place[edge.winner], loser=place[edge.loser]) for edge in edges)
    return used, moved, tuple(replace(target, response=place[target.response]) for target in targets)


def merged(edges: Iterable[Preference]) -> tuple[Preference, ...]:
    """Merge equal preferences into one with the sum of their weights; opposite ones, and those with other margins, stay apart."""
    by_key: dict[Preference, Preference] = {}
    for edge in edges:
        key = replace(edge, weight=1.0)
        known = by_key.get(key)
        by_key[key] = edge if known is None else replace(known, weight=known.weight + edge.weight, rows=known.rows + edge.rows)
    return tuple(by_key.values())
