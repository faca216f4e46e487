"""Rows of a Hub dataset: downloaded, streamed, or from what earlier runs left on the disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from datasets import DatasetBuilder, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.cache.cache import Cache

from rmtrain.data.raw.json_reader import Row
from rmtrain.data.raw.meter import Meter
from rmtrain.data.raw.table_reader import read_dataset
from rmtrain.errors import DISK_FULL, DataError, RecipeError, RmtrainError, TryAgain
from rmtrain.recipe.schema import Source


def hub_builder(source: Source) -> DatasetBuilder:
    """What `datasets` knows of a source on the Hub. Its `hash` is the commit of the revision.

    Raises:
        DataError: there is no such dataset, or it cannot be reached.
    """
    with _told(source):
        builder = load_dataset_builder(
            source.path,
            name=source.name,
            revision=source.revision,
            data_dir=source.data_dir,
            data_files=patterns(source) or None,
        )
    if isinstance(builder, Cache) and source.revision not in (None, builder.hash):  # offline, `datasets` takes any cached version
        raise DataError(
            f"{source.title}: offline, and whether the cached {source.path} is revision {source.revision} cannot be known; "
            f"leave `revision` out, or name the cached one: {builder.hash}"
        )
    return builder


def hub_rows(source: Source, meter: Meter) -> Iterator[Row]:
    """The rows of a source on the Hub. With `streaming` only as much is downloaded as is read; offline, cached rows are read instead.

    Raises:
        DataError: as `hub_builder` says, or no such split.
        TryAgain: the disk is full.
    """
    builder = hub_builder(source)
    if source.streaming and not isinstance(builder, Cache):
        return _streamed(source, builder)
    with _told(source):
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=source.split or only_split(source, list(builder.info.splits)))
    return meter.through([read_dataset(dataset, meter, dataset.num_rows)], [1])


def _streamed(source: Source, builder: DatasetBuilder) -> Iterator[Row]:
    if source.limit is None:
        raise RecipeError(f"{source.title}: `streaming` needs `limit`, the number of rows to read")
    with _told(source):
        split = source.split
        if split is None:
            split = only_split(source, list(builder.as_streaming_dataset()))
        yield from read_dataset(builder.as_streaming_dataset(split=split).take(source.limit))


def patterns(source: Source) -> list[str]:
    """`data_files` as a list."""
    return [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or ())


def only_split(source: Source, splits: Sequence[str]) -> str:
    """The split of a source that names none; raises DataError when there are several."""
    if len(splits) == 1:
        return splits[0]
    raise DataError(f"{source.title}: {source.path} has {len(splits)} splits; set `split` to one of: {', '.join(splits)}")


@contextmanager
def _told(source: Source) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        raise _in_one_line(source, error) from error


def _in_one_line(source: Source, error: Exception) -> RmtrainError:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return TryAgain(
            f"{source.title}: the disk that {source.path} is downloaded to is full; make room, name another one in HF_HOME, or set "
            "streaming: true with a limit"
        )
    message = " ".join(str(error).split())[:400]
    return DataError(f"{source.title}: {source.path} is no local file, and the Hub did not give it: {message}")
