"""Rendered texts to tokens, whole or in pieces."""

import random
import re
import sys
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, GPTNeoXTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from rmtrain.data.text import encoder as module
from rmtrain.data.text.encoder import WORDS, WORDS_AND_PUNCTUATION, TextEncoder, piece_pattern
from rmtrain.data.text.renderer import Rendered
from tests.helpers import SENTENCES, bert_like, byte_bpe, llama_like, roberta_like, unigram_like

BITS = [
    *(
        "What",
        " is",
        " the",
        "  capital",
        " of France",
        "?",
        " don't",
        "\n\nAssistant:",
        " 12,345.67",
        "e.g.",
        "…",
        " “naïve”",
        "ﬁ",
    ),
    *(
        "日本語",
        " é",
        "\u0301",
        " ",
        "   ",
        "\t",
        "\n",
        " \n ",
        "\u00a0",
        "\u3000",
        "\x1c",
        "¨",
        "</s>",
        "<s>",
        "<|endoftext|>",
        "<mask>",
    ),
    *(
        " <mask> ",
        "<|im_start|>user",
        "[SEP]",
        "ſ",
        "İ",
        "ß",
        "\U0001f600",
        "\u200d",
        "#!",
        "a.b!c",
        "it's",
        "I'LL",
        "x)",
        "_",
        "▁",
    ),
]


def trained_on_bits(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts of the bits, with as many merges as possible, so that a wrong cut shows."""
    rng = random.Random(0)
    corpus = ["".join(rng.choices(BITS, k=12)) for _ in range(600)] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.backend_tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def gpt2_like() -> PreTrainedTokenizerFast:
    """A byte-level BPE with gpt2's pattern."""
    return trained_on_bits(byte_bpe())


def qwen_like() -> PreTrainedTokenizerFast:
    """A byte-level BPE with qwen2's pattern, NFC, and tokens that take the space before them or are runs of spaces."""
    tokenizer = byte_bpe()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    trained_on_bits(tokenizer)
    tokenizer.add_tokens(["  ", "   ", AddedToken("<mask>", lstrip=True), AddedToken("<|im_start|>", special=True)])
    return tokenizer


def prefixed() -> PreTrainedTokenizerFast:
    tokenizer = byte_bpe()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    return trained_on_bits(tokenizer)


CUT = [gpt2_like, llama_like, unigram_like, bert_like, roberta_like, qwen_like, prefixed]
TOKENIZERS = {build.__name__: build() for build in CUT}
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(BITS), max_size=25).map("".join))


def whole_text_encoder(tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    """Return an encoder that encodes each text whole, through the tokenizer's own call."""
    encoder = TextEncoder(tokenizer)
    encoder.pattern = None
    return encoder


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(shared=texts, endings=st.lists(texts, min_size=1, max_size=3), place=st.floats(0, 1))
def test_pieces_have_the_tokens_of_the_text(name: str, shared: str, endings: list[str], place: float) -> None:
    whole = [shared + ending for ending in endings]
    begin = (len(whole) - 1, int(place * len(whole[-1]))) if whole[-1] else None
    for rows in ([Rendered(whole, begin)], [Rendered(whole)]):
        plain, by_pieces = (make(TOKENIZERS[name]).encode(rows)[0] for make in (whole_text_encoder, TextEncoder))
        assert [ids.tolist() for ids in by_pieces.sequences] == [ids.tolist() for ids in plain.sequences]
        assert by_pieces.begin == plain.begin


@pytest.mark.parametrize("name", TOKENIZERS)
def test_remembered_pieces_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_CHARACTERS", 3000)
    rng, words = random.Random(1), " ".join(SENTENCES).split(" ")
    tokenizer, forgotten = TOKENIZERS[name], 0
    encoder, plain = TextEncoder(tokenizer), whole_text_encoder(tokenizer)
    for _ in range(30):
        prompts = [" ".join(rng.choices(words, k=rng.randrange(40))) for _ in range(4)]
        new = str(rng.random())
        rows = [Rendered([f"{prompt}:  {new} yes.", f"{prompt}: no {new}"], (0, len(prompt) + 1)) for prompt in prompts]
        known = len(encoder.known)
        encoded = encoder.encode(rows)
        forgotten += len(encoder.known) < known
        for ours, theirs in zip(encoded, plain.encode(rows), strict=True):
            assert all(np.array_equal(*pair) for pair in zip(ours.sequences, theirs.sequences, strict=True))
            assert ours.begin == theirs.begin
    assert forgotten > 0, "guard: the memory is bounded"


def test_each_piece_is_encoded_once() -> None:
    encoder = TextEncoder(byte_bpe())
    before = set(encoder.known)
    for _ in range(2):
        encoder.encode([Rendered(["Say yes yes yes, please", "Say yes no"], (0, 4)), Rendered(["no no"])])
    assert sorted(encoder.known.keys() - before) == [" no", " please", " yes", ",", "Say", "no"]


@pytest.mark.parametrize("build", CUT)
def test_a_token_with_a_space_prevents_pieces(build: Callable[[], PreTrainedTokenizerFast]) -> None:
    assert TextEncoder(build()).pattern is not None
    tokenizer = build()
    tokenizer.add_tokens(["New York"])
    assert TextEncoder(tokenizer).pattern is None


def test_a_class_that_changes_texts_prevents_pieces() -> None:
    class Doubling(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *arguments, **named):  # type: ignore[no-untyped-def]
            texts = text if isinstance(text, str) else [each.replace("x", "xx") for each in text]
            return super()._encode_plus(texts, *arguments, **named)

    tokenizer = Doubling(tokenizer_object=byte_bpe().backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>")
    assert TextEncoder(tokenizer).pattern is None


def test_truncation_and_padding_of_the_tokenizer_are_ignored() -> None:
    tokenizer = byte_bpe()
    encoder = TextEncoder(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (encoded,) = encoder.encode([Rendered([SENTENCES[0]])])
    assert encoded.sequences[0].tolist() == tokenizer(SENTENCES[0])["input_ids"]


LLAMA_3 = PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")


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
    ("build", "pattern"),
    [
        (byte_bpe, WORDS_AND_PUNCTUATION),
        (llama_like, WORDS_AND_PUNCTUATION),
        (roberta_like, WORDS_AND_PUNCTUATION),
        (bert_like, WORDS_AND_PUNCTUATION),
        (unigram_like, WORDS),
    ],
)
def test_pieces_of_the_usual_tokenizers(build: Callable[[], PreTrainedTokenizerFast], pattern: re.Pattern[str]) -> None:
    assert piece_pattern(build()) is pattern


@pytest.mark.parametrize("pattern", [PRETOKENIZE_REGEX, LLAMA_3])
def test_pieces_of_known_patterns(pattern: str) -> None:
    for pre_tokenizer in (split_by(pattern), split_by(pattern, "removed", invert=True)):
        tokenizer = changed(lambda backend, part=pre_tokenizer: setattr(backend, "pre_tokenizer", part))  # type: ignore[misc]
        assert piece_pattern(tokenizer) is WORDS_AND_PUNCTUATION


def test_pieces_of_transformers_classes() -> None:
    assert piece_pattern(Qwen2Tokenizer()) is not None
    assert piece_pattern(GPTNeoXTokenizer()) is not None


SENTENCE_PIECE = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<s>": 4, "</s>": 5, "▁": 6, "a": 7, "▁a": 8}
NOT_CUT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "a BPE over the whole text, gemma": lambda: GemmaTokenizer(vocab=SENTENCE_PIECE, merges=[("▁", "a")]),
    "a BPE over the whole text, llama2": lambda: LlamaTokenizer(vocab=SENTENCE_PIECE, merges=[("▁", "a")]),
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


@pytest.mark.parametrize("case", NOT_CUT)
def test_unknown_tokenizers_are_not_cut(case: str) -> None:
    assert piece_pattern(NOT_CUT[case]()) is None


def test_split_special_tokens_are_not_cut() -> None:
    tokenizer = byte_bpe()
    tokenizer.split_special_tokens = True
    assert piece_pattern(tokenizer) is None


def test_punctuation_is_not_always_cut() -> None:
    """Not where a token reaches across, or where the tokenizer adds a space to each piece."""
    assert piece_pattern(changed(lambda backend: backend.add_tokens(["e.g."]))) is WORDS
    assert piece_pattern(changed(lambda backend: backend.add_tokens([AddedToken("cat", single_word=True)]))) is WORDS
    prefixed = changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert piece_pattern(prefixed) is WORDS


def test_patterns_cut_before_words_and_punctuation() -> None:
    text = " a  b\n c, d don't</s>. \n\nUser: "
    assert WORDS.findall(text) == [" a", "  b\n c,", " d", " don't</s>.", " \n\nUser:", " "]
    assert WORDS_AND_PUNCTUATION.findall(text) == [" a", "  b", "\n c", ",", " d", " don't", "</s>.", " \n\nUser", ":", " "]


@settings(deadline=None, derandomize=True)
@given(text=texts)
def test_patterns_lose_no_character(text: str) -> None:
    assert "".join(WORDS.findall(text)) == "".join(WORDS_AND_PUNCTUATION.findall(text)) == text


def test_normalizers_keep_white_space_at_cuts() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000 and not chr(code).isspace()]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert not [character for character in characters if unicodedata.normalize(form, character)[-1].isspace()]
        assert all(unicodedata.normalize(form, f"a {character}").startswith("a ") for character in characters)
    assert len(characters) > 1_000_000, "guard"
