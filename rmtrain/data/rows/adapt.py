"""Rows as a source gives them to comparisons, some at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rmtrain.data.comparison import Adapted, Dropped
from rmtrain.data.rows.cells import has_cell
from rmtrain.data.rows.formats import TIE, adapt
from rmtrain.data.rows.readers import Line, Malformed, RawRow, Row, parse
from rmtrain.data.waterfall import INTENTIONAL_DROPS
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource, PairSource, Source

NAMED_ROWS = 5
NAMED_COLUMNS = 40
TOKENS = {"input_ids_chosen", "chosen_ids"}
UNPAIRED = {"completion", "label"}


def check_columns(rows: Sequence[Row], source: Source) -> None:
    """Refuse a recipe that names a column which none of the rows has.

    Raises:
        DataError: naming it, and those that are there.
    """
    missing = [name for name in dict.fromkeys(source.columns) if not any(has_cell(row, name) for row in rows)]
    if not rows or not missing:
        return
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    absent = ", ".join(f'"{name}"' for name in missing)
    raise DataError(f"{source.title}: no column {absent}; it has: {', '.join(names[:NAMED_COLUMNS])}{_hint(set(names), source)}")


def _hint(names: set[str], source: Source) -> str:
    if TOKENS & names:
        return "; rows of tokens need format: tokenized"
    if isinstance(source, PairSource) and names >= UNPAIRED:
        return "; rows of one completion and a label are unpaired (KTO), and a reward model needs two responses to compare"
    return ""


def check_rows(rows: Sequence[Adapted], source: Source) -> None:
    """Refuse rows that cannot be left out without changing what the recipe says.

    Raises:
        DataError: margins that are no finite numbers of at least 0, or ties under `tie: error`, naming the first of them.
    """
    dropped = [row for row in rows if isinstance(row, Dropped)]
    margins = [row for row in dropped if row.reason == "bad_margin"]
    if margins:
        raise DataError(f"margins must be finite numbers of at least 0: {_named(margins)}")
    ties = [row for row in dropped if row.reason == TIE]
    if ties and isinstance(source, AbSource) and source.tie == "error":
        raise DataError(f"{source.title}: tie is error, and rows are ties: {_named(ties)}")


def _named(rows: Sequence[Dropped]) -> str:
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return "; ".join(f"{row.id}: {row.detail}" for row in rows[:NAMED_ROWS]) + more


def check_first(rows: Sequence[Adapted], source: Source) -> None:
    """Refuse at once what would drop every row, rather than after reading all of them.

    Args:
        rows: the first of the source.
        source: the source.

    Raises:
        DataError: none of them can be used, all for the same reason, and the recipe does not ask for that.
    """
    reasons = Counter(row.reason for row in rows if isinstance(row, Dropped))
    if reasons.total() < len(rows) or len(reasons) != 1 or INTENTIONAL_DROPS & reasons.keys():
        return
    first = next(row for row in rows if isinstance(row, Dropped))
    count = "its only row is" if len(rows) == 1 else f"the first {len(rows)} rows are all"
    raise DataError(f"{source.title}: {count} refused ({first.reason}): {first.id}: {first.detail}")


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
