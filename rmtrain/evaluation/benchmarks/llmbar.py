"""LLMBar (arXiv:2310.07641): pairs of outputs of which one follows the instruction; in the adversarial ones the other looks better.

Accuracy is by subset, a tie being wrong. Its authors report Natural and the mean of the four adversarial subsets, and no total: ours is the
mean of these two. They ask a judge in both orders; a reward model's answer does not go by the order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import (
    RULES,
    Benchmark,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    cell,
    gaps,
    mean,
    means,
    of_gap,
    parts_of,
    row_units,
    section_weights,
    user,
)
from rmtrain.evaluation.scores_file import ScoredComparison

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)


def scores(scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
    """All scores of scored pairs."""
    found = means(of_gap(gaps(scored), rule), [row.source for row in scored])
    subsets = {subset: found[subset] for subset in SUBSETS if subset in found}
    sections = {"Natural": subsets["Natural"]} if "Natural" in subsets else {}
    adversarial = mean([subsets[subset] for subset in ADVERSARIAL if subset in subsets])
    if adversarial is not None:
        sections["Adversarial"] = adversarial
    return Scores(mean(list(sections.values())), sections, subsets)


def units(scored: Sequence[ScoredComparison]) -> Units:
    """Each pair."""
    gap, subsets = gaps(scored), [row.source for row in scored]
    sections = ["Natural" if subset == "Natural" else "Adversarial" for subset in subsets]
    weights = section_weights(sections, subsets, dict.fromkeys(SUBSETS, 1.0))
    credits = {rule: of_gap(gap, rule) for rule in RULES}
    return row_units(scored, sections, subsets, weights, credits, np.asarray(gap == 0, np.int64))


def item(row: Row, file: Path | None, index: int) -> Item:
    """The better output, then the other. Its subset is that of the path of its file."""
    label = cell(row, "label", int)
    if label not in (1, 2):
        raise ValueError(f"label: expected 1 or 2, got {label}")
    outputs = (cell(row, "output_1", str), cell(row, "output_2", str))
    responses = outputs if label == 1 else outputs[::-1]
    return Item(str(index), _subset(file), user(cell(row, "input", str)), responses, PAIR)


def _subset(file: Path | None) -> str:
    for subset in SUBSETS if file is not None else ():
        if subset.lower() in parts_of(Path(*file.parts[-2:]) if file else Path()):
            return subset
    raise ValueError(f"the path of the file names no subset; expected one of {', '.join(SUBSETS)}")


def files(found: Sequence[Path]) -> list[Path]:
    """Those whose name, or whose folder's, is that of a subset: of the repository, `Natural/dataset.json` and so on."""
    return [file for file in found if any(name.lower() in parts_of(Path(*file.parts[-2:])) for name in SUBSETS)]


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
