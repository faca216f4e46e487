"""Token ids as strings: nothing of the text is lost, whatever way a tokenizer writes spaces and bytes."""

import re

import pytest

from rmtrain.report.tokens import special_ids, token_strings
from tests.report.tokenizers import byte_fallback, byte_level, word_piece

TEXT = "How can I store\n\n  the 🦊 and 日本 in a naïve refrigerator?\ttab"


def as_bytes(strings: list[str]) -> bytes:
    """The bytes that strings stand for, where `\\xe2` is a byte."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), "".join(strings).encode())


@pytest.mark.parametrize(
    "tokenizer", [byte_level(), byte_level(with_decoder=False), byte_fallback()], ids=["bytes", "no decoder", "fallback"]
)
def test_the_strings_together_are_the_text(tokenizer: object) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    strings = token_strings(ids, tokenizer)
    assert as_bytes(strings) == TEXT.encode()
    assert len(strings) == len(ids)
    assert sum("\\x" in string for string in strings) > 3, "guard: characters were split between tokens"
    assert "\ufffd" not in "".join(strings)


def test_a_character_within_one_token_stands_as_itself() -> None:
    tokenizer = byte_level()
    strings = token_strings(tokenizer("🦊 naïve")["input_ids"], tokenizer)
    assert strings[0] == "🦊"
    assert "".join(strings) == "🦊 naïve"


def test_special_and_added_tokens_give_their_content() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>é"])
    ids = tokenizer("<|user|>a<think>é<eos>")["input_ids"]
    assert token_strings(ids, tokenizer) == ["<|user|>", "a", "<think>é", "<eos>"]
    assert special_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<eos>", "<pad>", "<|user|>"]))


def test_word_pieces_keep_their_mark() -> None:
    tokenizer = word_piece()
    strings = token_strings(tokenizer("the storefood")["input_ids"], tokenizer)
    assert strings[0] == "the"
    assert any(string.startswith("##") for string in strings[1:])
    assert "".join(strings[1:]).replace("##", "") == "storefood"


def test_an_id_without_token_is_named() -> None:
    assert token_strings([99_999], byte_level()) == ["<no token 99999>"]
