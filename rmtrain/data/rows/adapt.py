"""A batch of raw rows to comparisons, and the errors that stop the data at once instead of dropping row after row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rmtrain.data.comparison import Adapted, Dropped
from rmtrain.data.rows.cells import has_cell
from rmtrain.data.rows.formats import TIE, adapt
from rmtrain.data.rows.prepare_hook import Number
from rmtrain.data.rows.readers import Line, Malformed, RawRow, Row, parse
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource, PairSource, Source

NAMED_ROWS = 5
NAMED_COLUMNS = 40
TOKENS = {"input_ids_chosen", "chosen_ids"}
UNPAIRED = {"completion", "label"}


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Rows of a source with their numbers; `share` is how much of the source has been read with them (0 to 1, None: unknown)."""

    source: Source
    rows: Sequence[tuple[Number, RawRow]]
    is_first: bool
    share: float | None = None


def adapt_batch(batch: RawBatch) -> list[Adapted]:
    """Return the comparisons and dropped rows of a batch. A pure function of its argument.

    Raises:
        DataError: a column that no row of a first batch has; a first batch of which all rows are dropped for the same reason; margins that
            are not finite, non-negative numbers; or ties that the recipe does not allow.
    """
    source = batch.source
    rows = [(f"{source.title}:{number}", parse(row) if isinstance(row, Line) else row) for number, row in batch.rows]
    if batch.is_first:
        check_columns([row for _, row in rows if not isinstance(row, Malformed)], source)
    adapted = [
        Dropped(row_id, source.title, "malformed_row", row.detail) if isinstance(row, Malformed) else adapt(row, row_id, source)
        for row_id, row in rows
    ]
    check_rows(adapted, source)
    if batch.is_first:
        _check_first(adapted, source)
    return adapted


def check_columns(rows: Sequence[Row], source: Source, columns: Sequence[str] | None = None, keys: str = "") -> None:
    """Refuse a recipe that names a column which none of the rows has.

    Args:
        rows: the first rows of the source.
        source: the source.
        columns: the columns to look for; None: those of the format.
        keys: the keys that name them, for the error.

    Raises:
        DataError: naming the column, and those that exist.
    """
    wanted = dict.fromkeys(source.columns if columns is None else columns)
    missing = ", ".join(f'"{name}"' for name in wanted if not any(has_cell(row, name) for row in rows))
    if not rows or not missing:
        return
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    hint = ""
    if columns is None and TOKENS & set(names):
        hint = "; rows of tokens need format: tokenized"
    elif columns is None and isinstance(source, PairSource) and set(names) >= UNPAIRED:
        hint = "; rows of one completion and a label are unpaired (KTO), a reward model needs two responses to compare"
    raise DataError(f"{source.title}: no column {missing}{keys}; it has: {', '.join(names[:NAMED_COLUMNS])}{hint}")


def check_rows(rows: Sequence[Adapted], source: Source) -> None:
    """Refuse rows that cannot be dropped without changing the meaning of the recipe.

    Raises:
        DataError: naming the first rows with margins that are not finite numbers of at least 0, or with ties under `tie: error`.
    """
    margins = [row for row in rows if isinstance(row, Dropped) and row.reason == "bad_margin"]
    # a margin is the user's own number: to drop or to clip it would train on something else than asked for
    if margins:
        raise DataError(f"margins must be finite numbers of at least 0: {_named(margins)}")
    ties = [row for row in rows if isinstance(row, Dropped) and row.reason == TIE]
    if ties and isinstance(source, AbSource) and source.tie == "error":
        raise DataError(f"{source.title}: ties are not allowed (tie: error): {_named(ties)}")


def _named(rows: Sequence[Dropped]) -> str:
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return "; ".join(f"{row.id}: {row.detail}" for row in rows[:NAMED_ROWS]) + more


def _check_first(rows: Sequence[Adapted], source: Source) -> None:
    """Refuse a source whose first rows are all dropped for one reason, rather than after reading all of it."""
    # a wrong column name or format drops all rows in the same way; faults of the data do not
    dropped = [row for row in rows if isinstance(row, Dropped)]
    reasons = Counter(row.reason for row in dropped)
    if len(dropped) < len(rows) or len(reasons) != 1 or INTENTIONAL_DROPS & reasons.keys():
        return
    first = dropped[0]
    count = "its only row is" if len(rows) == 1 else f"the first {len(rows)} rows are all"
    raise DataError(f"{source.title}: {count} refused ({first.reason}): {first.id}: {first.detail}")
