"""Tokens to tensors: how the comparisons of one micro-batch lie in memory.

`padded`: one row per response, right-padded to the longest; R = responses, T = the longest.

Tensor legend: R rows, T tokens of a row, N responses of the micro-batch, E preferences (edges).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rmtrain.data.comparison import TokenizedComparison


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What the model and the objective need of some comparisons. Responses keep the order of their comparisons.

    input_ids_RT, position_ids_RT: int64. attention_mask_RT: int64, 1 on real tokens.
    reward_row_N, reward_column_N: int64, where each response's last real token lies.
    winner_E, loser_E: int64, indices into the N responses. margin_E, probability_E: float32.
    weight_E: float32, the edge's weight over the sum of weights of its comparison, so that each comparison counts once.
    """

    input_ids_RT: Tensor
    attention_mask_RT: Tensor
    position_ids_RT: Tensor
    reward_row_N: Tensor
    reward_column_N: Tensor
    winner_E: Tensor
    loser_E: Tensor
    margin_E: Tensor
    probability_E: Tensor
    weight_E: Tensor
    ids: tuple[str, ...]
    response_counts: tuple[int, ...]
    tokens: int

    def to(self, device: torch.device) -> Self:
        """The same micro-batch with its tensors on `device`."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{**values, **moved})


def lay_out(comparisons: Sequence[TokenizedComparison], pad_token_id: int) -> MicroBatch:
    """Lay comparisons out as a padded micro-batch.

    Args:
        comparisons: at least one tokenized comparison.
        pad_token_id: id written after a sequence's last token; never attended.

    Returns:
        The micro-batch, on the CPU. `tokens` counts real tokens.
    """
    sequences = [sequence for comparison in comparisons for sequence in comparison.sequences]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    rows, longest = len(sequences), int(lengths.max())
    mask = np.arange(longest)[None, :] < lengths[:, None]
    input_ids = np.full((rows, longest), pad_token_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(sequences)
    return MicroBatch(
        input_ids_RT=torch.from_numpy(input_ids),
        attention_mask_RT=torch.from_numpy(mask.astype(np.int64)),
        position_ids_RT=torch.arange(longest).expand(rows, longest),
        reward_row_N=torch.arange(rows),
        reward_column_N=torch.from_numpy(lengths - 1),
        ids=tuple(comparison.id for comparison in comparisons),
        response_counts=tuple(len(comparison.sequences) for comparison in comparisons),
        tokens=int(lengths.sum()),
        **_edges(comparisons),
    )


def _edges(comparisons: Sequence[TokenizedComparison]) -> dict[str, Tensor]:
    winners, losers, margins, probabilities, weights = [], [], [], [], []
    first = 0
    for comparison in comparisons:
        total = sum(edge.weight for edge in comparison.preferences)
        for edge in comparison.preferences:
            winners.append(first + edge.winner)
            losers.append(first + edge.loser)
            margins.append(edge.margin)
            probabilities.append(edge.probability)
            weights.append(edge.weight / total)
        first += len(comparison.sequences)
    return {
        "winner_E": torch.tensor(winners, dtype=torch.int64),
        "loser_E": torch.tensor(losers, dtype=torch.int64),
        "margin_E": torch.tensor(margins, dtype=torch.float32),
        "probability_E": torch.tensor(probabilities, dtype=torch.float32),
        "weight_E": torch.tensor(weights, dtype=torch.float32),
    }
