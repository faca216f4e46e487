"""Token ids as strings, one by one, whatever way the tokenizer writes spaces and bytes in its vocabulary."""

import re
from collections.abc import Callable, Sequence
from typing import Any

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_strings(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text each token stands for, alone.

    A token that holds only part of a character's UTF-8 bytes gives them as escapes: an emoji split in two may give `\\xf0\\x9f` and
    `\\x98\\x80`. WordPiece tokens keep their `##`. Added and special tokens give their own content.

    Args:
        ids: the tokens.
        tokenizer: a transformers tokenizer.
    """
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    to_bytes = _byte_level if is_byte_level(tokenizer) else _plain
    return [added[token_id] if token_id in added else _alone(token_id, tokenizer, to_bytes) for token_id in map(int, ids)]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that carry structure and no text: end, padding, turn marks."""
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary is written in GPT-2's alphabet of 256 printable characters, one for each byte."""
    return _has_part(tokenizer, "ByteLevel")


def is_word_piece(tokenizer: Any) -> bool:
    """Whether words begin without a mark and go on with `##`, as in BERT's vocabulary."""
    return _has_part(tokenizer, "WordPiece")


def _has_part(tokenizer: Any, kind: str) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.decoder, backend.pre_tokenizer]
    return any(part is not None and f'"type":"{kind}"'.encode() in part.__getstate__() for part in parts)


def _alone(token_id: int, tokenizer: Any, to_bytes: Callable[[str], bytes]) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        return f"<no token {token_id}>"
    raw = token if isinstance(token, bytes) else to_bytes(token)
    return raw.decode("utf-8", errors="backslashreplace")


def _byte_level(token: str) -> bytes:
    if all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return token.encode()


def _plain(token: str) -> bytes:
    byte = BYTE_FALLBACK.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, inverted: printable Latin-1 bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
