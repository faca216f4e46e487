"""The parts that benchmarks are made of: items, scores by rule, units, and the credit a row earns.

Array legend: R rows, K responses of a row, D decisions of a row, U units.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.comparison import Message, Preference, Target
from rmtrain.errors import DataError
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.evaluation.targets import mean
from rmtrain.intervals import Sample

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Row = Mapping[str, Any]

Rule = Literal["official", "strict", "half_credit"]
RULES: tuple[Rule, ...] = ("official", "strict", "half_credit")
"""How ties count: as in the benchmark's own script, as wrong, or half."""


class HubRows(NamedTuple):
    """Rows of a benchmark on the Hub: the id of a dataset, a split of it, and a configuration, if it has several."""

    path: str
    split: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a benchmark: a prompt and its responses, the better ones first where preferences say no more than that.

    source: the subset it counts in.
    shown: the place where the benchmark shows each response, for a rule that depends on it.
    targets: 1 for each response that is right and 0 for the others, for a rule that needs all of them.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]
    shown: tuple[int, ...] = ()
    targets: tuple[Target, ...] = ()


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
    """The draws of a benchmark: rows, or several rows that only count together. Arrays over U units.

    subsets, sections: of each unit.
    prompts_U: numbers of the prompts; units of one prompt are not independent.
    weights_U: weights in the total; they sum to 1.
    credits: for each rule, [U] in [0, 1]; the weighted sum is the total.
    decisions_U: how often its rule compares two rewards, or the best of several with the others; ties_U: how many of these are ties.
    rows_U: rows of the unit.
    """

    subsets: tuple[str, ...]
    sections: tuple[str, ...]
    prompts_U: Integers
    weights_U: Floats
    credits: Mapping[Rule, Floats]
    ties_U: Integers
    decisions_U: Integers
    rows_U: Integers

    def sample(self, members_U: NDArray[np.bool_] | None = None) -> Sample:
        """Return all units, or some, as a sample that is stratified by subset, since the size of a subset is fixed."""
        members_U = np.ones(len(self.subsets), bool) if members_U is None else members_U
        return Sample.of(self.weights_U[members_U], np.array(self.subsets)[members_U], self.prompts_U[members_U])


class Benchmark(ABC):
    """A public benchmark: its files, its rows and its rules. A subclass states where it differs from pairs whose total is by section.

    name, title: on the command line, and for people.
    sections: its parts, in its order; the total is their mean unless it is `pooled`.
    pooled: the total is the mean over all rows, and not over the sections.
    counts: for each section, the weight of each of its subsets, however many rows it has; empty: all rows of a section weigh the same.
    hub: its datasets on the Hub; empty: the Hub does not have it in a readable form.
    ours: which of its numbers are defined by rmtrain, since no official script for them could be read; empty: none.
    published: where its files are, for people.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    pooled: ClassVar[bool] = False
    counts: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    hub: ClassVar[tuple[HubRows, ...]] = ()
    ours: ClassVar[str] = ""
    published: ClassVar[str]

    @abstractmethod
    def files(self, found: Sequence[Path]) -> list[Path]:
        """Select the benchmark's files among the data files of a folder, given relative to it."""

    @abstractmethod
    def item(self, row: Row, file: Path, index: int) -> Item | None:
        """Convert a row, given its file and its number; raises ValueError for a row that is not the benchmark's.

        The file of a row from the Hub is the id of its dataset, and its configuration, if it has several. None: no response is better,
        so that the row has no score.
        """

    def output(self, row: Row, file: Path, index: int) -> ScoredComparison | None:
        """Convert a row of the file that the benchmark's own script writes, like `item`; raises DataError where it has none."""
        raise DataError(f'{file}: expected lines of {{"id", "source", "rewards"}}; {self.title} has no score format of its own')

    def accuracies(self, file: Path, document: Row) -> Mapping[str, float]:
        """Return the accuracies by subset in a file of results that has no scores, if it is one; raises DataError for a wrong value."""
        return {}

    def subset(self, source: str) -> str:
        """Return the subset of a row."""
        return source

    def section(self, subset: str) -> str:
        """Return the section of a subset; raises KeyError where it has none."""
        section_of = {name: section for section, subsets in self.counts.items() for name in subsets}
        return section_of[subset]

    def gaps(self, scored: Sequence[ScoredComparison]) -> Floats:
        """Return the better minus the worse reward of each decision, [R, D]."""
        return lead(scored)[:, None]

    def credits(self, scored: Sequence[ScoredComparison], rule: Rule) -> Floats:
        """Return the credit that each row earns by a rule, [R] in [0, 1]."""
        return np.asarray(credit_of_gaps(self.gaps(scored), rule).mean(axis=1), np.float64)

    def weights(self, sections: Sequence[str], subsets: Sequence[str]) -> Floats:
        """Return the weight of each row in the total, up to a factor, [R]."""
        if self.pooled:
            return np.ones(len(subsets))
        rows = Counter(subsets)
        count_of = {name: count for counts in self.counts.values() for name, count in counts.items()}
        each = np.array([count_of[subset] / rows[subset] if count_of else 1.0 for subset in subsets])
        total: dict[str, float] = defaultdict(float)
        for section, weight in zip(sections, each.tolist(), strict=True):
            total[section] += weight
        return np.asarray(each / np.array([total[section] for section in sections]), np.float64)

    def units(self, scored: Sequence[ScoredComparison]) -> Units:
        """Return the units that the total is the weighted sum of: by default the rows."""
        subsets = [self.subset(row.source) for row in scored]
        sections = [self.section(subset) for subset in subsets]
        weights, gap_RD = self.weights(sections, subsets), self.gaps(scored)
        return Units(
            subsets=tuple(subsets),
            sections=tuple(sections),
            prompts_U=prompt_numbers(scored),
            weights_U=weights / weights.sum(),
            credits={rule: self.credits(scored, rule) for rule in RULES},
            ties_U=np.sum(gap_RD == 0, axis=1),
            decisions_U=np.full(len(scored), gap_RD.shape[1]),
            rows_U=np.ones(len(scored), np.int64),
        )

    def scores(self, scored: Sequence[ScoredComparison], rule: Rule) -> Scores:
        """Compute all scores of scored rows by a rule."""
        credits, names = self.credits(scored, rule), [self.subset(row.source) for row in scored]
        subsets = means(credits, names)
        if self.counts:
            return self.scores_of(subsets)
        by_section = means(credits, [self.section(name) for name in names])
        sections = {section: by_section[section] for section in self.sections if section in by_section}
        total = sum(credits.tolist()) / len(scored) if self.pooled else mean(list(sections.values()))
        return Scores(total, sections, subsets)

    def scores_of(self, subsets: Mapping[str, float]) -> Scores:
        """Compute all scores from those of the subsets in `counts`; other names are left out."""
        sections = weighted_means(subsets, self.counts)
        known = {subset: subsets[subset] for counts in self.counts.values() for subset in counts if subset in subsets}
        return Scores(mean(list(sections.values())), sections, known)


def each_over_each(better: int, worse: int) -> tuple[Preference, ...]:
    """Prefer each of the first `better` responses to each of the `worse` ones that follow."""
    return tuple(Preference(winner, better + loser) for winner in range(better) for loser in range(worse))


def better_count(row: ScoredComparison) -> int:
    """Count the responses that `each_over_each` prefers."""
    return len({edge.winner for edge in row.preferences})


def credit_of_gaps(gap: Floats, rule: Rule) -> Floats:
    """Return 1 where better minus worse is above 0, and, by `half_credit`, 0.5 where it is 0."""
    credit = np.asarray(gap > 0, np.float64)
    return np.where(gap == 0, 0.5, credit) if rule == "half_credit" else credit


def lead(scored: Sequence[ScoredComparison]) -> Floats:
    """Return the first reward minus the best of the others, [R]."""
    return np.array([row.rewards[0] - max(row.rewards[1:]) for row in scored])


def shared_first(scored: Sequence[ScoredComparison]) -> Floats:
    """Return 1 over the number of best responses where the first is one of them, else 0, [R]."""
    return np.array(
        [1 / row.rewards.count(row.rewards[0]) if row.rewards[0] == max(row.rewards) else 0.0 for row in scored], np.float64
    )


def weighted_means(subsets: Mapping[str, float], sections: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of the subsets of each section, given the weights of its subsets; sections without any are left out."""
    found = {}
    for section, counts in sections.items():
        # Added up in the order of RewardBench's script, on which the last digit depends.
        weighted = total = 0.0
        for subset, count in counts.items():
            if subset in subsets:
                weighted += subsets[subset] * count
                total += count
        if total:
            found[section] = weighted / total
    return found


def means(values: Floats, groups: Sequence[str]) -> dict[str, float]:
    """Return the mean of each group, in the order in which the groups first appear."""
    members: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values.tolist(), groups, strict=True):
        members[group].append(value)
    # Added up one by one, as the official scripts do: numpy's pairwise sum can differ in the last digit.
    return {group: sum(of_group) / len(of_group) for group, of_group in members.items()}
