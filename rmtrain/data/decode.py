"""Text of tokenized comparisons, and the search for those that contain a text."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import TokenizedComparison, Tokens


def decoded(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, special_tokens: bool = True) -> str:
    """Return the text of tokens.

    Text that the tokenizer does not keep, such as upper case or line feeds, is not restored.

    Args:
        tokens: token ids.
        tokenizer: the tokenizer that made them.
        special_tokens: keep special tokens, and the spaces exactly as the tokens have them; without, spaces are cleaned up where the
            tokenizer is configured to do so.
    """
    ids = np.asarray(tokens, np.int64).tolist()
    clean_up = False if special_tokens else None  # clean-up would move the characters that a `Match` points to
    return str(tokenizer.decode(ids, skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=clean_up))


class IndexedComparisons(Protocol):
    """Tokenized comparisons by number, such as `TokenizedData` or a list."""

    def __getitem__(self, index: int, /) -> TokenizedComparison: ...


@dataclass(frozen=True, slots=True)
class Match:
    """The place of a text: characters `begin` to `end` of the decoded sequence of response `response` of comparison `row`."""

    row: int
    response: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The first match of each comparison that contains the text, and the number of comparisons searched."""

    matches: Sequence[Match]
    searched: int


def search(
    data: IndexedComparisons,
    numbers: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    limit: int,
    progress: Callable[[int], None] = lambda searched: None,
) -> SearchResult:
    """Search whole sequences, prompt and response, for a text, ignoring case; no more rows are read than needed.

    Args:
        data: the comparisons.
        numbers: numbers of the comparisons to search, in this order.
        tokenizer: the tokenizer that made them.
        text: the text to find, literally.
        limit: stop after this number of matches, at least 1.
        progress: called with the number of comparisons searched so far.
    """
    pattern = re.compile(re.escape(text), re.IGNORECASE)
    matches: list[Match] = []
    searched = 0
    for number in numbers:
        searched += 1
        progress(searched)
        for response, tokens in enumerate(data[number].sequences):
            if match := pattern.search(decoded(tokens, tokenizer)):
                matches.append(Match(number, response, *match.span()))
                break
        if len(matches) >= limit:
            break
    return SearchResult(matches, searched)
