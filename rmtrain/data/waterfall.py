"""What became of the rows, and whether enough of them are left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rmtrain.data.comparison import Dropped

EXAMPLES = 5
INTENTIONAL_DROPS = frozenset(
    {"prepared_away", "filtered", "not_drawn", "capped", "duplicate", "tie", "below_min_gap", "not_paired"}
)
"""Reasons of rows that the recipe itself leaves out: they are no faults, and `max_drop_fraction` does not count them."""


@dataclass
class SourceCount:
    """Rows of one source: `read` = `kept` + `gathered` + all of `dropped`.

    Rows are counted as `prepare` gives them. `kept` counts comparisons, each by the row it bears the id of; `gathered` the rows that are
    part of another row's comparison.
    `examples` names the first rows dropped for each reason. `left_out` counts responses, not rows: those that comparisons
    which stay had to do without, by reason.
    """

    read: int = 0
    kept: int = 0
    gathered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def asked_for(self) -> int:
        """Rows that the recipe leaves out."""
        return sum(number for reason, number in self.dropped.items() if reason in INTENTIONAL_DROPS)

    def add(
        self, kept: int, gathered: int = 0, dropped: Iterable[Dropped] = (), left_out: Mapping[str, int] | None = None
    ) -> None:
        """Count some rows, and responses that are left out of them."""
        for reason, number in (left_out or {}).items():
            self.left_out[reason] = self.left_out.get(reason, 0) + number
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
        """One line for each source that is empty, of which nothing is left, or that lost more than this share of what it was to give."""
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
    lost, wanted = sum(count.dropped.values()) - count.asked_for, count.read - count.asked_for
    if not count.read:
        yield f"{source}: it has no rows"
    elif not count.kept:
        yield f"{source}: all of its {count.read} rows are dropped: {_reasons(count)}"
    elif lost > allowed * wanted:
        beside = f", beside the {count.asked_for} that the recipe leaves out" if count.asked_for else ""
        yield (
            f"{source}: {lost} of {wanted} rows dropped ({100 * lost / wanted:.1f} %){beside}, allowed {100 * allowed:g} %: "
            f"{_reasons(count, faults_only=True)}; raise data.max_drop_fraction, or repair the rows"
        )


def _reasons(count: SourceCount, faults_only: bool = False) -> str:
    shown = {reason: number for reason, number in count.dropped.items() if not (faults_only and reason in INTENTIONAL_DROPS)}
    ordered = sorted(shown.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number} ({count.examples[reason][0]})" for reason, number in ordered)
