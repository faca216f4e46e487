"""PPE (Preference Proxy Evaluations, arXiv:2410.14872): human preferences, and right among wrong answers with best-of-K curves.

The scripts of lmarena/PPE could not be read, so every number here is ours; how pairs are read from the columns agrees with public code that
reads them. PPE's ranking metrics (Spearman, Kendall, row-wise Pearson, separability, Brier) are not computed.

Human preference: the share of the decided votes whose preferred response has the strictly greater reward. Votes for a tie are left out.

Correctness: five datasets of prompts with 32 responses, each right or wrong. The score of a dataset is the share of its
`sampled_conflict_pairs` whose right response has the strictly greater reward; the total is the mean of the five. Best of K is the
probability that the response with the greatest reward among K of the responses is right: exact over all draws without replacement, and
where several have the greatest reward, each of them counts the same. It falls with K where the model is over-optimised.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.data.comparison import PAIR, Preference, Target
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
    credit_of_gaps,
    means,
)
from rmtrain.evaluation.benchmarks.published import cell, matching, number, user
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.evaluation.targets import mean

KINDS = ("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code")
"""Columns that say what kind of prompt it is; a prompt may be of several kinds."""
ENGLISH, OTHER = "English", "Other languages"
DATASETS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
SIZES = (1, 2, 4, 8, 16, 32)
"""K of the best-of-K curve."""


class PPEPreference(Benchmark):
    """See the module; a section is English or all other languages, a subset a language, `others` are kinds of prompts."""

    name = "ppe_preference"
    title = "PPE human preference"
    sections = (ENGLISH, OTHER)
    pooled = True
    ours = "all numbers"
    hub = (HubRows("lmarena-ai/PPE-Human-Preference-V1", "test"),)
    published = "the dataset lmarena-ai/PPE-Human-Preference-V1, split test"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["human-preference", "human_preference"], parts=0) or list(found)

    def item(self, row: Row, file: Path, index: int) -> Item | None:
        texts = (cell(row, "response_1", str), cell(row, "response_2", str))
        order = _order(row)
        if order is None:
            return None
        better, worse = order
        return Item(
            str(row.get("question_id", index)), _kinds(row), user(cell(row, "prompt", str)), (texts[better], texts[worse]), PAIR
        )

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison | None:
        """Convert a row of PPE's result files: the columns of the dataset, with `score_1` and `score_2`."""
        scores = [number(cell(row, column, object), column) for column in ("score_1", "score_2")]
        order = _order(row)
        if order is None:
            return None
        rewards = (scores[order[0]], scores[order[1]])
        return ScoredComparison(str(row.get("question_id", index)), _kinds(row), rewards, (), PAIR)

    def subset(self, source: str) -> str:
        return source.partition("/")[0]

    def section(self, subset: str) -> str:
        return ENGLISH if subset == ENGLISH else OTHER

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for row, credit in zip(scored, self.credits(scored, rule).tolist(), strict=True):
            for kind in row.source.split("/")[1:]:
                by_kind[kind].append(credit)
        others = {kind: sum(by_kind[kind]) / len(by_kind[kind]) for kind in KINDS if kind in by_kind}
        return replace(super().scores(scored, rule), others=others)


class PPECorrectness(Benchmark):
    """See the module; a section is a dataset, a subset the answers of one model, `others` are best-of-K curves and the AUC.

    A row is a unit if it has conflict pairs, and weighs by their number.
    """

    name = "ppe_correctness"
    title = "PPE correctness"
    sections = DATASETS
    ours = "all numbers"
    hub = tuple(HubRows(f"lmarena-ai/PPE-{dataset}-Best-of-K", "train") for dataset in DATASETS)
    published = (
        "the datasets lmarena-ai/PPE-{MMLU-Pro,MATH,GPQA,IFEval,MBPP-Plus}-Best-of-K, each in a folder or file of that name"
    )

    def files(self, found: Sequence[Path]) -> list[Path]:
        return [file for file in found if _dataset(file) is not None]

    def item(self, row: Row, file: Path, index: int) -> Item:
        targets, preferences = _answers(row)
        responses = tuple(cell(row, f"response_{place + 1}", str) for place in range(len(targets)))
        prompt = user(cell(row, "prompt", str))
        return Item(str(row.get("question_id", index)), _source(row, file), prompt, responses, preferences, targets=targets)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a row of PPE's result files: the columns of the dataset, with `score_1` to `score_32`."""
        targets, preferences = _answers(row)
        columns = [f"score_{place + 1}" for place in range(len(targets))]
        rewards = tuple(number(cell(row, column, object), column) for column in columns)
        row_id = str(row.get("question_id", index))
        return ScoredComparison(row_id, _source(row, file), rewards, (), preferences, targets)

    def section(self, subset: str) -> str:
        dataset = subset.partition("/")[0]
        if dataset not in DATASETS:
            raise KeyError(dataset)
        return dataset

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        """Return the share of its conflict pairs that each row has right, [R]; 0 for a row without any."""
        return np.array([float(np.mean(credit_of_gaps(gaps, rule))) if len(gaps) else 0.0 for gaps in map(_gaps, scored)])

    def units(self, scored: Sequence[ScoredComparison]) -> Units:
        rows = [row for row in scored if row.preferences]
        sections = [self.section(row.source) for row in rows]
        pairs_U = np.array([len(row.preferences) for row in rows], np.float64)
        total = {section: sum(pairs_U[np.array(sections) == section].tolist()) for section in set(sections)}
        weights_U = pairs_U / np.array([total[section] for section in sections]) / max(len(total), 1)
        return Units(
            subsets=tuple(row.source for row in rows),
            sections=tuple(sections),
            prompts_U=prompt_numbers(rows),
            weights_U=weights_U,
            credits={rule: self.credits(rows, rule) for rule in RULES},
            ties_U=np.array([int(np.sum(_gaps(row) == 0)) for row in rows], np.int64),
            decisions_U=pairs_U.astype(np.int64),
            rows_U=np.ones(len(rows), np.int64),
        )

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        pairs = [
            (row.source, credit) for row in scored for credit in np.asarray(credit_of_gaps(_gaps(row), rule), np.float64).tolist()
        ]
        credits = np.array([credit for _, credit in pairs])
        subsets = means(credits, [source for source, _ in pairs])
        by_section = means(credits, [self.section(source) for source, _ in pairs])
        sections = {section: by_section[section] for section in DATASETS if section in by_section}
        return Scores(mean(list(sections.values())), sections, subsets, self._curves(scored) if rule == "official" else {})

    def _curves(self, scored: Sequence[ScoredComparison]) -> dict[str, float]:
        """Return best of K and the AUC within prompts: first the mean over sections, then of each section."""
        found: dict[str, dict[str, float]] = {}
        names = [self.section(row.source) for row in scored]
        for section in (section for section in DATASETS if section in names):
            rows = [row for row, name in zip(scored, names, strict=True) if name == section]
            sizes = [size for size in SIZES if size <= min(len(row.rewards) for row in rows)]
            found[section] = {f"best of {size}": float(np.mean([best_of(row, size) for row in rows])) for size in sizes}
            if within := [value for row in rows if (value := auc(row)) is not None]:
                found[section]["auc"] = float(np.mean(within))
        shared = [name for name in (*(f"best of {size}" for size in SIZES), "auc") if all(name in of for of in found.values())]
        overall = {name: float(np.mean([of_section[name] for of_section in found.values()])) for name in shared}
        return overall | {f"{section} {name}": value for section, of in found.items() for name, value in of.items()}


def best_of(row: ScoredComparison, size: int) -> float:
    """Return the probability that the best by reward of `size` responses, drawn without replacement, is right; equal ones share it."""
    right = {target.response: target.value for target in row.targets}
    by_reward: dict[float, list[float]] = defaultdict(list)
    for place, reward in enumerate(row.rewards):
        by_reward[reward].append(right[place])
    lower, expected = 0, 0.0
    for _, group in sorted(by_reward.items()):
        draws = comb(lower + len(group), size) - comb(lower, size)  # whose best is in this group
        expected += draws / comb(len(row.rewards), size) * (sum(group) / len(group))
        lower += len(group)
    return expected


def auc(row: ScoredComparison) -> float | None:
    """Return the probability that a right response has a greater reward than a wrong one, a tie counting half; None without both."""
    sides = [[row.rewards[target.response] for target in row.targets if bool(target.value) is right] for right in (True, False)]
    if not all(sides):
        return None
    gaps = np.subtract.outer(np.array(sides[0]), np.array(sides[1]))
    return float(np.mean(credit_of_gaps(gaps, "half_credit")))


def _gaps(row: ScoredComparison) -> Floats:
    return np.array([row.rewards[edge.winner] - row.rewards[edge.loser] for edge in row.preferences], np.float64)


def _order(row: Row) -> tuple[int, int] | None:
    """Return the places of the better and the worse response; None where the vote is for a tie."""
    winner = cell(row, "winner", str)
    if winner.startswith("tie"):
        return None
    if winner not in ("model_a", "model_b"):
        raise ValueError(f"winner: expected model_a, model_b or tie, got {winner!r:.40}")
    return (0, 1) if winner == "model_a" else (1, 0)


def _kinds(row: Row) -> str:
    """Return the language of a row and the kinds of its prompt, such as `English/hard_prompt/is_code`."""
    language = cell(row, "language", str).replace("/", "-") or "unknown"
    return "/".join([language, *(kind for kind in KINDS if row.get(kind) is True)])


def _answers(row: Row) -> tuple[tuple[Target, ...], tuple[Preference, ...]]:
    """Return which responses are right, and the sampled pairs of a right and a wrong one, the right one as the winner."""
    scores = cell(row, "scores", list)
    if not scores or not all(isinstance(value, bool) or value in (0, 1) for value in scores):
        raise ValueError(f"scores: expected true or false for each response, got {scores!r:.60}")
    preferences = tuple(_pair(pair, scores) for pair in cell(row, "sampled_conflict_pairs", list))
    return tuple(Target(place, float(value)) for place, value in enumerate(scores)), preferences


def _pair(pair: Any, scores: Sequence[Any]) -> Preference:
    places = pair if isinstance(pair, list) and len(pair) == 2 and all(type(place) is int for place in pair) else None
    if places is None or not all(0 <= place < len(scores) for place in places):
        raise ValueError(f"sampled_conflict_pairs: expected two responses among 0..{len(scores) - 1}, got {pair!r:.60}")
    one, other = places
    if bool(scores[one]) == bool(scores[other]):
        raise ValueError(f"sampled_conflict_pairs: expected a right and a wrong response, got {pair!r:.60}")
    return Preference(one, other) if scores[one] else Preference(other, one)


def _dataset(file: Path) -> str | None:
    for parts in (1, 2, 3):
        path = "/".join(file.parts[-parts:]).lower().replace("_", "-")
        for dataset in DATASETS:
            if dataset.lower() in path:
                return dataset
    return None


def _source(row: Row, file: Path) -> str:
    dataset = _dataset(file)
    if dataset is None:
        raise ValueError(f"the path of the file names no dataset; expected one of {', '.join(DATASETS)}")
    return f"{dataset}/{row.get('model_name') or 'answers'}"


PPE_PREFERENCE, PPE_CORRECTNESS = PPEPreference(), PPECorrectness()
