"""Sources to batches of rows and comparisons, as they are read."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Self, TypeGuard, TypeVar

import numpy as np

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
from rmtrain.data.rows.readers import Meter
from rmtrain.data.rows.select import Limits, Marks, Selection, content_key, drawn, gather, is_limited, select
from rmtrain.recipe.schema import RankedSource, Source, TextSource


@dataclass(frozen=True, slots=True)
class Reading:
    """What is done of a source.

    source: its tag.
    rows: how many of its rows are done.
    share: which share of it that is, from 0 to 1; None: not known.
    doing: what is done with them; rows are gathered before the first of them is tokenized.
    elsewhere: whether another process does it, which this one waits for.
    """

    source: str
    rows: int
    share: float | None = None
    doing: str = "tokenizing"
    elsewhere: bool = False

    def to_line(self) -> str:
        """The same in a line that `of_line` reads."""
        return f"{self.doing} {self.rows} {'?' if self.share is None else f'{self.share:.4f}'} {self.source}"

    def goes_on(self, before: "Reading") -> bool:
        """Whether it tells of the same work as one before, further on."""
        same = (self.source, self.doing, self.elsewhere) == (before.source, before.doing, before.elsewhere)
        return same and self.rows >= before.rows

    @classmethod
    def of_line(cls, line: str) -> Self | None:
        """What another process wrote; None: nothing yet."""
        doing, rows, share, source = [*line.split(" ", 3), "", "", ""][:4]
        return cls(source, int(rows), None if share == "?" else float(share), doing, elsewhere=True) if source else None


Progress = Callable[[Reading], None]
"""Called after each batch."""


BATCH_ROWS = 1000
Item = TypeVar("Item")
Told = Callable[[int], None]


def _nobody(rows: int) -> None:
    """Told of rows, and silent."""


def read_batches(source: Source, meter: Meter | None = None, gathering: Told = _nobody) -> Iterator[RawBatch | list[Adapted]]:
    """All rows of a source in batches, to be selected and adapted by whoever has the time; those to be gathered are so already.

    `dedup` and `cap` are left to whoever sees all batches in order; where rows are gathered, they have been heeded before.

    Args:
        source: where the rows are, and which of them are used.
        meter: told how far the reading is.
        gathering: told how many rows are read, while they are gathered and none is given yet.

    Raises:
        DataError: a source that cannot be read, or, where rows are gathered, as `select` says.
    """
    by_prompt = isinstance(source, TextSource) and source.group_by_prompt
    if by_prompt or _is_grouped(source):
        rows = chain.from_iterable(load_comparisons(source, meter, gathering))
        return _batched(gather(rows) if by_prompt else rows)
    return _raw_batches(source, meter)


def load_comparisons(source: Source, meter: Meter | None = None, told: Told = _nobody) -> Iterator[list[Adapted]]:
    """All rows of a source in batches, each row a comparison or dropped as the recipe's selection says, none gathered by prompt.

    Raises:
        DataError: a source that cannot be read, or as `select` says.
    """
    limits, selections = Limits(source), _selections(source, meter, told)
    for selection in _grouped(selections, source) if _is_grouped(source) else selections:
        yield _limited(selection, source, limits) if is_limited(source) else selection.rows


def _selections(source: Source, meter: Meter | None, told: Told) -> Iterator[Selection]:
    read = 0
    for batch in _raw_batches(source, meter):
        yield select(batch)
        read += len(batch.rows)
        told(read)


def _is_grouped(source: Source) -> TypeGuard[RankedSource]:
    return isinstance(source, RankedSource) and source.group_by is not None


def _grouped(selections: Iterable[Selection], source: RankedSource) -> Iterator[Selection]:
    """The same rows, those that are one response each as comparisons. All are read before the first one comes."""
    groups: dict[str, int] = {}

    def rows() -> Iterator[Adapted]:
        for selection in selections:
            groups.update(selection.groups)
            yield from selection.rows

    for batch in _batched(grouped(rows(), source)):
        check_rows(batch, source)
        yield Selection(drawn(batch, source), groups)


def _limited(selection: Selection, source: Source, limits: Limits) -> list[Adapted]:
    members: dict[str, list[Comparison | TokenizedComparison]] = defaultdict(list)
    hashes = {row.id: prompt_hash(row) for row in selection.rows if isinstance(row, Comparison | TokenizedComparison)}
    for row in selection.rows:
        if isinstance(row, Comparison | TokenizedComparison):
            members["eval" if is_held_out(hashes[row.id], source.holdout) else "train"].append(row)
    refused: dict[str, Dropped] = {}
    for split, rows in members.items():
        contents = [content_key(hashes[row.id], response_hashes(row), row.preferences) for row in rows]
        groups = [selection.groups.get(row.id, 0) for row in rows]
        marks = Marks(np.array(contents, np.uint64), np.array(groups, np.uint64))
        refused |= {row.id: row for row in limits.refused(split, [row.id for row in rows], marks)}
    return [left for row in selection.rows for left in _refused(row, refused)]


def _refused(row: Adapted, refused: Mapping[str, Dropped]) -> list[Adapted]:
    """The row, or, where it is refused, all the rows that it is made of as dropped."""
    if isinstance(row, Dropped) or row.id not in refused:
        return [row]
    return [replace(refused[row.id], id=row_id) for row_id in rows_of(row)]


def _raw_batches(source: Source, meter: Meter | None) -> Iterator[RawBatch]:
    for number, rows in enumerate(_batched(read_rows(source, meter))):
        yield RawBatch(source, rows, is_first=number == 0)


def _batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch
