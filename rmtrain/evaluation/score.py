"""Comparisons to rewards: every row scored exactly once, in micro-batches that do not depend on the number of processes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.batching.loader import Comparisons, gather
from rmtrain.batching.plan import Costs, Indices, Lengths, check_budget, split_step
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.model.reward_model import evaluating
from rmtrain.recipe.schema import LOWER_IS_BETTER, Gate


class Scorable(Comparisons, Lengths, Protocol):
    """Comparisons that can be cut into micro-batches and scored."""

    @property
    def ids(self) -> Sequence[str]: ...


class Rows:
    """Tokenized comparisons with their lengths; see `TokenizedData` for the columns.

    Args:
        comparisons: at least one.
    """

    def __init__(self, comparisons: Sequence[TokenizedComparison]) -> None:
        self._comparisons = comparisons
        lengths = [[len(sequence) for sequence in row.sequences] for row in comparisons]
        self.response_counts: NDArray[np.int32] = np.array([len(row) for row in lengths], np.int32)
        self.longest: NDArray[np.int32] = np.array([max(row) for row in lengths], np.int32)
        self.total_tokens: NDArray[np.int64] = np.array([sum(row) for row in lengths], np.int64)
        prefixes = np.array([row.prefix_length for row in comparisons], np.int64)
        self.unique_tokens: NDArray[np.int64] = self.total_tokens - (self.response_counts - 1) * prefixes
        self.ids: Sequence[str] = [row.id for row in comparisons]

    def __len__(self) -> int:
        return len(self._comparisons)

    def __getitem__(self, index: int, /) -> TokenizedComparison:
        return self._comparisons[index]

    def for_probing(self) -> list[TokenizedComparison]:
        """The shortest, middle and longest comparison."""
        by_length = np.argsort(self.longest, kind="stable")
        return [self[int(by_length[place])] for place in sorted({0, len(self) // 2, len(self) - 1})]


def scoring_micro_batches(data: Scorable, layout: Layout, max_tokens: int) -> tuple[Indices, ...]:
    """All comparisons, cut into micro-batches of at most `max_tokens` in a layout; raises RecipeError when one comparison is above."""
    costs = Costs.of(data, layout)
    check_budget(costs, data.ids, max_tokens)
    (micro_batches,) = split_step(np.arange(len(data)), costs, max_tokens, world=1)
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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of some comparisons in the order of the data, their summary, and how long how many micro-batches took.

    `hardest` are the errors of the largest margins as text, where somebody asked for them; `settings` is what the numbers depend on beside
    the model.
    """

    scored: list[ScoredComparison]
    summary: dict[str, Any]
    seconds: float
    micro_batches: int
    hardest: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The numbers of a log line, under the seed's names. A step of an evaluation is a micro-batch."""
        core = {
            key: self.summary[key]
            for key in ("loss", "accuracy", "accuracy_low", "accuracy_high", "ties", "margin", "longer_wins", "calibration_error")
        }
        sides = {"chosen": "winners", "rejected": "losers"}
        core |= {f"{name}_reward": self.summary["rewards"][side]["mean"] for name, side in sides.items()}
        sources = self.summary["sources"]
        per_source = {f"{tag}/accuracy": numbers["accuracy"] for tag, numbers in sources.items()} if len(sources) > 1 else {}
        speed = {
            "runtime": self.seconds,
            "samples_per_second": len(self.scored) / self.seconds,
            "steps_per_second": self.micro_batches / self.seconds,
        }
        return {f"eval/{name}": value for name, value in (core | per_source | speed).items() if value is not None}


def evaluate(
    model: nn.Module,
    data: TokenizedData,
    layout: Layout,
    accelerator: Accelerator,
    pad_token_id: int,
    max_tokens: int,
    check: Callable[[], None] | None = None,
) -> Evaluation:
    """Score all comparisons and summarize the scores; arguments and errors are those of `score` and `summarize`."""
    start = time.perf_counter()
    micro_batches = scoring_micro_batches(data, layout, max_tokens)
    scored = score(model, data, micro_batches, layout, accelerator, pad_token_id, check)
    return Evaluation(scored, summarize(scored), time.perf_counter() - start, len(micro_batches))


def check_gates(summary: Mapping[str, Any], gates: Mapping[Gate, float]) -> dict[str, dict[str, Any]]:
    """For each gate the required and the reached value, and whether it passed; of a loss, less is better."""
    results: dict[str, dict[str, Any]] = {}
    for name, required in gates.items():
        value = summary[name]
        passed = value is not None and (value <= required if name in LOWER_IS_BETTER else value >= required)
        results[name] = {"required": required, "value": value, "passed": passed}
    return results
