"""Rows as a source gives them to comparisons, some at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from rmtrain.data.comparison import Adapted as Adapted
from rmtrain.data.comparison import Dropped
from rmtrain.data.raw.json_reader import Line, Malformed, RawRow, parse
from rmtrain.data.rows.adapters import adapt
from rmtrain.data.rows.refusals import check_columns, check_first, check_rows
from rmtrain.recipe.schema import Source


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Some rows of a source with their numbers, as it gives them; of several that were made of row 12, `12.0`, `12.1`, ..."""

    source: Source
    rows: Sequence[tuple[int | str, RawRow]]
    is_first: bool


def adapt_batch(batch: RawBatch) -> list[Adapted]:
    """The comparisons of some rows. A pure function of its argument.

    Raises:
        DataError: a column that no row of a first batch has, a first batch without a single usable row for one and the same reason,
            margins that are no finite, non-negative numbers, or ties that the recipe does not allow.
    """
    source = batch.source
    rows = [(f"{source.title}:{number}", parse(row) if isinstance(row, Line) else row) for number, row in batch.rows]
    if batch.is_first:
        check_columns([row for _, row in rows if not isinstance(row, Malformed)], source)
    adapted = [
        _malformed(row_id, row, source) if isinstance(row, Malformed) else adapt(row, row_id, source) for row_id, row in rows
    ]
    check_rows(adapted, source)
    if batch.is_first:
        check_first(adapted, source)
    return adapted


def _malformed(row_id: str, row: Malformed, source: Source) -> Dropped:
    return Dropped(row_id, source.title, "malformed_row", row.detail)
