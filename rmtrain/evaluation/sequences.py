"""Conversations to the tokens that are scored: through the one render-and-encode function, cut only where that was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Message, Preference, TokenizedComparison
from rmtrain.data.rows.prefix import common_prefix_length
from rmtrain.data.text.special_tokens import edge_tokens
from rmtrain.data.text.tokenize import encode_conversations
from rmtrain.errors import DataError

Overlong = Literal["error", "cut"]
Turns = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and the responses to score, each the messages that follow it.

    id: what errors call it. source and preferences are handed on.
    """

    id: str
    prompt: Turns
    responses: tuple[Turns, ...]
    source: str = ""
    preferences: tuple[Preference, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest sequence in tokens, None for no limit, and what is done with a longer one.

    `cut` takes tokens away from its beginning, after special tokens such as `<s>`: the end, where the reward is read, stays. This is what
    RewardBench does (`truncation_side` left), each sequence on its own.
    """

    tokens: int | None
    overlong: Overlong


def encode(
    rows: Sequence[Asked], tokenizer: PreTrainedTokenizerBase, limit: Limit
) -> tuple[list[TokenizedComparison], list[bool]]:
    """The tokens of each row, and whether some of its sequences were cut.

    Args:
        rows: each with at least one response.
        tokenizer: one that `prepared` gave.
        limit: of each sequence.

    Raises:
        DataError: the template fails on a row, or a row is too long; it is named.
    """
    conversations = [(*row.prompt, *response) for row in rows for response in row.responses]
    encoded = iter(encode_conversations(conversations, tokenizer, [row.id for row in rows for _ in row.responses]))
    leading = edge_tokens(tokenizer).leading
    found = [_comparison(row, [next(encoded) for _ in row.responses], limit, leading) for row in rows]
    return [comparison for comparison, _ in found], [is_cut for _, is_cut in found]


def _comparison(
    row: Asked, sequences: list[list[int]], limit: Limit, leading: tuple[int, ...]
) -> tuple[TokenizedComparison, bool]:
    names = [f"{row.id}, response {number}" if len(sequences) > 1 else row.id for number in range(1, len(sequences) + 1)]
    fitting = [_fit(name, sequence, limit, leading) for name, sequence in zip(names, sequences, strict=True)]
    prefix = common_prefix_length(fitting) if len(fitting) > 1 else 0
    is_cut = any(len(new) != len(old) for new, old in zip(fitting, sequences, strict=True))
    return TokenizedComparison(row.id, row.source, tuple(fitting), prefix, prefix, row.preferences), is_cut


def _fit(name: str, sequence: list[int], limit: Limit, leading: tuple[int, ...]) -> list[int]:
    if limit.tokens is None or len(sequence) <= limit.tokens:
        return sequence
    if limit.overlong == "error":
        raise DataError(f"{name}: {len(sequence):,} tokens, over the limit of {limit.tokens:,}; shorten it, or have it cut")
    kept = leading if tuple(sequence[: len(leading)]) == leading else ()
    return [*kept, *sequence[len(sequence) - (limit.tokens - len(kept)) :]]
