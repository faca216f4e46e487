"""Comparisons to rewards: every row scored exactly once, in micro-batches that do not depend on the number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from rmtrain.batching.layout import lay_out
from rmtrain.batching.loader import gather
from rmtrain.batching.plan import check_budget, cut
from rmtrain.data.artifact import TokenizedData
from rmtrain.errors import NumericError
from rmtrain.evaluation.scores import ScoredComparison


def score(
    model: nn.Module, data: TokenizedData, accelerator: Accelerator, pad_token_id: int, max_tokens: int
) -> list[ScoredComparison]:
    """Rewards of every response of every comparison, in the order of the data, on all ranks.

    Args:
        model: a RewardModel, prepared or not; its modes are restored afterwards.
        data: the comparisons.
        accelerator: shards the micro-batches over ranks.
        pad_token_id: id that fills rows up.
        max_tokens: largest micro-batch of one process.

    Raises:
        RecipeError: a comparison above `max_tokens`.
        NumericError: a reward that is not finite; the first rows are named.
    """
    check_budget(data.longest, data.response_counts, data.ids, max_tokens)
    (micro_batches,) = cut(np.arange(len(data)), data.longest, data.response_counts, max_tokens, world=1)
    rounds = -(-len(micro_batches) // accelerator.num_processes)
    mine = [(accelerator.process_index + turn * accelerator.num_processes) % len(micro_batches) for turn in range(rounds)]
    scored: dict[int, tuple[float, ...]] = {}
    with evaluating(model), torch.inference_mode():
        for number in mine:
            indices = micro_batches[number]
            batch = lay_out(gather(data, indices), pad_token_id).to(accelerator.device)
            rewards_N = model(batch).float().cpu()
            for index, rewards in zip(indices, rewards_N.split(batch.response_counts), strict=True):
                scored[int(index)] = tuple(rewards.tolist())
    merged = dict(gather_object(list(scored.items())))
    assert len(merged) == len(data), f"{len(merged)} of {len(data)} rows were scored"
    rows = [_scored(data, index, merged[index]) for index in range(len(data))]
    check_finite(rows)
    return rows


def _scored(data: TokenizedData, index: int, rewards: tuple[float, ...]) -> ScoredComparison:
    row = data[index]
    return ScoredComparison(row.id, row.source, rewards, tuple(len(sequence) for sequence in row.sequences), row.preferences)


def check_finite(rows: list[ScoredComparison]) -> None:
    """Raise NumericError, naming the first rows, when a reward is not finite: NaN compares as lost and would pass unseen."""
    wrong = [row.id for row in rows if not np.isfinite(row.rewards).all()]
    if wrong:
        raise NumericError(f"{len(wrong)} of {len(rows)} rows have a reward that is not finite: {', '.join(wrong[:5])}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
