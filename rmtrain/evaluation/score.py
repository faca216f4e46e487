"""Comparisons to rewards: every row scored exactly once, in micro-batches that do not depend on the number of processes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.batching.loader import gather
from rmtrain.batching.plan import Costs, Indices, check_budget, cut
from rmtrain.evaluation.rows import Scorable
from rmtrain.evaluation.scores import ScoredComparison
from rmtrain.model.reward_model import evaluating


def scoring_micro_batches(data: Scorable, layout: Layout, max_tokens: int) -> tuple[Indices, ...]:
    """All comparisons, cut into micro-batches of at most `max_tokens` in a layout; raises RecipeError when one comparison is above."""
    costs = Costs.of(data, layout)
    check_budget(costs, data.ids, max_tokens)
    (micro_batches,) = cut(np.arange(len(data)), costs, max_tokens, world=1)
    return micro_batches


def score(
    model: nn.Module,
    data: Scorable,
    micro_batches: Sequence[Indices],
    layout: Layout,
    accelerator: Accelerator,
    pad_token_id: int,
    check: Callable[[], None] | None = None,
) -> list[ScoredComparison]:
    """The comparisons with the rewards of their responses, in the order of the data, on all ranks, which share the work.

    Args:
        model: a RewardModel, prepared or not; the modes of its modules are restored afterwards.
        data: the comparisons.
        micro_batches: each comparison in one of them; they go round the ranks, and the last round repeats some to stay in step.
        layout: of the micro-batches; the model's attention is set for it.
        accelerator: gathers the rewards of all ranks.
        pad_token_id: id that fills rows up.
        check: called before each micro-batch, equally often on all ranks; ends the work by raising.
    """
    rounds = -(-len(micro_batches) // accelerator.num_processes)
    mine = [(accelerator.process_index + turn * accelerator.num_processes) % len(micro_batches) for turn in range(rounds)]
    wanted = [micro_batches[number] for number in mine]
    rewards_by_row = rewards_of(model, data, wanted, layout, accelerator.device, pad_token_id, check)
    merged = dict(gather_object(list(rewards_by_row.items())))
    assert len(merged) == len(data), f"{len(merged)} of {len(data)} rows were scored"
    return [_scored(data, index, merged[index]) for index in range(len(data))]


def rewards_of(
    model: nn.Module,
    data: Scorable,
    micro_batches: Sequence[Indices],
    layout: Layout,
    device: torch.device,
    pad_token_id: int,
    check: Callable[[], None] | None = None,
) -> dict[int, tuple[float, ...]]:
    """The rewards of each comparison of some micro-batches, on this process alone, by its number; arguments as of `score`."""
    found: dict[int, tuple[float, ...]] = {}
    with evaluating(model):
        for indices in micro_batches:
            if check is not None:
                check()
            batch = lay_out(gather(data, indices), pad_token_id, layout).to(device)
            rewards_N = model(batch).float().cpu()
            for index, rewards in zip(indices, rewards_N.split(batch.response_counts), strict=True):
                found[int(index)] = tuple(rewards.tolist())
    return found


def _scored(data: Scorable, index: int, rewards: tuple[float, ...]) -> ScoredComparison:
    row = data[index]
    return ScoredComparison(row.id, row.source, rewards, tuple(len(sequence) for sequence in row.sequences), row.preferences)
