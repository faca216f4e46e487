"""A few comparisons with their rewards, as text: what the model makes of them at this point of the training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.evaluation.scores import ScoredComparison


def sample_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, Any]]:
    """`count` comparisons spread evenly over the data, the same ones each time.

    Returns:
        For each `id`, `source`, `prompt`, `chosen` and `rejected` as text (the sides of its first preference), and their `rewards`.
    """
    numbers = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return [_sample(data, scored, tokenizer, int(number)) for number in numbers]


def _sample(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: PreTrainedTokenizerBase, number: int
) -> dict[str, Any]:
    row = data[number]
    return describe_edge(row, row.preferences[0], scored[number].rewards, tokenizer)


def describe_edge(
    row: TokenizedComparison, edge: Preference, rewards: Sequence[float], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """A preference of a comparison as `sample_rows` has it.

    Args:
        rewards: of each of the comparison's responses.
    """
    chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
    prompt, *responses = (
        tokenizer.decode(ids, skip_special_tokens=True)
        for ids in (chosen[: row.prompt_length], chosen[row.prompt_length :], rejected[row.prompt_length :])
    )
    return {
        "id": row.id,
        "source": row.source,
        "prompt": prompt,
        "chosen": responses[0],
        "rejected": responses[1],
        "rewards": [rewards[edge.winner], rewards[edge.loser]],
    }
