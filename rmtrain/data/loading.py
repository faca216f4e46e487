"""Sources to batches of comparisons, with the refusals that need more than one row to see."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from rmtrain.data.adapters import adapt, lookup
from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison
from rmtrain.data.json_reader import Row
from rmtrain.data.sources import read_rows
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource, Source

BATCH_ROWS = 1000
NAMED_ROWS = 5

Adapted = Comparison | TokenizedComparison | Dropped
NumberedRow = tuple[int, Row | Dropped]


def load_comparisons(source: Source) -> Iterator[list[Adapted]]:
    """All rows of a source in batches, each row a comparison or dropped.

    Raises:
        DataError: a column that no row of the first batch has, a first batch without a single usable row for one and the same reason,
            margins that are no finite, non-negative numbers, or a source that cannot be read.
    """
    rows = read_rows(source)
    is_first = True
    while batch := list(islice(rows, BATCH_ROWS)):
        if is_first:
            _check_columns(batch, source)
        adapted = adapt_batch(batch, source)
        if is_first:
            _check_first(adapted, source)
        yield adapted
        is_first = False


def adapt_batch(batch: Sequence[NumberedRow], source: Source) -> list[Adapted]:
    """The comparisons of some rows. A pure function of its arguments.

    Raises:
        DataError: naming the rows whose margin is none.
    """
    adapted = [row if isinstance(row, Dropped) else adapt(row, index, source) for index, row in batch]
    bad = [row for row in adapted if isinstance(row, Dropped) and row.reason == "bad_margin"]
    if bad:
        named = "; ".join(f"{row.id}: {row.detail}" for row in bad[:NAMED_ROWS])
        more = f" and {len(bad) - NAMED_ROWS} more" if len(bad) > NAMED_ROWS else ""
        raise DataError(f"margins must be finite numbers of at least 0: {named}{more}")
    return adapted


def _named_columns(source: Source) -> list[str]:
    margins = list(source.margin) if isinstance(source.margin, tuple) else [source.margin]
    if not isinstance(source, PairSource):
        return [name for name in margins if name is not None]
    prompt = None if source.prompt in ("auto", "implicit") else source.prompt
    return [name for name in (source.chosen, source.rejected, prompt, source.system, *margins) if name is not None]


def _check_columns(batch: Sequence[NumberedRow], source: Source) -> None:
    rows = [row for _, row in batch if isinstance(row, dict)]
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
