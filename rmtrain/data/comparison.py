"""What a row becomes: one prompt, K >= 2 responses, and the preferences among them."""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant" | "tool", "content": str}`, and what else a chat template is given where a row has it:
`name`, `tool_call_id`, `tool_calls`, `reasoning_content`, `thinking`."""
Tokens = Sequence[int] | NDArray[np.int32]
"""Token ids."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One edge of a comparison: `winner` and `loser` index its responses.

    `probability` is the target probability that the winner is better (0.5 is a tie), `margin` is subtracted inside the
    sigmoid (Llama 2, arXiv:2307.09288, section 3.2.2), `weight` scales the edge within its comparison. `rows` are the ids of the rows
    that say so, where a comparison was made of several: the rows that state the pair, or the two whose responses it is about. It is not
    stored.
    """

    winner: int
    loser: int
    margin: float = 0.0
    probability: float = 1.0
    weight: float = 1.0
    rows: tuple[str, ...] = field(default=(), compare=False)


PAIR = (Preference(winner=0, loser=1),)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row as text. `responses[k]` are the messages that follow `prompt`; a pair's chosen response is number 0.

    `left_out` are the reasons for which responses of its row are not among them.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    preferences: tuple[Preference, ...] = PAIR
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedComparison:
    """A row as tokens. `sequences[k]` is the whole token sequence of response k: prompt, response, one end token.

    `prefix_length` counts the longest common token prefix of all sequences, at most the shortest length minus one.
    """

    id: str
    source: str
    sequences: tuple[Tokens, ...]
    prefix_length: int
    prompt_length: int
    preferences: tuple[Preference, ...] = PAIR

    def __eq__(self, other: object) -> bool:
        """Whether all is equal; sequences by their tokens, whatever holds them."""
        return isinstance(other, TokenizedComparison) and self._values() == other._values()

    def _values(self) -> tuple[Any, ...]:
        sequences = [[int(token) for token in sequence] for sequence in self.sequences]
        return self.id, self.source, sequences, self.prefix_length, self.prompt_length, self.preferences


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, with the reason it is counted under and what was found."""

    id: str
    source: str
    reason: str
    detail: str


Adapted = Comparison | TokenizedComparison | Dropped
"""What a row becomes."""


def rows_of(row: Comparison | TokenizedComparison) -> tuple[str, ...]:
    """Ids of the rows that a comparison is made of, in the order of the source; its own id is the first of them."""
    found = {row_id for edge in row.preferences for row_id in edge.rows or (row.id,)}
    return (row.id,) if found == {row.id} else tuple(sorted(found, key=place_of))


def place_of(row_id: str) -> tuple[int, ...]:
    """Where a row stands in its source: `12` of `tag:12`, and `12.1` of one that was made from it."""
    return tuple(map(int, row_id.rpartition(":")[2].split(".")))


def common_prefix_length(sequences: Sequence[Tokens]) -> int:
    """Length of the longest common beginning, in tokens, at most the shortest length minus one: each keeps a token of its own."""
    length = max(min(map(len, sequences)) - 1, 0)
    first = np.asarray(sequences[0][:length])
    for sequence in sequences[1:]:
        differs = first[:length] != np.asarray(sequence[:length])
        if differs.any():
            length = int(differs.argmax())
    return length


HASH_RANGE = 2**64


def prompt_hash(row: Comparison | TokenizedComparison) -> int:
    """64 bits of the normalised prompt: roles and words, whatever their case, spacing and Unicode form.

    Without a prompt it is the hash of the responses; of a row that came as tokens, that of the tokens its sides begin with.
    """
    if isinstance(row, TokenizedComparison):
        return _hash(repr(list(row.sequences[0][: row.prefix_length])))
    return _hash_messages(row.prompt) if row.prompt else _hash(*(str(value) for value in sorted(response_hashes(row))))


def response_hashes(row: Comparison | TokenizedComparison) -> list[int]:
    """64 bits of each normalised response."""
    if isinstance(row, TokenizedComparison):
        return [_hash(repr(list(sequence[row.prefix_length :]))) for sequence in row.sequences]
    return [_hash_messages(response) for response in row.responses]


def is_held_out(hash_of_prompt: int, share: float | None) -> bool:
    """Whether a prompt belongs to the held-out share: the same answer for the same prompt, in any order and any source."""
    return share is not None and hash_of_prompt < share * HASH_RANGE


def _hash_messages(messages: Sequence[Message]) -> int:
    return _hash(*[part for message in messages for part in (message["role"], _normalised(message["content"]), *_rest(message))])


def _rest(message: Message) -> list[str]:
    """What a message has beside its role and content, if anything."""
    rest = {key: value for key, value in message.items() if key not in ("role", "content")} if len(message) > 2 else {}
    return [json.dumps(rest, sort_keys=True, default=str)] if rest else []


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\x1f".join(parts).encode(), digest_size=8).digest())


def ranking(row: TokenizedComparison) -> list[int]:
    """Numbers of the responses, best first: by the weight of the preferences they win less that of those they lose.

    A preference counts by how far its probability is from a tie. Responses that are even stay in the order of their numbers.
    """
    balance = _balance(row)
    return sorted(range(len(balance)), key=lambda number: -balance[number])


def ranks(row: TokenizedComparison) -> list[int]:
    """The rank of each response, 1 for the best; those that are even share the best of theirs: 1, 1, 3."""
    balance = _balance(row)
    return [1 + sum(other > own for other in balance) for own in balance]


def extremes(row: TokenizedComparison) -> tuple[int, int]:
    """The best and the worst response; among several that are even, two that a preference sets against each other where there are such."""
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
    return balance
