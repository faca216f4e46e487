"""What a row earns: by pairs of rewards, or by the best of several. Pure numpy.

Array legend: R rows, K responses of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.comparison import Message, Preference
from rmtrain.evaluation.scores_file import ScoredComparison

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Row = Mapping[str, Any]

Rule = Literal["official", "strict", "half_credit"]
RULES: tuple[Rule, ...] = ("official", "strict", "half_credit")
"""How ties count: as the benchmark's own script has them, as wrong, or by half."""

T = TypeVar("T")
KINDS: Mapping[type, str] = {str: "text", list: "a list", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a benchmark: a prompt and its responses, the better ones first.

    source: the subset it is counted in.
    shown: where the benchmark shows each response, for a rule that goes by it.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]
    shown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The numbers of one rule: of the benchmark, of each section and subset, and others that its authors report.

    `total` is None where nothing is there that it could be computed from.
    """

    total: float | None
    sections: dict[str, float]
    subsets: dict[str, float]
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What a benchmark draws independently: rows, or several that are only counted together. Arrays over U units.

    ids, subsets, sections: of each unit.
    weights_U: in the total, for which they sum to 1.
    credits: for each rule, [U] in [0, 1]; the weighted sum is the total.
    decisions_U: times that its rule compares two rewards, or the best of several with the others; ties_U: how many of them are ties.
    rows_U: rows of the unit.
    """

    ids: tuple[str, ...]
    subsets: tuple[str, ...]
    sections: tuple[str, ...]
    weights_U: Floats
    credits: Mapping[Rule, Floats]
    ties_U: Integers
    decisions_U: Integers
    rows_U: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A public benchmark.

    name, title: as the command line and as people call it.
    sections: those that its total is made of, in its order.
    hub: dataset and split on the Hub; None: it is not there in a form that can be read.
    published: where its files are, for people.
    files: of the data files of a folder, given relative to it, those of the benchmark.
    item: a row to an item, given the file it is from, None on the Hub, and its number; raises ValueError saying what is wrong.
    scores, units: the numbers of scored rows, by a rule, and the units they are made of.
    output: a row of the file that the benchmark's own script writes; ValueError as of `item`; None: there is no such file.
    """

    name: str
    title: str
    sections: tuple[str, ...]
    hub: tuple[str, str] | None
    published: str
    files: Callable[[Sequence[Path]], list[Path]]
    item: Callable[[Row, Path | None, int], Item]
    scores: Callable[[Sequence[ScoredComparison], Rule], Scores]
    units: Callable[[Sequence[ScoredComparison]], Units]
    output: Callable[[Row, Path, int], ScoredComparison] | None


def cell(row: Row, column: str, kind: type[T]) -> T:
    """A cell of a row; raises ValueError where it is not there or of another kind."""
    if column not in row:
        raise ValueError(f"no {column}; the row has {', '.join(map(str, row)) or 'nothing'}")
    value = row[column]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{column}: expected {KINDS.get(kind, kind.__name__)}, got {value!r:.60}")
    return value


def texts(row: Row, column: str) -> list[str]:
    """A list of texts of a row; raises ValueError where it is none, or empty."""
    values = cell(row, column, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{column}: expected a list of texts, got {values!r:.60}")
    return values


def number(value: Any, column: str) -> float:
    """A reward; one in a list of its own, as some models give it, counts as well. Raises ValueError where it is no number."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{column}: expected a number, got {value!r:.60}")
    return float(value)


def user(text: str) -> tuple[Message, ...]:
    """A prompt of one message."""
    return ({"role": "user", "content": text},)


def each_over_each(better: int, worse: int) -> tuple[Preference, ...]:
    """Each of the first responses is preferred to each of those that follow."""
    return tuple(Preference(winner, better + loser) for winner in range(better) for loser in range(worse))


def better_count(row: ScoredComparison) -> int:
    """Responses of `each_over_each` that are preferred."""
    return len({edge.winner for edge in row.preferences})


def parts_of(path: Path) -> str:
    """A path in small letters, to look for the name of a subset in."""
    return path.as_posix().lower()


def of_gap(gap: NDArray[np.float64], rule: Rule) -> Floats:
    """1 where better minus worse is above 0, and, by `half_credit`, 0.5 where it is 0."""
    earned = np.asarray(gap > 0, np.float64)
    return np.where(gap == 0, 0.5, earned) if rule == "half_credit" else earned


def gaps(scored: Sequence[ScoredComparison]) -> Floats:
    """First reward minus the best of the others, [R]."""
    return np.array([row.rewards[0] - max(row.rewards[1:]) for row in scored])


def shared_first(scored: Sequence[ScoredComparison]) -> Floats:
    """1 over the number of best responses where the first is one of them, else 0, [R]."""
    return np.array([_share(row.rewards) for row in scored])


def _share(rewards: Sequence[float]) -> float:
    best = max(rewards)
    return 1 / sum(reward == best for reward in rewards) if rewards[0] == best else 0.0


def means(values: Floats, groups: Sequence[str]) -> dict[str, float]:
    """The mean of each group, in the order in which the groups come; summed one by one, as the official scripts do."""
    members: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values.tolist(), groups, strict=True):
        members[group].append(value)
    return {group: sum(of_group) / len(of_group) for group, of_group in members.items()}


def mean(values: Sequence[float]) -> float | None:
    """The plain mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def row_units(
    scored: Sequence[ScoredComparison],
    sections: Sequence[str],
    subsets: Sequence[str],
    weights: Floats,
    credits: dict[Rule, Floats],
    ties: NDArray[np.int64],
    decisions: int = 1,
) -> Units:
    """Units that are a row each, with as many decisions each; `weights` are scaled to sum to 1."""
    return Units(
        ids=tuple(f"{row.source}/{row.id}" for row in scored),
        subsets=tuple(subsets),
        sections=tuple(sections),
        weights_U=weights / weights.sum(),
        credits={rule: credits[rule] for rule in RULES},
        ties_U=ties,
        decisions_U=np.full(len(scored), decisions),
        rows_U=np.ones(len(scored), np.int64),
    )


def section_weights(sections: Sequence[str], subsets: Sequence[str], counts: dict[str, float] | None = None) -> Floats:
    """What each row weighs where the total is the mean of sections.

    Args:
        sections, subsets: of each row.
        counts: what a subset weighs in its section, however many rows it has; None: each row of a section weighs the same.
    """
    rows: dict[str, int] = defaultdict(int)
    for subset in subsets:
        rows[subset] += 1
    each = np.array([1.0 if counts is None else counts[subset] / rows[subset] for subset in subsets])
    total: dict[str, float] = defaultdict(float)
    for section, weight in zip(sections, each.tolist(), strict=True):
        total[section] += weight
    return np.asarray(each / np.array([total[section] for section in sections]), np.float64)
