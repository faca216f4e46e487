"""Texts to tokens: through the tokenizer as they are, or piece by piece, which gives the same tokens and meets most pieces again."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import BatchEncoding, PreTrainedTokenizerBase

from rmtrain.data.text.templates import EdgeTokens, edge_tokens

BEFORE_WORDS = re.compile(r" (?<=\S )")
"""The space that each piece but the first begins with."""
BEFORE_PUNCTUATION = re.compile(r"(?<=[A-Za-z])(?=[.,;:!?)\"\n<])")
ACROSS = re.compile(r"[^\s▁][ ▁]")
"""A token across the beginning of a word; `▁` is how SentencePiece writes a space."""

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer")
PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "BertPreTokenizer", "Whitespace", "WhitespaceSplit")
SPACE_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
ALTERNATIVE = re.compile(r"\|(?![^(]*\))")
"""A `|` outside of parentheses, in the patterns below."""
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
ALTERNATIVES = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    *(rf"{CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+", rf"{CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*"),
    rf"{CASED}*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    rf"{CASED}+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}
"""What the patterns of gpt2, llama3, qwen2, qwen3.5, gpt-oss and mistral-nemo are made of. None matches a space after something that is
no white space, or punctuation after a letter; none looks back; and with `\\s+` among them no space is left unmatched."""


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts can be cut before words; the special tokens around a text are not among those of its pieces."""
    backend = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    normalizers = _parts(backend.normalizer, "normalizers")
    pre_tokenizers = _parts(backend.pre_tokenizer, "pretokenizers")
    if tokenizer.split_special_tokens or any(token.rstrip or ACROSS.search(token.content) for token in added):
        return False
    if getattr(backend.model, "dropout", None):
        return False
    if all(part["type"] in NORMALIZERS for part in normalizers) and all(map(_is_local, pre_tokenizers)):
        return any(map(_parts_words, pre_tokenizers))
    return _only_marks_spaces(normalizers, pre_tokenizers) and _merges_within_words(backend)


def can_be_cut_in_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts that can be cut before words can also be cut before punctuation."""
    added = tokenizer.added_tokens_decoder.values()
    parts = _parts(tokenizer.backend_tokenizer.pre_tokenizer, "pretokenizers")
    adds_spaces = any(part["type"] == "Metaspace" or part.get("add_prefix_space") for part in parts)
    parts_letters = any(part["type"] in ("ByteLevel", "Split", "BertPreTokenizer") and _parts_words(part) for part in parts)
    return parts_letters and not adds_spaces and not any(t.single_word or BEFORE_PUNCTUATION.search(t.content) for t in added)


def _parts(component: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as JSON values, a sequence as its members."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    return list(state[name]) if state["type"] == "Sequence" else [state]


def _is_local(part: dict[str, Any]) -> bool:
    return part["type"] in PRE_TOKENIZERS and (part["type"] not in ("Split", "Metaspace") or _parts_words(part))


def _parts_words(part: dict[str, Any]) -> bool:
    match part["type"]:
        case "ByteLevel":
            return bool(part.get("use_regex", True))
        case "Metaspace":
            return part["replacement"] == "▁" and bool(part.get("split", True))
        case "Split":
            isolates = (part["behavior"], part["invert"]) in (("Isolated", False), ("Removed", True))
            return isolates and {r"\s+"} <= set(ALTERNATIVE.split(part["pattern"].get("Regex", ""))) <= ALTERNATIVES
        case kind:
            return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _only_marks_spaces(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> bool:
    """Whether all that is done before the model is to write spaces as `▁`, as llama2 and gemma have it."""
    if normalizers == [SPACE_MARK]:  # then gemma's own part, which splits at spaces, finds none
        return all(part["type"] == "Split" and part["pattern"] == {"String": " "} for part in pre_tokenizers)
    kinds = [(part["type"], part.get("replacement")) for part in pre_tokenizers]
    return not normalizers and kinds == [("Metaspace", "▁")]


def _merges_within_words(backend: Tokenizer) -> bool:
    model, vocabulary = backend.model, backend.get_vocab(with_added_tokens=False)
    is_plain = isinstance(model, models.BPE) and not model.ignore_merges
    return is_plain and "▁" in vocabulary and not any(map(ACROSS.search, vocabulary))


REMEMBERED_CHARACTERS, COST_OF_A_PIECE = 2**23, 32
TOKEN = np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Token sequences one after the other: `tokens` int32, all of them, and `sizes` int64, how many each has."""

    tokens: NDArray[np.int32]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Lists of ids as they are."""
        sizes = np.fromiter(map(len, sequences), np.int64, len(sequences))
        return cls(np.fromiter(chain.from_iterable(sequences), TOKEN, int(sizes.sum())), sizes)

    def followed_by(self, other: Self) -> Self:
        """These sequences, then those."""
        return replace(self, tokens=np.concatenate((self.tokens, other.tokens)), sizes=np.concatenate((self.sizes, other.sizes)))

    def joined(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> Self:
        """Sequences put together: of the sequences at `numbers`, the first `counts[0]` become one, and so on; no count is zero."""
        begins, sizes = np.cumsum(self.sizes) - self.sizes, self.sizes[numbers]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins[numbers] - ends + sizes, sizes)
        totals = np.add.reduceat(sizes, np.cumsum(counts) - counts) if len(counts) else counts
        return replace(self, tokens=self.tokens[places], sizes=totals)

    def parts(self) -> list[NDArray[np.int32]]:
        """Each sequence."""
        ends = np.cumsum(self.sizes)
        return [self.tokens[begin:end] for begin, end in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True)]


class Numbers(dict[str, int]):
    """The number of each piece in the order in which they were first asked for; `new` are those asked for since it was emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        number = self[piece] = len(self)
        self.new.append(piece)
        return number


class Memo:
    """A function from pieces of text to tokens that is asked for each piece once, until so much is remembered that all is forgotten.

    Args:
        compute: gives the tokens of several pieces.
    """

    def __init__(self, compute: Callable[[list[str]], Ragged]) -> None:
        self.compute = compute
        self._forget()

    def _forget(self) -> None:
        self.numbers, self.known, self.size = Numbers(), Ragged.of([]), 0

    def joined(self, texts: Collection[list[str]]) -> Ragged:
        """The tokens of texts that are given in pieces, at least one each."""
        if self.size > REMEMBERED_CHARACTERS:
            self._forget()
        counts = np.fromiter(map(len, texts), np.int64, len(texts))
        pieces = map(self.numbers.__getitem__, chain.from_iterable(texts))
        numbers = np.fromiter(pieces, np.int64, int(counts.sum()))
        new, self.numbers.new = self.numbers.new, []
        if new:
            self.known = self.known.followed_by(self.compute(new))
            self.size += sum(map(len, new)) + COST_OF_A_PIECE * len(new)
        return self.known.joined(numbers, counts)


REMEMBERED_PLACES = 2**14
START = "\ud800"
"""Half of a surrogate pair, which no text has: marks a piece that begins a text, where others begin with a space that they leave out."""
MARKED = f" {START}"
PROBE = "It's 12:30,  isn't it? \n\n \tDon't  ask: e=mc², “naïve” 日本語 <b>x</b>   end. "


@dataclass(frozen=True, slots=True)
class Texts:
    """A comparison as text. `whole[k]` is all of response k; `begin` is (k, position): where response k's own text begins."""

    whole: Sequence[str]
    begin: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A comparison as tokens, special tokens around each text included. `begin` is the index of the token at `Texts.begin`."""

    sequences: list[NDArray[np.int32]]
    begin: int | None


class TextEncoder(Protocol):
    """Encodes comparisons, a batch at a time."""

    def encode(self, rows: Sequence[Texts]) -> list[Encoded]: ...


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """The fastest encoder that gives the tokens of `tokenizer(text)`."""
    whole = WholeTextEncoder(tokenizer)
    if can_be_cut(tokenizer):
        pieces, probe = PieceEncoder(tokenizer), [Texts([PROBE])]
        if np.array_equal(pieces.encode(probe)[0].sequences[0], whole.encode(probe)[0].sequences[0]):  # else its class adds to it
            return pieces
    return whole


class WholeTextEncoder:
    """Every text as the tokenizer encodes it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.edges = tokenizer, edge_tokens(tokenizer)

    def encode(self, rows: Sequence[Texts]) -> list[Encoded]:
        """The tokens of each comparison; all texts in one call."""
        encoding = encode_texts([text for row in rows for text in row.whole], self.tokenizer, self.edges)
        first, encoded = 0, []
        for row in rows:
            sequences = [np.array(ids, TOKEN) for ids in encoding["input_ids"][first : first + len(row.whole)]]
            begin = None if row.begin is None else encoding.char_to_token(first + row.begin[0], row.begin[1])
            encoded.append(Encoded(sequences, begin))
            first += len(row.whole)
        return encoded


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, edges: EdgeTokens) -> BatchEncoding:
    """What the tokenizer gives for texts that a chat template wrote."""
    return tokenizer(
        list(texts),
        add_special_tokens=not edges.in_template,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


class PieceEncoder:
    """Every piece of text once, however often it comes: words repeat, and the responses of a comparison share their prompt.

    Args:
        tokenizer: one for which `can_be_cut` holds.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        edges = edge_tokens(tokenizer)
        outside = ((), ()) if edges.in_template else (edges.leading, edges.trailing)
        self.before, self.after = (np.array(ids, TOKEN) for ids in outside)
        self.backend = tokenizer.backend_tokenizer
        self.is_cut_in_words = can_be_cut_in_words(tokenizer)
        self.words, self.parts = Memo(self._encode_words), Memo(self._encode)
        self.token_at = lru_cache(REMEMBERED_PLACES)(self._token_at)

    def encode(self, rows: Sequence[Texts]) -> list[Encoded]:
        """The tokens of each comparison; all pieces that are new in one call."""
        halved = [_halves(row) for row in rows]
        words = {half: BEFORE_WORDS.split(half) for halves in chain.from_iterable(halved) for half in halves}
        tokens = dict(zip(words, self.words.joined(words.values()).parts(), strict=True))
        encoded = []
        for row, texts in zip(rows, halved, strict=True):
            wholes = [np.concatenate((self.before, *map(tokens.__getitem__, halves), self.after)) for halves in texts]
            begin = None if row.begin is None else self._begin(texts[row.begin[0]], row.begin[1], words, tokens)
            encoded.append(Encoded(wholes, begin))
        return encoded

    def _begin(
        self, halves: tuple[str, ...], position: int, words: Mapping[str, list[str]], tokens: Mapping[str, NDArray[np.int32]]
    ) -> int | None:
        """The index of the token with the character at `position`, which is in the first word of the last half."""
        *heads, last = halves
        before = len(self.before) + sum(len(tokens[head]) for head in heads)
        inside = self.token_at(_text_of(words[last][0]), position - sum(len(head) - len(START) for head in heads))
        return None if inside is None else before + inside

    def _encode_words(self, words: list[str]) -> Ragged:
        texts = [_text_of(word) for word in words]
        if not self.is_cut_in_words:
            return self._encode(texts)
        return self.parts.joined(
            [[text] if word.isalpha() else BEFORE_PUNCTUATION.split(text) for word, text in zip(words, texts, strict=True)]
        )

    def _encode(self, texts: list[str]) -> Ragged:
        self.backend.no_padding()
        self.backend.no_truncation()
        return Ragged.of([encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)])

    def _token_at(self, text: str, position: int) -> int | None:
        token: int | None = self.backend.encode(text, add_special_tokens=False).char_to_token(position)
        return token


def _halves(row: Texts) -> list[tuple[str, ...]]:
    """Each text in two, without the space between them: up to the last word before the response begins, which texts share, and the rest.

    The beginning of a text is marked with `START`. A text without such a word is not halved.
    """
    if row.begin is None:
        return [(START + text,) for text in row.whole]
    text, position = row.whole[row.begin[0]], row.begin[1]
    at = text.rfind(" ", 0, position + 1)
    while at > 0 and text[at - 1].isspace():
        at = text.rfind(" ", 0, at)
    shared, head = text[: at + 1], START + text[: max(at, 0)]
    return [(head, other[at + 1 :]) if shared and other.startswith(shared) else (START + other,) for other in row.whole]


def _text_of(word: str) -> str:
    """A word with the space that it begins with, or, at the beginning of a text, without the mark."""
    return f" {word}".removeprefix(MARKED)
