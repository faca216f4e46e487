"""Responses that hardly differ, though one of them is preferred."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.checks.decoded import decoded
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.edges import Edges

SHARED = 0.95
"""Responses that share so much of their tokens are near-identical."""
POSSIBLE = 0.8
"""Responses that share less, and do not differ by a few tokens only, are not compared as text."""
FEW = 8
DECODED = 20_000
"""Most preferences of a split whose responses are compared as text."""
DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
SIGNS = ("Sm", "Sc", "So", "Pd")

NearlySame = tuple[int, str]
"""The number of an edge, and in what its sides are the same."""


def find_near_identical(data: TokenizedData, edges: Edges, tokenizer: PreTrainedTokenizerBase) -> list[NearlySame]:
    """Edges whose winner and loser are nearly the same, in order. Any of three makes them so:

    - the same text but for case, spacing and Unicode form;
    - at least 95 % of their tokens shared: twice the number they have in common, in whatever order, over the number both have;
    - the same letters, digits and signs in the same order, whatever the case, spacing and punctuation. This is looked at where they
      share 80 % of their tokens or differ by at most eight, and for at most 20,000 edges.

    Tokens are those of the responses themselves, without prompt and end token.
    """
    same = np.flatnonzero(edges.winner_nodes == edges.loser_nodes).tolist()
    found = [(edge, "the same text but for case and spacing") for edge in same]
    doubtful: list[int] = []
    for edge, shared, size in _possible(data, edges, set(same)):
        if 2 * shared >= SHARED * size:
            found.append((edge, _overlap(shared, size)))
        elif len(doubtful) < DECODED:
            doubtful.append(edge)
    rows = [data[int(edges.comparisons[edge])] for edge in doubtful]
    winners, losers = (
        decoded(zip(rows, side[doubtful].tolist(), strict=True), tokenizer) for side in (edges.winners, edges.losers)
    )
    for edge, winner, loser in zip(doubtful, winners, losers, strict=True):
        if (letters := _letters(winner)) and letters == _letters(loser):
            found.append((edge, "the same letters and digits; only case, spacing and punctuation differ"))
    return sorted(found)


def _overlap(shared: int, size: int) -> str:
    return "the same tokens in another order" if 2 * shared == size else f"{200 * shared // size} % of the tokens are the same"


def _possible(data: TokenizedData, edges: Edges, known: set[int]) -> Iterator[tuple[int, int, int]]:
    """Edges that may be near-identical by their tokens: their number, tokens in common, and tokens of both sides together."""
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    first, prompts = begins[edges.comparisons], data.prompt_lengths[edges.comparisons]
    winners, losers = (data.lengths[first + side].astype(np.int64) - prompts - 1 for side in (edges.winners, edges.losers))
    sizes = winners + losers
    allowed = np.maximum(FEW, (1 - POSSIBLE) * sizes)
    near = [edge for edge in np.flatnonzero(np.abs(winners - losers) <= allowed).tolist() if edge not in known]
    for comparison, group in groupby(near, key=edges.comparisons.__getitem__):
        row, members = data[int(comparison)], list(group)
        sides = {edge: (int(edges.winners[edge]), int(edges.losers[edge])) for edge in members}
        counts = {number: _counts(row, number) for number in {number for pair in sides.values() for number in pair}}
        for edge in members:
            winner, loser = (counts[number] for number in sides[edge])
            shared = row.prefix_length - row.prompt_length + (winner & loser).total()
            if sizes[edge] - 2 * shared <= allowed[edge]:
                yield edge, shared, int(sizes[edge])


def _counts(row: TokenizedComparison, number: int) -> Counter[int]:
    """How often a response has each token that is neither in the common prefix nor the end token."""
    return Counter(np.asarray(row.sequences[number][row.prefix_length : -1]).tolist())


def _letters(text: str) -> str:
    """The text without case, spacing and punctuation; signs of a number, a dash and a decimal point stay, for they mean something."""
    plain = DECIMAL.sub("\N{BULLET OPERATOR}", unicodedata.normalize("NFKC", text).casefold())
    return "".join(character for character in plain if _means_something(character))


def _means_something(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in SIGNS or character in "%/"
