"""LLMBar (arXiv:2310.07641): pairs of outputs of which one follows the instruction; in the adversarial subsets the other one looks better.

Accuracy is by subset. Its authors report Natural and the mean of the four adversarial subsets, without a total; ours is the mean of
these two. They ask a judge in both orders and report the mean of both accuracies (`correct_average` of `LLMEvaluator/evaluate.py`). A
judge that gives scores answers with the output in the second place where they are equal, so that a tie is right in one of the orders: it
counts half.
"""

from collections.abc import Sequence
from pathlib import Path

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import Benchmark, Floats, Item, Row, Rule
from rmtrain.evaluation.benchmarks.published import cell, first_in, matching, user
from rmtrain.evaluation.scores_file import ScoredComparison

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)
SECTIONS = {"Natural": {"Natural": 1.0}, "Adversarial": dict.fromkeys(ADVERSARIAL, 1.0)}


class LLMBar(Benchmark):
    """See the module; the path of a file, such as `Natural/dataset.json`, names its subset."""

    name = "llmbar"
    title = "LLMBar"
    sections = tuple(SECTIONS)
    counts = SECTIONS
    ours = "the total"
    published = "Dataset/LLMBar of github.com/princeton-nlp/LLMBar: Natural/dataset.json and Adversarial/*/dataset.json"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, SUBSETS, parts=2)

    def item(self, row: Row, file: Path, index: int) -> Item:
        label = cell(row, "label", int)
        if label not in (1, 2):
            raise ValueError(f"label: expected 1 or 2, got {label}")
        outputs = (cell(row, "output_1", str), cell(row, "output_2", str))
        responses = outputs if label == 1 else outputs[::-1]
        subset = first_in(SUBSETS, file, parts=2)
        if subset is None:
            raise ValueError(f"the path of the file names no subset; expected one of {', '.join(SUBSETS)}")
        return Item(str(index), subset, user(cell(row, "input", str)), responses, PAIR)

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        return super().credits(scored, "half_credit" if rule == "official" else rule)


LLMBAR = LLMBar()
