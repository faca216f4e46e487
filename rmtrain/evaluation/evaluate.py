"""One evaluation: every comparison scored, then every number computed from the scores, then the gates."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import nn

from rmtrain.batching.layout import Layout
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.score import score, scoring_micro_batches
from rmtrain.evaluation.scores import ScoredComparison
from rmtrain.recipe.schema import LOWER_IS_BETTER, Gate


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
