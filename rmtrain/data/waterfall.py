"""Counts of the rows of each source: read, kept, gathered, dropped by reason; and the check that enough of them are left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rmtrain.data.comparison import Dropped

EXAMPLES = 5
INTENTIONAL_DROPS = frozenset(
    {"prepared_away", "filtered", "not_drawn", "capped", "duplicate", "tie", "below_min_gap", "not_paired"}
)
"""Reasons of rows that the recipe itself leaves out: they are not faults, and `max_drop_fraction` does not count them."""


@dataclass
class SourceCount:
    """Rows of one source, as `prepare` returns them: `read` = `kept` + `gathered` + all of `dropped`.

    `kept` counts comparisons, each under the row whose id it has; `gathered` counts rows that are part of another row's comparison.
    `examples` has the first rows dropped for each reason. `left_out` counts responses, not rows, left out of kept comparisons, by reason.
    `unset` counts rows with a column that has the name of a variable of the chat template, where nothing sets that variable, by name.
    """

    read: int = 0
    kept: int = 0
    gathered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    unset: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        kept: int,
        gathered: int = 0,
        dropped: Iterable[Dropped] = (),
        left_out: Mapping[str, int] | None = None,
        unset: Mapping[str, int] | None = None,
    ) -> None:
        """Add numbers of rows, of responses left out of them by reason, and of rows that could set a template variable."""
        self.read += kept + gathered
        self.kept += kept
        self.gathered += gathered
        for counts, added in ((self.left_out, left_out), (self.unset, unset)):
            for name, number in (added or {}).items():
                counts[name] = counts.get(name, 0) + number
        for row in dropped:
            self.read += 1
            self.dropped[row.reason] = self.dropped.get(row.reason, 0) + 1
            examples = self.examples.setdefault(row.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{row.id}: {row.detail}")

    def problem(self, allowed: float) -> str | None:
        """Return why the source is refused: no rows, no row kept, or a larger share than `allowed` of the wanted rows lost."""
        faults = {reason: number for reason, number in self.dropped.items() if reason not in INTENTIONAL_DROPS}
        lost = sum(faults.values())
        intended = sum(self.dropped.values()) - lost
        wanted = self.read - intended
        if not self.read:
            return "the source has no rows"
        if not self.kept:
            return f"all {self.read} rows were dropped: {self._reasons(self.dropped)}"
        if lost > allowed * wanted:
            excluded = f", not counting {intended} that the recipe leaves out" if intended else ""
            return (
                f"{lost} of {wanted} rows dropped ({100 * lost / wanted:.1f} %){excluded}, allowed {100 * allowed:g} %: "
                f"{self._reasons(faults)}; raise data.max_drop_fraction, or repair the rows"
            )
        return None

    def _reasons(self, dropped: Mapping[str, int]) -> str:
        ordered = sorted(dropped.items(), key=lambda item: -item[1])
        return ", ".join(f"{reason} {number} ({self.examples[reason][0]})" for reason, number in ordered)


class Waterfall:
    """Counts of each source of a split. Held-out rows of a training source count in the evaluation split."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceCount] = {}

    def of(self, source: str) -> SourceCount:
        """Return the counts of a source, by its tag."""
        return self.sources.setdefault(source, SourceCount())

    def problems(self, max_drop_fraction: float) -> list[str]:
        """Return one line for each source that is refused, see `SourceCount.problem`."""
        checked = ((source, count.problem(max_drop_fraction)) for source, count in self.sources.items())
        return [f"{source}: {problem}" for source, problem in checked if problem is not None]

    def unset_variables(self) -> Iterator[tuple[str, str]]:
        """Yield the source and the problem for each template variable that nothing sets, although a column has its name."""
        for source, count in self.sources.items():
            for name, rows in count.unset.items():
                key = "tools: tools" if name == "tools" else f"template_columns: {{{name}: {name}}}"
                problem = f"the chat template reads {name}, a column of {rows:,} rows, and nothing passes it on; set {key}"
                yield source, problem

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values, by source."""
        return {source: dict(vars(count)) for source, count in self.sources.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the waterfall that `to_json` wrote."""
        waterfall = cls()
        waterfall.sources = {source: SourceCount(**count) for source, count in values.items()}
        return waterfall
