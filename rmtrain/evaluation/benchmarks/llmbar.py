"""LLMBar (arXiv:2310.07641): pairs of outputs of which one follows the instruction; in the adversarial subsets the other one looks better.

Accuracy is by subset; a tie is wrong. Its authors report Natural and the mean of the four adversarial subsets, without a total; ours is
the mean of these two. They ask a judge in both orders; a reward model's answer does not depend on the order.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import (
    Benchmark,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    cell,
    credit_of_gaps,
    gaps,
    lower_path,
    means,
    row_units,
    section_weights,
    user,
)
from rmtrain.evaluation.metrics import mean
from rmtrain.evaluation.scores_file import ScoredComparison

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)


def scores(scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
    """Compute all scores of scored pairs."""
    accuracies = means(credit_of_gaps(gaps(scored), rule), [row.source for row in scored])
    subsets = {subset: accuracies[subset] for subset in SUBSETS if subset in accuracies}
    sections = {"Natural": subsets["Natural"]} if "Natural" in subsets else {}
    adversarial = mean([subsets[subset] for subset in ADVERSARIAL if subset in subsets])
    if adversarial is not None:
        sections["Adversarial"] = adversarial
    return Scores(mean(list(sections.values())), sections, subsets)


def units(scored: Sequence[ScoredComparison]) -> Units:
    """Make each pair a unit."""
    subsets = [row.source for row in scored]
    sections = ["Natural" if subset == "Natural" else "Adversarial" for subset in subsets]
    weights = section_weights(sections, subsets, dict.fromkeys(SUBSETS, 1.0))
    return row_units(scored, sections, subsets, weights, partial(credit_of_gaps, gaps(scored)))


def item(row: Row, file: Path | None, index: int) -> Item:
    """Convert a row; the better output comes first. The path of the file names its subset."""
    label = cell(row, "label", int)
    if label not in (1, 2):
        raise ValueError(f"label: expected 1 or 2, got {label}")
    outputs = (cell(row, "output_1", str), cell(row, "output_2", str))
    responses = outputs if label == 1 else outputs[::-1]
    return Item(str(index), _subset(file), user(cell(row, "input", str)), responses, PAIR)


def _subset(file: Path | None) -> str:
    if file is not None:
        for subset in SUBSETS:
            if subset.lower() in lower_path(Path(*file.parts[-2:])):
                return subset
    raise ValueError(f"the path of the file names no subset; expected one of {', '.join(SUBSETS)}")


def files(found: Sequence[Path]) -> list[Path]:
    """Select the files with a subset in their own or their folder's name, such as `Natural/dataset.json` of the repository."""
    return [file for file in found if any(name.lower() in lower_path(Path(*file.parts[-2:])) for name in SUBSETS)]


LLMBAR = Benchmark(
    name="llmbar",
    title="LLMBar",
    sections=("Natural", "Adversarial"),
    hub=None,
    published="Dataset/LLMBar of github.com/princeton-nlp/LLMBar: Natural/dataset.json and Adversarial/*/dataset.json",
    files=files,
    item=item,
    scores=scores,
    units=units,
    output=None,
)
