"""Hashes of prompts and responses: enough to split by prompt, to find overlap and repeats, and to keep no text."""

import json
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

from rmtrain.data.comparison import Comparison, Message, TokenizedComparison

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
