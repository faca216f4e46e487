"""Sources to batches of rows and comparisons, as they are read."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

from rmtrain.data.batches import Adapted, RawBatch, adapt_batch
from rmtrain.data.gather import gather
from rmtrain.data.sources import read_rows
from rmtrain.recipe.schema import PairSource, Source

BATCH_ROWS = 1000
Item = TypeVar("Item")


def read_batches(source: Source) -> Iterator[RawBatch | list[Adapted]]:
    """All rows of a source in batches, to be adapted by whoever has the time; with `group_by_prompt` they are adapted and gathered.

    Raises:
        DataError: a source that cannot be read, or, where rows are gathered, as `adapt_batch` says.
    """
    if isinstance(source, PairSource) and source.group_by_prompt:
        return _batched(gather(chain.from_iterable(load_comparisons(source))))
    return _raw_batches(source)


def load_comparisons(source: Source) -> Iterator[list[Adapted]]:
    """All rows of a source in batches, each row a comparison or dropped, none gathered.

    Raises:
        DataError: a source that cannot be read, or as `adapt_batch` says.
    """
    return map(adapt_batch, _raw_batches(source))


def _raw_batches(source: Source) -> Iterator[RawBatch]:
    for number, rows in enumerate(_batched(read_rows(source))):
        yield RawBatch(source, rows, is_first=number == 0)


def _batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch
