"""RewardBench and RewardBench 2, of allenai/reward-bench."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import (
    RULES,
    Benchmark,
    Floats,
    HubRows,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    better_count,
    credit_of_gaps,
    each_over_each,
    lead,
    means,
    shared_first,
)
from rmtrain.evaluation.benchmarks.published import accuracy, cell, matching, number, texts, user
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers

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
    """RewardBench (arXiv:2403.13787): pairs in 23 subsets, four sections.

    The score of a subset is the share of its pairs whose chosen response has the strictly greater reward. A section is the mean of its
    subsets, weighted by constants of the benchmark: math-prm counts 984 although it has 447 rows, so that mathematics weighs as much as
    code. The total is the plain mean of the four sections. The script: `scripts/run_rm.py` of allenai/reward-bench.
    """

    name = "rewardbench"
    title = "RewardBench"
    sections = tuple(SECTIONS)
    counts = SECTIONS
    hub = (HubRows("allenai/reward-bench", "filtered"),)
    published = "the dataset allenai/reward-bench, split filtered"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["filtered"]) or list(found)

    def item(self, row: Row, file: Path, index: int) -> Item:
        responses = (cell(row, "chosen", str), cell(row, "rejected", str))
        return Item(str(row.get("id", index)), self._subset(row), user(cell(row, "prompt", str)), responses, PAIR)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        rewards = tuple(number(cell(row, column, object), column) for column in ("scores_chosen", "scores_rejected"))
        return ScoredComparison(str(row.get("id", index)), self._subset(row), rewards, (), PAIR)

    def accuracies(self, file: Path, document: Row) -> Mapping[str, float]:
        known = [subset for counts in self.counts.values() for subset in counts if subset in document]
        return {subset: accuracy(file, subset, document[subset]) for subset in known}

    def _subset(self, row: Row) -> str:
        subset = cell(row, "subset", str)
        if not any(subset in counts for counts in SECTIONS.values()):
            raise ValueError(f"subset {subset!r} is not one of RewardBench's 23; use the split `filtered`")
        return subset


REWARDBENCH = RewardBench()


TIES = "Ties"
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES)
WEIGHTS = {subset: {subset: 1.0} for subset in SUBSETS}
TERMS = (0.30, 0.30, 0.20, 0.20, 0.01)
"""Weights of the terms of Ties, in the order of the official script."""


class RewardBench2(Benchmark):
    """RewardBench 2 (arXiv:2506.01937): the best of four responses, and prompts with many right answers (Ties), in six subsets.

    Outside Ties a row earns 1 over the number of best responses where the right one is among them. The total is the plain mean of the six
    subsets. The script: `scripts/run_v2.py` and `rewardbench/utils.py` of allenai/reward-bench.

    Ties pairs prompts with several right answers (`tied:N`) with prompts that have one (`ref:N`). For each prompt, `gap` is its worst right
    answer minus its best wrong one, `spread` its best minus its worst right one. Its score is

        0.30 mean [gap_tied > 0] + 0.30 mean [gap_ref > 0], each over all such prompts, plus, over the N that have both,
        0.20 mean [gap_tied > spread] + 0.20 mean [least > spread] + 0.01 mean tanh(least / spread - 1), least = min(gap_ref, gap_tied)

    where 0 / 0 counts as a tanh of 0. It can reach 1.01.

    Each row is a unit, and in Ties each number N that has both kinds of prompts, with both its rows.
    """

    name = "rewardbench2"
    title = "RewardBench 2"
    sections = SUBSETS
    counts = WEIGHTS
    hub = (HubRows("allenai/reward-bench-2", "test"),)
    published = "the dataset allenai/reward-bench-2, split test"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["test"]) or list(found)

    def item(self, row: Row, file: Path, index: int) -> Item:
        chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
        subset = _subset(row)
        row_id = _checked_id(str(row.get("id", index)), subset, len(chosen))
        edges = each_over_each(len(chosen), len(rejected))
        return Item(row_id, subset, user(cell(row, "prompt", str)), (*chosen, *rejected), edges)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a row that `run_v2.py` writes: `scores` of all responses, of which the first `num_correct` are right."""
        values, right = cell(row, "scores", list), cell(row, "num_correct", int)
        rewards = tuple(number(value, "scores") for value in values)
        if not 0 < right < len(rewards):
            raise ValueError(f"num_correct: expected 1 to {len(rewards) - 1}, got {right}")
        subset = _subset(row)
        row_id = _checked_id(str(row.get("id", index)), subset, right)
        return ScoredComparison(row_id, subset, rewards, (), each_over_each(right, len(rewards) - right))

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        """Return the credits of rows outside Ties."""
        return credit_of_gaps(lead(scored), "strict") if rule == "strict" else shared_first(scored)

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        rows, prompts = _split(scored)
        subsets = means(self.credits(rows, rule), [row.source for row in rows])
        if len(prompts.tied_B):
            terms = prompts.terms(prompts.tied, prompts.ref, rule)
            subsets[TIES] = float(sum(weight * np.mean(term) for weight, term in zip(TERMS, terms, strict=True)))
        return self.scores_of(subsets)

    def units(self, scored: Sequence[ScoredComparison]) -> Units:
        rows, prompts = _split(scored)
        count = len(prompts.tied_B)
        subsets = (*(row.source for row in rows), *[TIES] * count)
        size = Counter(subsets)
        weights = np.array([1 / size[subset] for subset in subsets])
        credits = {}
        for rule in RULES:
            terms = prompts.terms(prompts.tied_B, prompts.ref_B, rule)
            of_prompts = sum(weight * term for weight, term in zip(TERMS, terms, strict=True))
            credits[rule] = np.concatenate([self.credits(rows, rule), of_prompts])
        tied_B = np.sum([prompts.ref_B == 0, prompts.tied_B == 0], axis=0)
        ties_U = np.concatenate([np.asarray(lead(rows) == 0, np.int64), tied_B])
        rows_U = np.array([1] * len(rows) + [2] * count, np.int64)
        prompts_U = np.append(prompt_numbers(rows), len(rows) + np.arange(count))
        return Units(subsets, subsets, prompts_U, weights / weights.sum(), credits, ties_U, decisions_U=rows_U, rows_U=rows_U)


@dataclass(frozen=True, slots=True, eq=False)
class _Prompts:
    """The prompts of Ties. `ref` and `tied` are the gaps of all; the arrays over B are of the numbers N that have both kinds."""

    ref: Floats
    tied: Floats
    ref_B: Floats
    tied_B: Floats
    spread_B: Floats

    def terms(self, tied: Floats, ref: Floats, rule: Rule) -> tuple[Floats, ...]:
        """Return the values that each term of `TERMS` is the mean of, given the gaps for the first two."""
        least = np.minimum(self.ref_B, self.tied_B)
        with np.errstate(divide="ignore", invalid="ignore"):
            closeness = np.nan_to_num(np.tanh(least / self.spread_B - 1), nan=0.0)
        gaps = (tied, ref, self.tied_B - self.spread_B, least - self.spread_B)
        return (*(credit_of_gaps(gap, rule) for gap in gaps), closeness)


def _split(scored: Sequence[ScoredComparison]) -> tuple[list[ScoredComparison], _Prompts]:
    """Return the rows outside Ties, and the prompts of Ties."""
    gap: dict[str, dict[int, float]] = defaultdict(dict)
    spread: dict[int, float] = {}
    rows = []
    for row in scored:
        if row.source != TIES:
            rows.append(row)
            continue
        kind, number = _kind(row.id)
        right = better_count(row)
        worst, best = min(row.rewards[:right]), max(row.rewards[:right])
        gap[kind][number] = worst - max(row.rewards[right:])
        if kind == "tied":
            spread[number] = best - worst
    # In the order of a set, as in the official script: the last digit of a mean depends on the order.
    both = list(set(gap["ref"]) & set(gap["tied"]))
    prompts = _Prompts(
        ref=np.array(list(gap["ref"].values())),
        tied=np.array(list(gap["tied"].values())),
        ref_B=np.array([gap["ref"][number] for number in both]),
        tied_B=np.array([gap["tied"][number] for number in both]),
        spread_B=np.array([spread[number] for number in both]),
    )
    return rows, prompts


def _subset(row: Row) -> str:
    subset = cell(row, "subset", str)
    for name in SUBSETS:
        if subset.lower() == name.lower():
            return name
    raise ValueError(f"subset {subset!r} is not one of RewardBench 2's: {', '.join(SUBSETS)}")


def _checked_id(row_id: str, subset: str, right: int) -> str:
    if subset != TIES and right != 1:
        raise ValueError(f"a row outside Ties has {right} right responses; expected one")
    if subset == TIES and _kind(row_id)[0] == "tied" and right < 2:
        raise ValueError(f"{row_id} has one right response; a tied prompt has several")
    return row_id


def _kind(row_id: str) -> tuple[str, int]:
    kind, _, number = row_id.partition(":")
    if kind not in ("ref", "tied") or not number.isdecimal():
        raise ValueError(f"id {row_id!r} of Ties: expected ref:N or tied:N")
    return kind, int(number)


REWARDBENCH2 = RewardBench2()
