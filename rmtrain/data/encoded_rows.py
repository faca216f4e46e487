"""A batch of rows before and after it is encoded: what the builder hands to its processes, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from rmtrain.data.comparison import Adapted, BadRow, Dropped, dropped
from rmtrain.data.rows.select import RawBatch
from rmtrain.recipe.schema import Source


@dataclass(frozen=True, slots=True)
class RowTask:
    """A batch of a source to encode: raw rows, or rows that are adapted and selected; and the split of those that are not held out.

    `are_made`: the rows are comparisons that `augment` made. One that is too long is dropped even under `overlong: error`.
    """

    rows: RawBatch | Sequence[Adapted]
    source: Source
    split: str
    are_made: bool = False


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows of a task in one split.

    stored: their comparisons, in the columns of `SCHEMA`; of rows to resample with those of `RESAMPLED`. None: there are none.
    gathered: `(row id, id of the comparison it is part of)` of rows that are part of another row's comparison.
    dropped: rows that are not used.
    marks: the content and the group by which `dedup` and `cap` know each comparison; None if the source has neither.
    left_out: number of responses that were left out of these comparisons, by reason.
    winners: number of labels of these comparisons, by the side that they call better.
    unset: number of these comparisons with a column that has the name of a template variable which nothing sets, by name.
    added: number of comparisons that are no rows of the source, by kind, among those that are stored or dropped here.
    """

    stored: pa.RecordBatch | None
    gathered: list[tuple[str, str]]
    dropped: list[Dropped]
    marks: list[tuple[int, int]] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    winners: Mapping[str, int] = field(default_factory=dict)
    unset: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Number of comparisons."""
        return 0 if self.stored is None else int(self.stored.num_rows)

    def without(self, problems: Mapping[str, BadRow], source: str) -> "EncodedRows":
        """Return the rows with the comparisons that have a problem, and all rows that are part of them, dropped."""
        if not problems or self.stored is None:
            return self
        kept = [row_id not in problems for row_id in self.stored.column("id").to_pylist()]
        lost = [*problems.items()]
        lost += [(row_id, problems[whole]) for row_id, whole in self.gathered if whole in problems]
        return replace(
            self,
            stored=self.stored.filter(pa.array(kept)) if any(kept) else None,
            gathered=[pair for pair in self.gathered if pair[1] not in problems],
            dropped=[*self.dropped, *(dropped(row_id, source, problem) for row_id, problem in lost)],
            marks=None,
        )
