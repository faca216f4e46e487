"""Rows as a source gives them to comparisons, some at a time, with the refusals that need more than one row to see."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rmtrain.data.adapters import adapt, lookup
from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison
from rmtrain.data.json_reader import Line, Malformed, RawRow, Row, parse
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource, Source

NAMED_ROWS = 5

Adapted = Comparison | TokenizedComparison | Dropped


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Some rows of a source with their numbers, as it gives them."""

    source: Source
    rows: Sequence[tuple[int, RawRow]]
    is_first: bool


def adapt_batch(batch: RawBatch) -> list[Adapted]:
    """The comparisons of some rows. A pure function of its argument.

    Raises:
        DataError: a column that no row of a first batch has, a first batch without a single usable row for one and the same reason, or
            margins that are no finite, non-negative numbers.
    """
    source = batch.source
    rows = [(index, parse(row) if isinstance(row, Line) else row) for index, row in batch.rows]
    if batch.is_first:
        _check_columns([row for _, row in rows if not isinstance(row, Malformed)], source)
    adapted = [_malformed(row, index, source) if isinstance(row, Malformed) else adapt(row, index, source) for index, row in rows]
    bad = [row for row in adapted if isinstance(row, Dropped) and row.reason == "bad_margin"]
    if bad:
        named = "; ".join(f"{row.id}: {row.detail}" for row in bad[:NAMED_ROWS])
        more = f" and {len(bad) - NAMED_ROWS} more" if len(bad) > NAMED_ROWS else ""
        raise DataError(f"margins must be finite numbers of at least 0: {named}{more}")
    if batch.is_first:
        _check_first(adapted, source)
    return adapted


def _malformed(row: Malformed, index: int, source: Source) -> Dropped:
    return Dropped(f"{source.label}:{index}", source.label, "malformed_row", row.detail)


def _named_columns(source: Source) -> list[str]:
    margins = list(source.margin) if isinstance(source.margin, tuple) else [source.margin]
    if not isinstance(source, PairSource):
        return [name for name in margins if name is not None]
    prompt = None if source.prompt in ("auto", "implicit") else source.prompt
    return [name for name in (source.chosen, source.rejected, prompt, source.system, *margins) if name is not None]


def _check_columns(rows: Sequence[Row], source: Source) -> None:
    if not rows:
        return
    missing = [name for name in _named_columns(source) if not any(_has(row, name) for row in rows)]
    if missing:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        hint = "; rows of tokens need format: tokenized" if {"input_ids_chosen", "chosen_ids"} & set(names) else ""
        absent = ", ".join(f'"{name}"' for name in missing)
        raise DataError(f"{source.label}: no column {absent}; it has: {', '.join(names[:40])}{hint}")


def _has(row: Row, name: str) -> bool:
    try:
        lookup(row, name)
    except KeyError:
        return False
    return True


def _check_first(adapted: Sequence[Adapted], source: Source) -> None:
    """Refuse at once what would drop every row, rather than after reading all of them."""
    dropped = [row for row in adapted if isinstance(row, Dropped)]
    if len(dropped) < len(adapted) or len(Counter(row.reason for row in dropped)) > 1:
        return
    first = dropped[0]
    count = "its only row is" if len(adapted) == 1 else f"the first {len(adapted)} rows are all"
    raise DataError(f"{source.label}: {count} refused ({first.reason}): {first.id}: {first.detail}")
