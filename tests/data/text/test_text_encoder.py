"""Rendered texts to tokens, whole or in pieces."""

import random
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

from rmtrain.data.text import token_pieces as memo
from rmtrain.data.text.token_pieces import (
    BEFORE_PUNCTUATION,
    BEFORE_WORDS,
    PieceEncoder,
    Texts,
    WholeTextEncoder,
    can_be_cut,
    can_be_cut_in_words,
    text_encoder,
)
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


def trained_on_bits(tokenizer: PreTrainedTokenizerFast, *special: str) -> PreTrainedTokenizerFast:
    """The same with another vocabulary: of all that can be merged in texts of the bits, so that a wrong cut shows."""
    rng = random.Random(0)
    corpus = ["".join(rng.choices(BITS, k=12)) for _ in range(600)] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(special or ("<|endoftext|>", "<|pad|>")),
        initial_alphabet=[] if special else pre_tokenizers.ByteLevel.alphabet(),
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


def gemma_like() -> PreTrainedTokenizerFast:
    """A BPE over whole texts whose spaces became `▁`, with a vocabulary of words, as SentencePiece trains it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    trained_on_bits(tokenizer, "<unk>", "</s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def llama_2_like() -> PreTrainedTokenizerFast:
    """The same, with a `▁` before the first word."""
    tokenizer = gemma_like()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


CUT = [gpt2_like, llama_like, unigram_like, bert_like, roberta_like, qwen_like, prefixed, gemma_like, llama_2_like]
TOKENIZERS = {build.__name__: build() for build in CUT}
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(BITS), max_size=25).map("".join))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(shared=texts, endings=st.lists(texts, min_size=1, max_size=3), place=st.floats(0, 1))
def test_pieces_have_the_tokens_of_the_whole_text(name: str, shared: str, endings: list[str], place: float) -> None:
    whole = [shared + ending for ending in endings]
    begin = (len(whole) - 1, int(place * len(whole[-1]))) if whole[-1] else None
    for rows in ([Texts(whole, begin)], [Texts(whole)]):
        plain, by_pieces = (kind(TOKENIZERS[name]).encode(rows)[0] for kind in (WholeTextEncoder, PieceEncoder))
        assert [ids.tolist() for ids in by_pieces.sequences] == [ids.tolist() for ids in plain.sequences]
        assert by_pieces.begin == plain.begin


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_was_seen_before_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "REMEMBERED_CHARACTERS", 3000)
    rng, words = random.Random(1), " ".join(SENTENCES).split(" ")
    tokenizer, forgotten = TOKENIZERS[name], 0
    encoder, plain = PieceEncoder(tokenizer), WholeTextEncoder(tokenizer)
    for _ in range(30):
        prompts = [" ".join(rng.choices(words, k=rng.randrange(40))) for _ in range(4)]
        new = str(rng.random())
        rows = [Texts([f"{prompt}:  {new} yes.", f"{prompt}: no {new}"], (0, len(prompt) + 1)) for prompt in prompts]
        known = len(encoder.words.numbers)
        encoded = encoder.encode(rows)
        forgotten += len(encoder.words.numbers) < known
        for ours, theirs in zip(encoded, plain.encode(rows), strict=True):
            assert all(np.array_equal(*pair) for pair in zip(ours.sequences, theirs.sequences, strict=True))
            assert ours.begin == theirs.begin
    assert forgotten > 0, "guard: what is remembered is bounded"


def test_each_piece_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoded = byte_bpe(), []
    inner = PieceEncoder._encode
    monkeypatch.setattr(PieceEncoder, "_encode", lambda self, pieces: encoded.extend(pieces) or inner(self, pieces))
    encoder = PieceEncoder(tokenizer)
    for _ in range(2):
        encoder.encode([Texts(["Say yes yes yes, please", "Say yes no"], (0, 4)), Texts(["no no"])])
    assert sorted(encoded) == [" no", " please", " yes", ",", "Say", "no"]


@pytest.mark.parametrize("build", CUT)
def test_the_fastest_encoder_that_is_exact_is_taken(build: Callable[[], PreTrainedTokenizerFast]) -> None:
    assert isinstance(text_encoder(build()), PieceEncoder)
    tokenizer = build()
    tokenizer.add_tokens(["New York"])
    assert isinstance(text_encoder(tokenizer), WholeTextEncoder)


def test_a_tokenizer_whose_class_does_more_is_not_cut() -> None:
    class Doubling(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *arguments, **named):  # type: ignore[no-untyped-def]
            texts = text if isinstance(text, str) else [each.replace("x", "xx") for each in text]
            return super()._encode_plus(texts, *arguments, **named)

    tokenizer = Doubling(tokenizer_object=byte_bpe().backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>")
    assert isinstance(text_encoder(tokenizer), WholeTextEncoder)


def test_truncation_and_padding_that_a_tokenizer_came_with_do_not_act() -> None:
    tokenizer = byte_bpe()
    encoder = PieceEncoder(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (encoded,) = encoder.encode([Texts([SENTENCES[0]])])
    assert encoded.sequences[0].tolist() == tokenizer(SENTENCES[0])["input_ids"]


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
