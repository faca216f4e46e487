"""Data types of one row: a prompt, K >= 2 responses and the preferences among them, as text or as tokens; and their hashes and ranks."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.recipe.sources import Fold

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant" | "tool", "content": str}`, and the further keys that chat templates use where a row has them:
`name`, `tool_call_id`, `tool_calls`, `reasoning_content`, `thinking`."""
Turns = tuple[Message, ...]
"""Messages in order: a prompt, a response or a whole conversation."""
Tokens = Sequence[int] | NDArray[np.int32]
"""Token ids."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One edge of a comparison: `winner` and `loser` index its responses.

    `probability` is the target probability that the winner is better (0.5 is a tie), `margin` is subtracted inside the sigmoid (Llama 2,
    arXiv:2307.09288, section 3.2.2), `weight` scales the edge within its comparison. Where a comparison was made of several rows, `rows`
    are the ids of those that state the edge, or that its two responses come from; it is not stored.
    """

    winner: int
    loser: int
    margin: float = 0.0
    probability: float = 1.0
    weight: float = 1.0
    rows: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """What the reward of one response should be: a score, or the probability that it is right.

    `weight` scales it within its comparison. `rows` are the ids of the rows that state it, where a comparison was made of several; it is
    not stored.
    """

    response: int
    value: float
    weight: float = 1.0
    rows: tuple[str, ...] = field(default=(), compare=False)


PAIR = (Preference(winner=0, loser=1),)
ADDED = "+"
"""Begins the end of the ids of comparisons that are no rows of their source, see `place_of`. A tag may have one as well, before the `:`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row as text. `responses[k]` are the messages that follow `prompt`; the chosen response of a pair is number 0.

    It has either preferences among its responses, or targets for them; a single response has a target. `weight` is that of the row.
    `left_out` has the reason of each response of the row that was left out, `winners` the side, a or b, that each label calls better.
    `variables` are those of the chat template, such as `tools`; they are part of the prompt. `columns` names the columns of the row that
    hold something.
    """

    id: str
    source: str
    prompt: Turns
    responses: tuple[Turns, ...]
    preferences: tuple[Preference, ...] = PAIR
    targets: tuple[Target, ...] = ()
    weight: float = 1.0
    left_out: tuple[str, ...] = ()
    winners: tuple[str, ...] = field(default=(), compare=False)
    variables: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedComparison:
    """A row as tokens. `sequences[k]` is the whole token sequence of response k: prompt, response, one end token.

    `prefix_length` counts the longest common token prefix of all sequences, at most the shortest length minus one. `cut` counts the tokens
    that were removed from the beginning of each sequence; it is empty where none were.
    """

    id: str
    source: str
    sequences: tuple[Tokens, ...]
    prefix_length: int
    prompt_length: int
    preferences: tuple[Preference, ...] = PAIR
    targets: tuple[Target, ...] = ()
    weight: float = 1.0
    cut: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Compare all fields; sequences are equal when their tokens are, as lists or as arrays."""
        if not isinstance(other, TokenizedComparison):
            return False
        one, two = ([[int(token) for token in sequence] for sequence in row.sequences] for row in (self, other))
        fields = ("id", "source", "prefix_length", "prompt_length", "preferences", "targets", "weight", "cut")
        return one == two and all(getattr(self, name) == getattr(other, name) for name in fields)


class BadRow(Exception):
    """A row, or one of its responses, cannot be used: the word that such rows are counted under, and the problem without their text."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason, detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used: the reason it is counted under, and the problem in words."""

    id: str
    source: str
    reason: str
    detail: str


Adapted = Comparison | TokenizedComparison | Dropped
"""The result of adapting a row."""


def dropped(row_id: str, source: str, problem: BadRow) -> Dropped:
    """Return the record of a row that is dropped because of a problem."""
    return Dropped(row_id, source, problem.reason, problem.detail)


def rows_of(row: Comparison | TokenizedComparison) -> tuple[str, ...]:
    """Return the ids of the rows that a comparison is made of, in the order of the source; its own id is the first."""
    labels: tuple[Preference | Target, ...] = (*row.preferences, *row.targets)
    row_ids = {row_id for label in labels for row_id in label.rows or (row.id,)}
    return (row.id,) if row_ids == {row.id} else tuple(sorted(row_ids, key=place_of))


def place_of(row_id: str) -> tuple[int, ...]:
    """Return the position of a row in its source: (12,) for `tag:12`, and (12, 1) for `tag:12.1`, which was made from row 12.

    Comparisons that are added to a row have its position: `tag:12+2` is a copy of `tag:12`, and `tag:12+other` was made by `augment`.
    """
    return tuple(map(int, row_id.rpartition(":")[2].partition(ADDED)[0].split(".")))


def common_prefix_length(sequences: Sequence[Tokens]) -> int:
    """Return the length of the longest common prefix in tokens, at most the shortest length minus one: each keeps a token of its own."""
    length = max(min(map(len, sequences)) - 1, 0)
    first = np.asarray(sequences[0][:length])  # numpy, since sequences have thousands of tokens
    for sequence in sequences[1:]:
        differs = first[:length] != np.asarray(sequence[:length])
        if differs.any():
            length = int(differs.argmax())
    return length


HASH_RANGE = 2**64


def prompt_hash(row: Comparison | TokenizedComparison) -> int:
    """Return 64 bits of the prompt with its variables, regardless of case, spacing and Unicode form; without one, of the responses.

    A tokenized row is hashed by the token prefix of its sequences.
    """
    if isinstance(row, TokenizedComparison):
        return _hash(repr(list(row.sequences[0][: row.prefix_length])))
    prompt = _hash_messages(row.prompt) if row.prompt else _hash(*(str(value) for value in sorted(response_hashes(row))))
    return _hash(str(prompt), json.dumps(row.variables, sort_keys=True, default=str)) if row.variables else prompt


def hash_text(value: int) -> str:
    """Return a hash of 64 bits as 16 hexadecimal digits, as files of scores name a prompt."""
    return f"{value:016x}"


def response_hashes(row: Comparison | TokenizedComparison) -> list[int]:
    """Return 64 bits of each normalised response."""
    if isinstance(row, TokenizedComparison):
        return [_hash(repr(list(sequence[row.prefix_length :]))) for sequence in row.sequences]
    return [_hash_messages(response) for response in row.responses]


def is_held_out(hash_of_prompt: int, share: float | None, fold: Fold | None = None) -> bool:
    """Return whether a prompt belongs to the held-out share, or to a fold of the rest; the same prompt gives the same answer in any order.

    It does so in any source as well, and belongs to exactly one of the folds if it is not in the share.
    """
    # by hash and not by a random number: a prompt that appears again, in any source, must not be on both sides
    held_out = (share or 0.0) * HASH_RANGE
    if fold is None or hash_of_prompt < held_out:
        return hash_of_prompt < held_out
    begin, end = (held_out + (HASH_RANGE - held_out) * number / fold.of for number in (fold.number - 1, fold.number))
    return begin <= hash_of_prompt and (hash_of_prompt < end or fold.number == fold.of)


def _hash_messages(messages: Sequence[Message]) -> int:
    parts = []
    for message in messages:
        # trivial edits of a prompt must not hide that it is trained on
        parts += [message["role"], " ".join(unicodedata.normalize("NFKC", message["content"]).casefold().split())]
        if len(message) > 2:
            more = {key: value for key, value in message.items() if key not in ("role", "content")}
            parts.append(json.dumps(more, sort_keys=True, default=str))
    return _hash(*parts)


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\x1f".join(parts).encode(), digest_size=8).digest())


def ranking(row: TokenizedComparison) -> list[int]:
    """Return the numbers of the responses, best first, by the weight of the preferences they win minus the weight of those they lose.

    A preference counts by the distance of its probability from a tie. Responses with targets rank by these. Equal responses keep the
    order of their numbers.
    """
    balance = _balance(row)
    return sorted(range(len(balance)), key=lambda number: -balance[number])


def ranks(row: TokenizedComparison) -> list[int]:
    """Return the rank of each response, 1 for the best; equal responses share the best of their ranks: 1, 1, 3."""
    balance = _balance(row)
    return [1 + sum(other > own for other in balance) for own in balance]


def extremes(row: TokenizedComparison) -> tuple[int, int]:
    """Return the best and the worst response; among several equal ones, two that a preference compares, if there are any."""
    balance = _balance(row)
    for edge in row.preferences:
        if balance[edge.winner] == max(balance) and balance[edge.loser] == min(balance):
            return edge.winner, edge.loser
    order = ranking(row)
    return order[0], order[-1]


def _balance(row: TokenizedComparison) -> list[float]:
    balance = [0.0] * len(row.sequences)
    for edge in row.preferences:
        worth = edge.weight * (2 * edge.probability - 1)
        balance[edge.winner] += worth
        balance[edge.loser] -= worth
    for target in row.targets:
        balance[target.response] += target.weight * target.value
    return balance
