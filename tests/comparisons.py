"""Tokenized comparisons made by hand, and their costs, for tests of batching, engine and model."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import PAIR, Preference, TokenizedComparison, common_prefix_length


def tokenized(name: str, *sequences: Sequence[int], preferences: tuple[Preference, ...] = PAIR) -> TokenizedComparison:
    """A comparison of these sequences, with the prefix they share."""
    prefix = common_prefix_length(sequences)
    return TokenizedComparison(name, "s", sequences, prefix_length=prefix, prompt_length=prefix, preferences=preferences)


def random_pairs(count: int, prompts: int, responses: int, seed: int = 3) -> list[TokenizedComparison]:
    """Pairs with margins and the end token 0; prompts have less than `prompts` tokens, responses 2 to `responses` - 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt = rng.integers(2, 300, rng.integers(0, prompts)).tolist()
        sides = tuple([*prompt, *rng.integers(2, 300, rng.integers(2, responses)).tolist(), 0] for _ in range(2))
        rows.append(tokenized(f"s:{number}", *sides, preferences=(Preference(0, 1, float(rng.random())),)))
    return rows


def costs_of(rows: Sequence[TokenizedComparison], layout: Layout) -> Costs:
    """The costs of rows in a layout."""
    lengths = SimpleNamespace(
        longest=np.array([max(map(len, row.sequences)) for row in rows], dtype=np.int32),
        response_counts=np.array([len(row.sequences) for row in rows], dtype=np.int32),
        total_tokens=np.array([sum(map(len, row.sequences)) for row in rows], dtype=np.int64),
        unique_tokens=np.array(
            [row.prefix_length + sum(len(sequence) - row.prefix_length for sequence in row.sequences) for row in rows],
            dtype=np.int64,
        ),
    )
    return Costs.of(lengths, layout)
