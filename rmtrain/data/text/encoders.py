"""Texts to tokens: through the tokenizer as they are, or piece by piece, which gives the same tokens and meets most pieces again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from rmtrain.data.text.boundaries import BEFORE_PUNCTUATION, BEFORE_WORDS, can_be_cut, can_be_cut_in_words
from rmtrain.data.text.memo import TOKEN, Memo, Ragged
from rmtrain.data.text.special_tokens import EdgeTokens, edge_tokens

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
