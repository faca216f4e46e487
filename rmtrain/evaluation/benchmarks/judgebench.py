"""JudgeBench (arXiv:2410.12784): pairs of responses, one of them correct by check.

A reward model says A where A has the strictly greater reward, else B: of a tie it says B. Accuracy is over all rows, and by the origin of
the question. The script: `run_judge.py --single_game` of ScalerLab/JudgeBench. Played in both orders, which is its default for judges that
go by the order, a tie is never right: that is the strict number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmtrain.data.comparison import PAIR
from rmtrain.evaluation.benchmarks.base import (
    RULES,
    Benchmark,
    Floats,
    Item,
    Row,
    Rule,
    Scores,
    Units,
    cell,
    gaps,
    mean,
    means,
    number,
    of_gap,
    parts_of,
    row_units,
    user,
)
from rmtrain.evaluation.scores_file import ScoredComparison

ORIGINS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
LABELS = {"A>B": (0, 1), "B>A": (1, 0)}
"""Where the better and the worse response are shown: A is 0, B is 1."""


def scores(scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
    """All scores of scored pairs; a section is an origin, a subset that of the answers of one model, `others` all answers of each."""
    credits = _credits(scored, rule)
    by_origin = means(credits, [_origin(row.source) for row in scored])
    sections = {origin: by_origin[origin] for origin in ORIGINS if origin in by_origin}
    total = sum(credits.tolist()) / len(scored) if scored else mean([])
    by_model = means(credits, [row.source.rpartition("/")[0] for row in scored])
    others = by_model if len(by_model) > 1 else {}
    return Scores(total, sections, means(credits, [_subset(row.source) for row in scored]), others)


def units(scored: Sequence[ScoredComparison]) -> Units:
    """Each pair; all weigh the same."""
    credits = {rule: _credits(scored, rule) for rule in RULES}
    sections, subsets = ([of(row.source) for row in scored] for of in (_origin, _subset))
    ties = np.asarray(gaps(scored) == 0, np.int64)
    return row_units(scored, sections, subsets, np.ones(len(scored)), credits, ties)


def _credits(scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
    gap = gaps(scored)
    if rule != "official":
        return of_gap(gap, rule)
    better_is_b = np.array([row.shown == LABELS["B>A"] for row in scored])
    return np.where(gap == 0, better_is_b, gap > 0).astype(np.float64)


def item(row: Row, file: Path | None, index: int) -> Item:
    """The better response, then the other."""
    shown = _shown(row)
    sides = (cell(row, "response_A", str), cell(row, "response_B", str))
    prompt = user(cell(row, "question", str))
    return Item(str(row.get("pair_id", index)), _source(row), prompt, (sides[shown[0]], sides[shown[1]]), PAIR, shown)


def output(row: Row, file: Path, index: int) -> ScoredComparison:
    """A row of what `run_judge.py` writes for a reward model: `judgments[0].judgment.scores` are those of A and B."""
    shown, judgments = _shown(row), cell(row, "judgments", list)
    try:
        sides = [number(value, "scores") for value in judgments[0]["judgment"]["scores"]]
    except (IndexError, KeyError, TypeError):
        raise ValueError("judgments: expected the scores of a reward model, [{judgment: {scores: [a, b]}}]") from None
    if len(sides) != 2:
        raise ValueError(f"scores: expected those of A and B, got {len(sides)}")
    rewards = (sides[shown[0]], sides[shown[1]])
    return ScoredComparison(str(row.get("pair_id", index)), _source(row), rewards, (), PAIR, shown)


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


def _subset(source: str) -> str:
    return f"{source.rpartition('/')[0]}/{_origin(source)}"


def files(found: Sequence[Path]) -> list[Path]:
    """Those whose name has `judgebench` or a response model; where none has, all."""
    return [file for file in found if any(word in parts_of(file) for word in ("judgebench", "gpt", "claude"))] or list(found)


JUDGEBENCH = Benchmark(
    name="judgebench",
    title="JudgeBench",
    sections=ORIGINS,
    hub=("ScalerLab/JudgeBench", "gpt"),
    published="data/ of github.com/ScalerLab/JudgeBench: two files *.jsonl",
    files=files,
    item=item,
    scores=scores,
    units=units,
    output=output,
)
