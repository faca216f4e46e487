import sys
import unicodedata
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import GemmaTokenizer, GPTNeoXTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from rmtrain.data.text.token_pieces import BEFORE_PUNCTUATION, BEFORE_WORDS, can_be_cut, can_be_cut_in_words
from tests.helpers import bert_like, byte_bpe, llama_like, roberta_like, unigram_like

LLAMA_3 = PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")
SENTENCE_PIECE = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<s>": 4, "</s>": 5, "▁": 6, "a": 7, "b": 8, "▁a": 9, "a▁": 10}


def split_by(pattern: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert), byte_level])


def changed(
    change: Callable[[Tokenizer], None], build: Callable[[], PreTrainedTokenizerFast] = byte_bpe
) -> PreTrainedTokenizerFast:
    tokenizer = build()
    change(tokenizer.backend_tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("build", "in_words"),
    [(byte_bpe, True), (llama_like, True), (roberta_like, True), (bert_like, True), (unigram_like, False)],
)
def test_the_usual_kinds_can_be_cut(build: Callable[[], PreTrainedTokenizerFast], in_words: bool) -> None:
    tokenizer = build()
    assert can_be_cut(tokenizer)
    assert can_be_cut_in_words(tokenizer) == in_words


@pytest.mark.parametrize("pattern", [PRETOKENIZE_REGEX, LLAMA_3])
def test_known_patterns_can_be_cut(pattern: str) -> None:
    for pre_tokenizer in (split_by(pattern), split_by(pattern, "removed", invert=True)):
        tokenizer = changed(lambda backend, part=pre_tokenizer: setattr(backend, "pre_tokenizer", part))  # type: ignore[misc]
        assert can_be_cut(tokenizer)
        assert can_be_cut_in_words(tokenizer)


def test_the_classes_of_transformers_can_be_cut() -> None:
    assert can_be_cut(Qwen2Tokenizer())
    assert can_be_cut(GPTNeoXTokenizer())


@pytest.mark.parametrize("kind", [GemmaTokenizer, LlamaTokenizer])
def test_a_model_over_whole_texts_can_be_cut_if_no_token_stands_across_a_cut(kind: type) -> None:
    inside = {token: index for token, index in SENTENCE_PIECE.items() if token != "a▁"}
    tokenizer = kind(vocab=inside, merges=[("▁", "a")])
    assert can_be_cut(tokenizer)
    assert not can_be_cut_in_words(tokenizer)
    assert not can_be_cut(kind(vocab=SENTENCE_PIECE, merges=[("▁", "a"), ("a", "▁")]))


NOT_CUT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "an unknown pattern": lambda: changed(lambda backend: setattr(backend, "pre_tokenizer", split_by(r"\S+ |\s+"))),
    "a pattern that leaves spaces": lambda: changed(lambda backend: setattr(backend, "pre_tokenizer", split_by(r" ?\p{L}+"))),
    "merged matches": lambda: changed(lambda backend: setattr(backend, "pre_tokenizer", split_by(LLAMA_3, "merged_with_next"))),
    "no pre-tokenizer": lambda: changed(lambda backend: setattr(backend, "pre_tokenizer", None)),
    "bytes of whole texts": lambda: changed(
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    ),
    "a normalizer that strips": lambda: changed(lambda backend: setattr(backend, "normalizer", normalizers.Strip())),
    "a normalizer that prepends": lambda: changed(lambda backend: setattr(backend, "normalizer", normalizers.Prepend("▁"))),
    "a normalizer that joins spaces": lambda: changed(
        lambda backend: setattr(backend, "normalizer", normalizers.Replace(Regex(" {2,}"), " "))
    ),
    "dropout": lambda: changed(lambda backend: setattr(backend, "model", models.BPE(dropout=0.1))),
    "a token with a space": lambda: changed(lambda backend: backend.add_tokens(["New York"])),
    "a token that takes the space after it": lambda: changed(
        lambda backend: backend.add_special_tokens([AddedToken("<turn>", rstrip=True)])
    ),
}


@pytest.mark.parametrize("what", NOT_CUT)
def test_in_doubt_nothing_is_cut(what: str) -> None:
    assert not can_be_cut(NOT_CUT[what]())


def test_special_tokens_that_are_split_are_not_cut() -> None:
    tokenizer = byte_bpe()
    tokenizer.split_special_tokens = True
    assert not can_be_cut(tokenizer)


def test_words_are_not_cut_where_a_token_stands_across_or_spaces_are_added() -> None:
    assert not can_be_cut_in_words(changed(lambda backend: backend.add_tokens(["e.g."])))
    assert not can_be_cut_in_words(changed(lambda backend: backend.add_tokens([AddedToken("cat", single_word=True)])))
    prefixed = changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert can_be_cut(prefixed)
    assert not can_be_cut_in_words(prefixed)


def test_cuts_are_where_they_should_be() -> None:
    assert BEFORE_WORDS.split(" a  b\n c, d ") == [" a", " b\n c,", "d", ""]
    assert BEFORE_PUNCTUATION.split("word.\n\nUser: don't</s>") == ["word", ".\n\nUser", ": don't", "</s>"]


def test_no_normalizer_makes_or_takes_white_space_at_a_cut() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000 and not chr(code).isspace()]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert not [character for character in characters if unicodedata.normalize(form, character)[-1].isspace()]
        assert all(unicodedata.normalize(form, f"a {character}").startswith("a ") for character in characters)
    assert len(characters) > 1_000_000, "guard"
