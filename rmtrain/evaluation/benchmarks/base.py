"""The parts that benchmarks are made of: items, scores by rule, units, and the credit a row earns. Pure numpy.

Array legend: R rows, K responses of a row, U units.
"""

from collections import Counter, defaultdict
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
"""How ties count: as in the benchmark's own script, as wrong, or half."""

T = TypeVar("T")
KINDS: Mapping[type, str] = {str: "text", list: "a list", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a benchmark: a prompt and its responses, the better ones first.

    source: the subset it counts in.
    shown: the place where the benchmark shows each response, for a rule that depends on it.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]
    shown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The numbers of one rule: for the benchmark, for each section and subset, and others that its authors report.

    `total` is None where nothing is present to compute it from.
    """

    total: float | None
    sections: dict[str, float]
    subsets: dict[str, float]
    others: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The independent draws of a benchmark: rows, or several rows that only count together. Arrays over U units.

    subsets, sections: of each unit.
    weights_U: weights in the total; they sum to 1.
    credits: for each rule, [U] in [0, 1]; the weighted sum is the total.
    decisions_U: how often its rule compares two rewards, or the best of several with the others; ties_U: how many of these are ties.
    rows_U: rows of the unit.
    """

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

    name, title: on the command line, and for people.
    sections: the parts that its total is made of, in its order.
    hub: dataset and split on the Hub; None: the Hub does not have it in a readable form.
    published: where its files are, for people.
    files: selects the benchmark's files among the data files of a folder, given relative to it.
    item: converts a row to an item, given its file (None: the Hub) and its number; raises ValueError for a row that is not the benchmark's.
    scores: computes the numbers of scored rows by a rule. units: returns the units they are made of.
    output: converts a row of the file that the benchmark's own script writes; raises ValueError like `item`. None: there is no such file.
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
    """Return a cell of a row; raises ValueError where it is missing or of another kind."""
    if column not in row:
        raise ValueError(f"no {column}; the row has {', '.join(map(str, row)) or 'nothing'}")
    value = row[column]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{column}: expected {KINDS.get(kind, kind.__name__)}, got {value!r:.60}")
    return value


def texts(row: Row, column: str) -> list[str]:
    """Return a list of texts of a row; raises ValueError where it is something else, or empty."""
    values = cell(row, column, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{column}: expected a list of texts, got {values!r:.60}")
    return values


def number(value: Any, column: str) -> float:
    """Return a reward; some models write it as a list of one. Raises ValueError where it is not a number."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{column}: expected a number, got {value!r:.60}")
    return float(value)


def user(text: str) -> tuple[Message, ...]:
    """Return a prompt of one message."""
    return ({"role": "user", "content": text},)


def each_over_each(better: int, worse: int) -> tuple[Preference, ...]:
    """Prefer each of the first `better` responses to each of the `worse` ones that follow."""
    return tuple(Preference(winner, better + loser) for winner in range(better) for loser in range(worse))


def better_count(row: ScoredComparison) -> int:
    """Count the responses that `each_over_each` prefers."""
    return len({edge.winner for edge in row.preferences})


def lower_path(path: Path) -> str:
    """Return a path in lower case, to look for the name of a subset in it."""
    return path.as_posix().lower()


def credit_of_gaps(gap: Floats, rule: Rule) -> Floats:
    """Return 1 where better minus worse is above 0, and, by `half_credit`, 0.5 where it is 0."""
    credit = np.asarray(gap > 0, np.float64)
    return np.where(gap == 0, 0.5, credit) if rule == "half_credit" else credit


def gaps(scored: Sequence[ScoredComparison]) -> Floats:
    """Return the first reward minus the best of the others, [R]."""
    return np.array([row.rewards[0] - max(row.rewards[1:]) for row in scored])


def shared_first(scored: Sequence[ScoredComparison]) -> Floats:
    """Return 1 over the number of best responses where the first is one of them, else 0, [R]."""
    return np.array(
        [1 / row.rewards.count(row.rewards[0]) if row.rewards[0] == max(row.rewards) else 0.0 for row in scored], np.float64
    )


def means(values: Floats, groups: Sequence[str]) -> dict[str, float]:
    """Return the mean of each group, in the order in which the groups first appear."""
    members: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values.tolist(), groups, strict=True):
        members[group].append(value)
    # Added up one by one, as the official scripts do: numpy's pairwise sum can differ in the last digit.
    return {group: sum(of_group) / len(of_group) for group, of_group in members.items()}


def row_units(
    scored: Sequence[ScoredComparison],
    sections: Sequence[str],
    subsets: Sequence[str],
    weights: Floats,
    credit: Callable[[Rule], Floats],
    ties: Integers | None = None,
    decisions: int = 1,
) -> Units:
    """Make each row a unit.

    Args:
        scored: the rows.
        sections, subsets: of each row.
        weights: of each row; they are scaled to sum to 1.
        credit: returns the credits of the rows by a rule.
        ties: of each row; None: 1 where the first response ties with the best other one.
        decisions: of each row.
    """
    return Units(
        subsets=tuple(subsets),
        sections=tuple(sections),
        weights_U=weights / weights.sum(),
        credits={rule: credit(rule) for rule in RULES},
        ties_U=np.asarray(gaps(scored) == 0, np.int64) if ties is None else ties,
        decisions_U=np.full(len(scored), decisions),
        rows_U=np.ones(len(scored), np.int64),
    )


def section_weights(sections: Sequence[str], subsets: Sequence[str], counts: Mapping[str, float] | None = None) -> Floats:
    """Return the weight of each row where the total is the mean of sections.

    Args:
        sections, subsets: of each row.
        counts: weight of each subset in its section, however many rows it has; None: all rows of a section weigh the same.
    """
    rows = Counter(subsets)
    each = np.array([1.0 if counts is None else counts[subset] / rows[subset] for subset in subsets])
    total: dict[str, float] = defaultdict(float)
    for section, weight in zip(sections, each.tolist(), strict=True):
        total[section] += weight
    return np.asarray(each / np.array([total[section] for section in sections]), np.float64)
