"""JudgeBench (arXiv:2410.12784): pairs of responses, one of them correct by check.

A reward model answers A where A has the strictly greater reward, else B, so a tie is answered with B. Accuracy is over all rows, and by
the origin of the question. The script: `run_judge.py --single_game` of ScalerLab/JudgeBench. By default it plays both orders, for judges
that depend on the order; then a tie is never right, which is the strict number.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import Benchmark, Floats, HubRows, Item, Row, Rule, Scores, credit_of_gaps, lead, means
from rmtrain.evaluation.benchmarks.published import cell, matching, number, user
from rmtrain.evaluation.scores_file import ScoredComparison

ORIGINS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
LABELS = {"A>B": (0, 1), "B>A": (1, 0)}
"""Places where the better and the worse response are shown: A is 0, B is 1."""


class JudgeBench(Benchmark):
    """See the module; a section is an origin, a subset is an origin for one answering model, `others` are the answering models."""

    name = "judgebench"
    title = "JudgeBench"
    sections = ORIGINS
    pooled = True
    hub = (HubRows("ScalerLab/JudgeBench", "gpt"),)
    published = "data/ of github.com/ScalerLab/JudgeBench: two files *.jsonl"

    def files(self, found: Sequence[Path]) -> list[Path]:
        return matching(found, ["judgebench", "gpt", "claude"], parts=0) or list(found)

    def item(self, row: Row, file: Path, index: int) -> Item:
        better, worse = shown = _shown(row)
        sides = (cell(row, "response_A", str), cell(row, "response_B", str))
        prompt = user(cell(row, "question", str))
        return Item(str(row.get("pair_id", index)), _source(row), prompt, (sides[better], sides[worse]), PAIR, shown)

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison:
        """Convert a row of `run_judge.py` for a reward model: `judgments[0].judgment.scores` are the rewards of A and B."""
        better, worse = shown = _shown(row)
        judgments = cell(row, "judgments", list)
        try:
            sides = [number(value, "scores") for value in judgments[0]["judgment"]["scores"]]
        except (IndexError, KeyError, TypeError):
            raise ValueError("judgments: expected the scores of a reward model, [{judgment: {scores: [a, b]}}]") from None
        if len(sides) != 2:
            raise ValueError(f"scores: expected two, of A and of B, got {len(sides)}")
        return ScoredComparison(
            str(row.get("pair_id", index)), _source(row), (sides[better], sides[worse]), (), PAIR, shown=shown
        )

    def subset(self, source: str) -> str:
        return f"{source.rpartition('/')[0]}/{_origin(source)}"

    def section(self, subset: str) -> str:
        return _origin(subset)

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        gap = lead(scored)
        if rule != "official":
            return credit_of_gaps(gap, rule)
        better_is_b = np.array([row.shown == LABELS["B>A"] for row in scored])
        return np.where(gap == 0, better_is_b, gap > 0).astype(np.float64)

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        by_model = means(self.credits(scored, rule), [row.source.rpartition("/")[0] for row in scored])
        return replace(super().scores(scored, rule), others=by_model if len(by_model) > 1 else {})


def _shown(row: Row) -> tuple[int, int]:
    label = cell(row, "label", str)
    if label not in LABELS:
        raise ValueError(f"label: expected A>B or B>A, got {label!r:.40}")
    return LABELS[label]


def _source(row: Row) -> str:
    source = cell(row, "source", str)
    if _origin(source) == source and source not in ORIGINS:
        raise ValueError(f"source: expected one that begins with {', '.join(ORIGINS)}, got {source!r:.60}")
    return f"{row.get('response_model') or 'responses'}/{source}"


def _origin(source: str) -> str:
    name = source.rpartition("/")[2]
    return next((origin for origin in ORIGINS if name.startswith(origin)), name)


JUDGEBENCH = JudgeBench()
