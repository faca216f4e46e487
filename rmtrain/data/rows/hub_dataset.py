"""Rows of a dataset that the `datasets` library reads: from the Hub, or as `save_to_disk` wrote it.

The library takes a second to import, in each worker process. It is only imported where a source needs it: files do without.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from yaml import YAMLError

from rmtrain.data.rows.arrow import READ_ROWS, arrow_rows, flatten
from rmtrain.data.rows.readers import ReadMeter, Row
from rmtrain.errors import DISK_FULL, DataError, RecipeError, RmtrainError, TryAgain
from rmtrain.network import raise_if_passing, refusal
from rmtrain.recipe.preference_labels import ValueLabel, label_text
from rmtrain.recipe.schema import AbSource, Source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

DOWNLOAD = "download its files with `hf download`, and set path to their folder"


def hub_rows(source: Source, meter: ReadMeter) -> Iterator[Row]:
    """Read a source on the Hub. With `streaming` no more is downloaded than is read; offline, cached rows are read instead."""
    builder = hub_builder(source)
    with hub_errors(source):
        if source.streaming and not _is_cached(builder):
            if source.limit is None:
                raise RecipeError(f"{source.place}: `streaming` needs `limit`, the number of rows to read")
            split = source.split or split_of(source, list(builder.as_streaming_dataset()))
            yield from read_dataset(builder.as_streaming_dataset(split=split).take(source.limit), meter, source)
        else:
            builder.download_and_prepare()
            split = source.split or split_of(source, list(builder.info.splits))
            yield from read_dataset(builder.as_dataset(split=split), meter, source)


def hub_builder(source: Source) -> "DatasetBuilder":
    """Return the builder of a source on the Hub; its `hash` is the commit of the revision."""
    from datasets import load_dataset_builder

    with hub_errors(source):
        builder = load_dataset_builder(
            source.path,
            name=source.name,
            revision=source.revision,
            data_dir=source.data_dir,
            data_files=patterns_of(source) or None,
        )
    if _is_cached(builder) and source.revision not in (None, builder.hash):  # offline, `datasets` takes any cached version
        raise DataError(
            f"{source.place}: cannot check offline whether the cached dataset is revision {source.revision}; "
            f"remove `revision`, or set it to the cached one: {builder.hash}"
        )
    return builder


def _is_cached(builder: "DatasetBuilder") -> bool:
    from datasets.packaged_modules.cache.cache import Cache

    return isinstance(builder, Cache)  # the Hub cannot be reached, or HF_HUB_OFFLINE is set


@contextmanager
def hub_errors(source: Source) -> Iterator[None]:
    """Raise errors of the `datasets` library as errors of ours, in one line: what a Hub answers can make it raise anything."""
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    try:
        yield
    except RmtrainError:
        raise
    except Exception as error:
        place = source.place if source.path in source.place else f"{source.place}: {source.path}"
        raise_if_passing(f"{place}: not in {Path.cwd()}", error)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise TryAgain(
                f"{source.place}: no disk space left to download it; free some, set HF_HOME to another disk, or set "
                "streaming: true with a limit"
            ) from error
        said = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error  # which only says that it failed
        message = " ".join(str(said).split())[:400]
        place = source.title if source.path in message else source.place
        if isinstance(error, YAMLError):
            message = f"its card README.md is not YAML: {message}; {DOWNLOAD}"
        elif isinstance(error, RuntimeError) and "scripts" in message:
            message = f"{message}; a script is not run: set revision: refs/convert/parquet, or {DOWNLOAD}"
        elif isinstance(error, json.JSONDecodeError) or not isinstance(error, OSError | ValueError | DatasetsError):
            message = f"{type(error).__name__}: {message}; check HF_ENDPOINT, and whether a proxy answers in place of the Hub"
        elif refusal():
            message = f"{message}; {refusal()}"
        raise DataError(f"{place}: not in {Path.cwd()}, and loading it from the Hub failed: {message}") from error


def read_dataset(
    dataset: "Dataset | IterableDataset", meter: ReadMeter | None = None, source: "Source | None" = None
) -> Iterator[Row]:
    """Read a dataset; a stream, whose number of rows is unknown, leaves `meter` alone. For `source` see `by_name`.

    Raises DataError for Arrow data that is damaged.
    """
    from datasets import ClassLabel

    count, features = getattr(dataset, "num_rows", None), dataset.features or {}
    # cells of different shapes, which `datasets` stores as text and decodes only row by row
    if "Json(" in repr(features):
        rows = flatten(([row] for row in dataset), count, meter)
    else:
        tables = dataset.with_format("arrow").iter(batch_size=READ_ROWS)
        rows = flatten(arrow_rows(map(_validated, tables), "" if source is None else source.place), count, meter)
    names = {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}
    return by_name(rows, names, source) if names and source is not None else rows


def _validated(table: pa.Table) -> pa.Table:
    """Return a table whose offsets and texts were checked: a stranger's, mapped from a file, could point anywhere."""
    table.validate(full=True)
    return table


def by_name(rows: Iterator[Row], names: Mapping[str, Sequence[str]], source: Source) -> Iterator[Row]:
    """Yield the rows with the names of ClassLabel cells, which are stored as numbers, in the columns whose values the recipe names."""
    wanted: dict[str, set[str]] = defaultdict(set)
    if isinstance(source, AbSource) and isinstance(source.label, ValueLabel):
        for column in source.label.columns:
            wanted[column].update(source.label.outcomes)
    for condition in source.filter:
        for values in condition.criteria.values():
            wanted[condition.column].update(map(label_text, values if isinstance(values, tuple) else (values,)))
    # values that are all numbers are the stored ones, even where a name is a number as well
    named = [
        column
        for column in names.keys() & wanted.keys()
        if wanted[column] <= set(map(label_text, names[column])) and not all(map(str.isdecimal, wanted[column]))
    ]
    for row in rows:
        for column in named:
            if isinstance(number := row.get(column), int):
                row[column] = names[column][number] if 0 <= number < len(names[column]) else None  # -1: without a label
        yield row


def split_of(source: Source, splits: Sequence[str]) -> str:
    """Return the split that a source names, or the only one there is; raises DataError where it is missing, or there are several."""
    if source.split is not None:
        if source.split in splits:
            return source.split
        raise DataError(f'{source.place}: no split "{source.split}"; it has: {", ".join(splits)}')
    if len(splits) != 1:
        raise DataError(f"{source.place}: {len(splits)} splits; set `split` to one of: {', '.join(splits)}")
    return splits[0]


def patterns_of(source: Source) -> list[str]:
    """Return `data_files` as a list; empty if it is not set."""
    return [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or ())
