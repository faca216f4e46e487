"""What became of the rows, and what is wrong with those that are left."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.comparison import Dropped, TokenizedComparison
from rmtrain.errors import DataError

EXAMPLES = 5


@dataclass
class SourceCount:
    """Rows of one source: `read` = `kept` + `gathered` + all of `dropped`.

    `kept` counts comparisons, each by the row it bears the id of; `gathered` the rows that are part of another row's comparison.
    `examples` names the first rows dropped for each reason.
    """

    read: int = 0
    kept: int = 0
    gathered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kept: int, gathered: int = 0, dropped: Iterable[Dropped] = ()) -> None:
        """Count some rows."""
        self.read += kept + gathered
        self.kept += kept
        self.gathered += gathered
        for row in dropped:
            self.read += 1
            self.dropped[row.reason] = self.dropped.get(row.reason, 0) + 1
            examples = self.examples.setdefault(row.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{row.id}: {row.detail}")


class Waterfall:
    """What became of the rows of each source of a split. Held-out rows of a training source count in the evaluation split."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceCount] = {}

    def of(self, source: str) -> SourceCount:
        """The counts of a source, by its tag."""
        return self.sources.setdefault(source, SourceCount())

    @property
    def kept(self) -> int:
        """Comparisons of all sources."""
        return sum(count.kept for count in self.sources.values())

    def problems(self, max_drop_fraction: float) -> list[str]:
        """One line for each source that is empty, of which nothing is left, or that lost more than this share."""
        return [line for source, count in self.sources.items() for line in _problems(source, count, max_drop_fraction)]

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values, by source."""
        return {source: dict(vars(count)) for source, count in self.sources.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The waterfall that `to_json` gave."""
        waterfall = cls()
        waterfall.sources = {source: SourceCount(**count) for source, count in values.items()}
        return waterfall


def _problems(source: str, count: SourceCount, allowed: float) -> Iterator[str]:
    lost = sum(count.dropped.values())
    if not count.read:
        yield f"{source}: it has no rows"
    elif not count.kept:
        yield f"{source}: all of its {count.read} rows are dropped: {_reasons(count)}"
    elif lost > allowed * count.read:
        yield (
            f"{source}: {lost} of {count.read} rows dropped ({100 * lost / count.read:.1f} %), allowed {100 * allowed:g} %: "
            f"{_reasons(count)}; raise data.max_drop_fraction, or repair the rows"
        )


def _reasons(count: SourceCount) -> str:
    ordered = sorted(count.dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number} ({count.examples[reason][0]})" for reason, number in ordered)


def check_rankings(rows: Iterable[TokenizedComparison]) -> None:
    """Refuse comparisons whose edges do not order their responses, as `plackett_luce` needs it.

    Raises:
        DataError: naming the first such row.
    """
    for row in rows:
        won = Counter(edge.winner for edge in row.preferences)
        won.subtract(edge.loser for edge in row.preferences)
        if len({won[response] for response in range(len(row.sequences))}) < len(row.sequences):
            raise DataError(
                f"{row.id}: its {len(row.preferences)} preferences do not order its {len(row.sequences)} responses; "
                "objective.type: plackett_luce needs a ranking, take bradley_terry"
            )


class Hashed(Protocol):
    """Tokenized data, as far as the checks look at it."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def prompt_hashes(self) -> NDArray[np.uint64]: ...
    @property
    def response_hashes(self) -> NDArray[np.uint64]: ...
    @property
    def response_counts(self) -> NDArray[np.int32]: ...


def overlap(train: Hashed, evaluation: Hashed) -> list[str]:
    """Row ids of the evaluation data whose prompt, normalised, is also trained on."""
    shared = np.flatnonzero(np.isin(evaluation.prompt_hashes, train.prompt_hashes))
    return [evaluation.ids[int(index)] for index in shared]


def check_overlap(train: Hashed, evaluation: Hashed) -> None:
    """Refuse evaluation data that was trained on.

    Raises:
        DataError: naming the first rows of the evaluation data whose prompt is in the training data too.
    """
    rows = overlap(train, evaluation)
    if rows:
        named = ", ".join(rows[:EXAMPLES]) + (f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else "")
        raise DataError(
            f"{len(rows)} of {len(evaluation.ids)} evaluation rows have a prompt that is also trained on: {named}; "
            "remove them, or set data.allow_overlap"
        )


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows that say what another row says already, or its opposite; each as `(first row id, later row id)`."""

    duplicates: list[tuple[str, str]]
    contradictions: list[tuple[str, str]]


def find_repeats(data: Hashed) -> Repeats:
    """Duplicate pairs (same prompt, chosen and rejected) and contradictory ones (the same two responses, the other way round).

    Only pairs are compared; texts are the same when they are so after normalisation.
    """
    pairs = np.flatnonzero(data.response_counts == 2)
    begins = np.concatenate([[0], np.cumsum(data.response_counts)])[pairs]
    chosen, rejected = data.response_hashes[begins], data.response_hashes[begins + 1]
    prompts, ids = data.prompt_hashes[pairs], data.ids
    forward, backward = _mix(prompts, chosen, rejected), _mix(prompts, rejected, chosen)
    values, first = np.unique(forward, return_index=True)
    place = np.searchsorted(values, forward)
    repeated = [(first[place[row]], row) for row in np.flatnonzero(first[place] != np.arange(len(pairs)))]
    opposite = np.minimum(np.searchsorted(values, backward), max(len(values) - 1, 0))
    opposed = [(first[opposite[row]], row) for row in np.flatnonzero(values[opposite] == backward)] if len(values) else []
    named = [[(ids[pairs[one]], ids[pairs[other]]) for one, other in found if one < other] for found in (repeated, opposed)]
    return Repeats(*named)


def _mix(*columns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit value from several, in order (the multiplier is that of splitmix64)."""
    mixed = np.zeros_like(columns[0])
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
