"""A source in batches while it is read: raw rows for other processes to adapt, or comparisons where they are grouped first."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeGuard, TypeVar

from rmtrain.data.comparison import (
    Adapted,
    Comparison,
    Dropped,
    TokenizedComparison,
    is_held_out,
    prompt_hash,
    response_hashes,
    rows_of,
)
from rmtrain.data.rows.adapt import RawBatch, check_rows
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.formats import grouped
from rmtrain.data.rows.readers import ReadMeter
from rmtrain.data.rows.select import Limits, Marks, Selection, content_key, drawn, group_by_prompt, is_limited, select
from rmtrain.recipe.schema import RankedSource, Source, TextSource

BATCH_ROWS = 1000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """Progress on one source.

    source: its tag.
    rows: number of its rows that are done.
    share: the share of the source that this is, from 0 to 1; None: unknown.
    doing: what is done with the rows; rows are gathered before the first of them is tokenized.
    """

    source: str
    rows: int
    share: float | None = None
    doing: str = "tokenizing"


Progress = Callable[[Reading], None]
"""Called after each batch."""


def no_progress(reading: Reading) -> None:
    """Report nothing."""


def read_batches(source: Source, progress: Progress = no_progress) -> Iterator[RawBatch | list[Adapted]]:
    """Yield all rows of a source in batches: raw ones, to be selected and adapted by any process; or comparisons where rows are grouped.

    `dedup` and `cap` are left to the process that sees all raw batches in order; comparisons that were grouped have passed them.

    Args:
        source: the source.
        progress: called while rows are grouped, before the first batch is yielded.

    Raises:
        DataError: a source that cannot be read, or, where rows are grouped, see `select`.
    """
    # the rows of a group may be anywhere in the source, so that one process has to see all of them
    by_prompt = isinstance(source, TextSource) and source.group_by_prompt
    if by_prompt or _is_grouped(source):
        rows = chain.from_iterable(load_comparisons(source, progress))
        return _batched(group_by_prompt(rows) if by_prompt else rows)
    return _raw_batches(source)


def load_comparisons(source: Source, progress: Progress = no_progress) -> Iterator[list[Adapted]]:
    """Yield all rows of a source in batches, each a comparison or dropped, as the recipe selects them; none are grouped by prompt.

    Raises:
        DataError: a source that cannot be read, or see `select`.
    """

    def selections() -> Iterator[Selection]:
        read = 0
        for batch in _raw_batches(source):
            yield select(batch)
            read += len(batch.rows)
            progress(Reading(source.title, read, batch.share, "gathering"))

    limits = Limits(source)
    for selection in _compare_groups(selections(), source) if _is_grouped(source) else selections():
        yield _apply_limits(selection, source, limits) if is_limited(source) else selection.rows


def _is_grouped(source: Source) -> TypeGuard[RankedSource]:
    return isinstance(source, RankedSource) and source.group_by is not None


def _raw_batches(source: Source) -> Iterator[RawBatch]:
    meter, read = ReadMeter(), 0
    for rows in _batched(read_rows(source, meter)):
        is_first, read = not read, read + len(rows)
        # a limit may end a large file early, and the file may end before its limit
        share = max(meter.share or 0.0, read / source.limit) if source.limit else meter.share
        yield RawBatch(source, rows, is_first, share)


def _batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def _compare_groups(selections: Iterable[Selection], source: RankedSource) -> Iterator[Selection]:
    """Yield the same rows, candidates as comparisons. All are read before the first one is yielded."""
    groups: dict[str, int] = {}

    def rows() -> Iterator[Adapted]:
        for selection in selections:
            groups.update(selection.groups)
            yield from selection.rows

    for batch in _batched(grouped(rows(), source)):
        check_rows(batch, source)
        yield Selection(drawn(batch, source), groups)


def _apply_limits(selection: Selection, source: Source, limits: Limits) -> list[Adapted]:
    """Return the rows with comparisons that `dedup` or `cap` refuse as dropped, each under all of its row ids."""
    splits: dict[str, list[tuple[str, int, int]]] = {"train": [], "eval": []}
    for row in selection.rows:
        if isinstance(row, Comparison | TokenizedComparison):
            prompt = prompt_hash(row)
            content = content_key(prompt, response_hashes(row), row.preferences)
            split = "eval" if is_held_out(prompt, source.holdout) else "train"
            splits[split].append((row.id, content, selection.groups.get(row.id, 0)))
    refused: dict[str, Dropped] = {}
    for split, marked in splits.items():
        ids, contents, groups = zip(*marked, strict=True) if marked else ((), (), ())
        refused |= {row.id: row for row in limits.refused(split, ids, Marks(contents, groups))}
    result: list[Adapted] = []
    for row in selection.rows:
        if isinstance(row, Dropped) or row.id not in refused:
            result.append(row)
        else:
            result += [replace(refused[row.id], id=row_id) for row_id in rows_of(row)]
    return result
