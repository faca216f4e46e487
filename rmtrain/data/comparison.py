"""What a row becomes: one prompt, K >= 2 responses, and the preferences among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": str}`."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One edge of a comparison: `winner` and `loser` index its responses.

    `probability` is the target probability that the winner is better (0.5 is a tie), `margin` is subtracted inside the
    sigmoid (Llama 2, arXiv:2307.09288, section 3.2.2), `weight` scales the edge within its comparison.
    """

    winner: int
    loser: int
    margin: float = 0.0
    probability: float = 1.0
    weight: float = 1.0


PAIR = (Preference(winner=0, loser=1),)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row as text. `responses[k]` are the messages that follow `prompt`; a pair's chosen response is number 0."""

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    preferences: tuple[Preference, ...] = PAIR


@dataclass(frozen=True, slots=True)
class TokenizedComparison:
    """A row as tokens. `sequences[k]` is the whole token sequence of response k: prompt, response, one end token.

    `prefix_length` counts the longest common token prefix of all sequences, at most the shortest length minus one.
    """

    id: str
    source: str
    sequences: tuple[Sequence[int], ...]
    prefix_length: int
    prompt_length: int
    preferences: tuple[Preference, ...] = PAIR


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, with the reason it is counted under and what was found."""

    id: str
    source: str
    reason: str
    detail: str
