"""Tokenized comparisons as text again, and the search for those that contain a text."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import TokenizedComparison, Tokens


def decoded_response(responses: Iterable[tuple[TokenizedComparison, int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of responses, each given as its comparison and its number there, without prompt and special tokens.

    It is the text as far as the tokenizer keeps it: one that lowers case or drops line feeds gives it so.
    """
    tokens = [np.asarray(row.sequences[number][row.prompt_length :]).tolist() for row, number in responses]
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True) if tokens else []
    return texts


class Comparisons(Protocol):
    """Anything indexable that gives tokenized comparisons."""

    def __getitem__(self, index: int, /) -> TokenizedComparison: ...


@dataclass(frozen=True, slots=True)
class Match:
    """A place that contains a text: in the decoded sequence of response `response`, from character `begin` to `end`."""

    row: int
    response: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave: the first match of each comparison that has one, and how many comparisons were looked at."""

    matches: Sequence[Match]
    searched: int


def decoded(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens as the text they stand for, special tokens included."""
    ids = [int(token) for token in tokens]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def search(
    data: Comparisons,
    numbers: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    limit: int,
    progress: Callable[[int], None] = lambda searched: None,
) -> Found:
    """Comparisons of which a whole sequence, prompt and response, contains a text, whatever its case; no more are read than needed.

    Args:
        data: the comparisons.
        numbers: which of them to look at, in this order.
        tokenizer: gives tokens back as text.
        text: what to find, literally.
        limit: stop at so many comparisons.
        progress: told how many comparisons have been looked at.
    """
    pattern = re.compile(re.escape(text), re.IGNORECASE)
    searched = 0

    def matches() -> Iterable[Match]:
        nonlocal searched
        for number in numbers:
            searched += 1
            progress(searched)
            for response, tokens in enumerate(data[number].sequences):
                if match := pattern.search(decoded(tokens, tokenizer)):
                    yield Match(number, response, *match.span())
                    break

    return Found(list(islice(matches(), limit)), searched)
