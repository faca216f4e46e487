"""What a row becomes: one prompt, K >= 2 responses, and the preferences among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
