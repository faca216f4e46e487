"""What a public benchmark is: its files, the comparisons its rows become, and what its rule makes of their rewards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.comparison import Message, Preference
from rmtrain.evaluation.scores import ScoredComparison

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
