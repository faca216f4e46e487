"""A benchmark as tokens: its rows encoded once and scored by any model, after the training or at each evaluation during it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from accelerate import Accelerator
from torch import nn

from rmtrain.data.comparison import Comparison, TokenizedComparison, hash_text, prompt_hash
from rmtrain.data.text.encoder import Encoder
from rmtrain.evaluation.benchmarks.base import Benchmark, Item
from rmtrain.evaluation.diagnosis import describe_edge
from rmtrain.evaluation.scores_file import TIES, ScoredComparison, digest_of, versions
from rmtrain.evaluation.scoring import ScoringPlan, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedBenchmark:
    """The rows of a benchmark, their tokens, the hashes of their prompts, and how many lost their beginning."""

    benchmark: Benchmark
    items: Sequence[Item]
    comparisons: Sequence[TokenizedComparison]
    prompts: Sequence[str]
    rows_cut: int

    @classmethod
    def of(cls, benchmark: Benchmark, items: Sequence[Item], encoder: Encoder) -> Self:
        """Encode the rows of a benchmark; raises DataError where the template refuses one."""
        requests = [
            Comparison(
                f"{benchmark.name}: {item.source}/{item.id}",
                f"{benchmark.name}: {item.source}",
                item.prompt,
                tuple(({"role": "assistant", "content": response},) for response in item.responses),
                item.preferences,
            )
            for item in items
        ]
        comparisons, were_cut = encoder.encode_for_scoring(requests)
        prompts = [hash_text(prompt_hash(request)) for request in requests]
        return cls(benchmark, items, comparisons, prompts, sum(were_cut))

    def score(
        self, model: nn.Module, plan: ScoringPlan, accelerator: Accelerator, check: Callable[[], None] | None = None
    ) -> list[ScoredComparison]:
        """Score the rows on all ranks, each once, given a plan of `comparisons`; see `rmtrain.evaluation.scoring.score`."""
        scored = score(model, plan, accelerator, check)
        return [
            replace(row, id=item.id, source=item.source, shown=item.shown, targets=item.targets, prompt=prompt)
            for row, item, prompt in zip(scored, self.items, self.prompts, strict=True)
        ]

    def settings(self, model: str, layout: str, of_model: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything that the rewards depend on, given that of the model: dtype, max_length, overlong, template_sha256."""
        return {
            "benchmark": self.benchmark.name,
            "model": model,
            **of_model,
            "ties": TIES,
            "layout": layout,
            "rows": len(self.items),
            "rows_cut": self.rows_cut,
            "rows_dropped": 0,
            "rows_sha256": digest_of([[item.source, item.id, item.prompt, item.responses] for item in self.items]),
            "versions": versions(),
        }

    def samples(
        self, scored: Sequence[ScoredComparison], tokenizer: "PreTrainedTokenizerBase", count: int
    ) -> list[dict[str, Any]]:
        """Return up to `count` rows as text, spread evenly over the benchmark and the same ones each time; see `describe_edge`."""
        compared = [number for number, item in enumerate(self.items) if item.preferences]
        places = np.unique(np.linspace(0, len(compared) - 1, min(count, len(compared))).astype(int)).tolist()
        rows = [(self.comparisons[number], scored[number].rewards) for number in (compared[place] for place in places)]
        return [describe_edge(row, row.preferences[0], rewards, tokenizer) for row, rewards in rows]

    def warnings(self, max_length: int | None) -> list[str]:
        """Return a warning if rows were cut."""
        if not self.rows_cut:
            return []
        return [f"{self.rows_cut:,} of {len(self.items):,} rows are over {max_length:,} tokens and lost their beginning"]
