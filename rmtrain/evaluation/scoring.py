"""Comparisons to rewards: each row is scored exactly once, in micro-batches that do not depend on the number of processes.

Training's evaluation, `rmtrain eval`, its benchmarks, `rmtrain score` and `RewardScorer` all score through a `ScoringPlan`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.batching.plan import Costs, Indices, check_budget, gather, split_step
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison, hash_text
from rmtrain.evaluation.metrics import EvaluationResult, summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.model.reward_model import evaluating
from rmtrain.recipe.schema import Objectives


class TokenizedRows:
    """One or more tokenized comparisons in memory, with the columns of `TokenizedData` that scoring needs."""

    def __init__(self, comparisons: Sequence[TokenizedComparison]) -> None:
        self._comparisons = comparisons
        lengths = [[len(sequence) for sequence in row.sequences] for row in comparisons]
        prefixes = np.array([row.prefix_length for row in comparisons], np.int64)
        self.response_counts: NDArray[np.int32] = np.array([len(row) for row in lengths], np.int32)
        self.longest: NDArray[np.int32] = np.array([max(row) for row in lengths], np.int32)
        self.total_tokens: NDArray[np.int64] = np.array([sum(row) for row in lengths], np.int64)
        self.unique_tokens: NDArray[np.int64] = self.total_tokens - (self.response_counts - 1) * prefixes
        self.ids: Sequence[str] = [row.id for row in comparisons]

    def __len__(self) -> int:
        return len(self._comparisons)

    def __getitem__(self, index: int, /) -> TokenizedComparison:
        return self._comparisons[index]


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """Comparisons cut into micro-batches; made once, then used at every evaluation.

    layout: of the micro-batches; the model's attention is set for it.
    costs: tokens of each comparison in this layout.
    micro_batches: numbers of comparisons, each comparison in exactly one micro-batch.
    """

    data: TokenizedData | TokenizedRows
    layout: Layout
    costs: Costs
    micro_batches: tuple[Indices, ...]
    pad_token_id: int

    @classmethod
    def of(cls, data: TokenizedData | TokenizedRows, layout: Layout, costs: Costs, max_tokens: int, pad_token_id: int) -> Self:
        """Cut comparisons into micro-batches of at most `max_tokens`; raises RecipeError when one comparison is above that."""
        check_budget(costs, data.ids, max_tokens)
        # As for one process, however many share them: a reward depends, in its last bits, on the micro-batch it is computed in.
        (micro_batches,) = split_step(np.arange(len(data)), costs, max_tokens, world=1)
        return cls(data, layout, costs, micro_batches, pad_token_id)


def score(
    model: nn.Module, plan: ScoringPlan, accelerator: Accelerator, check: Callable[[], None] | None = None
) -> list[ScoredComparison]:
    """Score comparisons on all ranks, which share the micro-batches; each rank gets all results, in the order of the data.

    Args:
        model: a RewardModel, prepared or not; the modes of its modules are restored afterwards.
        plan: the micro-batches. They go round the ranks; the last round repeats some, so that all ranks make the same calls.
        accelerator: gathers the rewards of all ranks.
        check: called before each micro-batch, equally often on all ranks; ends the work by raising.
    """
    world, count = accelerator.num_processes, len(plan.micro_batches)
    rounds = -(-count // world)
    mine = [plan.micro_batches[(accelerator.process_index + number * world) % count] for number in range(rounds)]
    scored = score_micro_batches(model, plan, mine, accelerator.device, check)
    merged = dict(gather_object(list(scored.items())))
    assert len(merged) == len(plan.data), f"{len(merged)} of {len(plan.data)} rows were scored"
    return [merged[number] for number in range(len(plan.data))]


def score_micro_batches(
    model: nn.Module,
    plan: ScoringPlan,
    micro_batches: Sequence[Indices],
    device: torch.device,
    check: Callable[[], None] | None = None,
) -> dict[int, ScoredComparison]:
    """Score micro-batches of a plan on this process alone; see `score`. Returns each comparison by its number in the data."""
    scored: dict[int, ScoredComparison] = {}
    prompt_hashes = plan.data.prompt_hashes if isinstance(plan.data, TokenizedData) else None
    with evaluating(model):
        for indices in micro_batches:
            if check is not None:
                check()
            rows = gather(plan.data, indices)
            batch = lay_out(rows, plan.pad_token_id, plan.layout).to(device)
            rewards_N = model(batch).float().cpu()
            for index, row, rewards in zip(indices, rows, rewards_N.split(batch.response_counts), strict=True):
                cut = row.cut or (0,) * len(row.sequences)
                scored[int(index)] = ScoredComparison(
                    row.id,
                    row.source,
                    rewards=tuple(rewards.tolist()),
                    lengths=tuple(len(sequence) + removed for sequence, removed in zip(row.sequences, cut, strict=True)),
                    preferences=row.preferences,
                    targets=row.targets,
                    weight=row.weight,
                    prompt="" if prompt_hashes is None else hash_text(int(prompt_hashes[index])),
                    cut=row.cut,
                )
    return scored


def evaluate(
    model: nn.Module,
    plan: ScoringPlan,
    accelerator: Accelerator,
    objective: Objectives,
    check: Callable[[], None] | None = None,
) -> EvaluationResult:
    """Score all comparisons of a plan and summarize the scores; see `score` and `summarize` for arguments and errors."""
    start = time.perf_counter()
    scored = score(model, plan, accelerator, check)
    return EvaluationResult(scored, summarize(scored, objective), time.perf_counter() - start, len(plan.micro_batches))
