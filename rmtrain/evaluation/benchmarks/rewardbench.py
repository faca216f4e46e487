"""RewardBench (arXiv:2403.13787): pairs in 23 subsets, four sections.

The score of a subset is the share of its pairs whose chosen response has the strictly greater reward. A section is the mean of its subsets,
weighted by constants of the benchmark: math-prm counts 984 although it has 447 rows, so that mathematics weighs as much as code. The total
is the plain mean of the four sections. The script: `scripts/run_rm.py` of allenai/reward-bench.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import Benchmark, Item, Row, cell, matching, number, user
from rmtrain.evaluation.scores_file import ScoredComparison

LANGUAGES = ("cpp", "go", "java", "js", "python", "rust")
SECTIONS: Mapping[str, Mapping[str, float]] = {
    "Chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40},
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984} | {f"hep-{language}": 164 for language in LANGUAGES},
}


class RewardBench(Benchmark):
    """See the module; `output` reads the rows of `run_rm.py` and of the command `rewardbench`."""

    name = "rewardbench"
    title = "RewardBench"
    sections = tuple(SECTIONS)
    counts = SECTIONS
    hub = ("allenai/reward-bench", "filtered")
    published = "the dataset allenai/reward-bench, split filtered"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["filtered"]) or list(found)

    def item(self, row: Row, file: Path | None, index: int) -> Item:
        responses = (cell(row, "chosen", str), cell(row, "rejected", str))
        return Item(str(row.get("id", index)), self._subset(row), user(cell(row, "prompt", str)), responses, PAIR)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        rewards = tuple(number(cell(row, column, object), column) for column in ("scores_chosen", "scores_rejected"))
        return ScoredComparison(str(row.get("id", index)), self._subset(row), rewards, (), PAIR)

    def _subset(self, row: Row) -> str:
        subset = cell(row, "subset", str)
        if not any(subset in counts for counts in SECTIONS.values()):
            raise ValueError(f"subset {subset!r} is not one of RewardBench's 23; use the split `filtered`")
        return subset


REWARDBENCH = RewardBench()
