"""A source of the recipe: its raw rows, from local files or the Hub."""

import os
import re
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import cast

from rmtrain.data.rows.arrow import class_names, read_parquet
from rmtrain.data.rows.hub_dataset import by_name, hub_builder, hub_errors, hub_rows, patterns_of, read_dataset, split_of
from rmtrain.data.rows.readers import RawRow, ReadMeter, Row, read_csv, read_json
from rmtrain.data.rows.saved import check_saved, saved_errors, saved_splits
from rmtrain.errors import DataError, RecipeError, missing
from rmtrain.files import expanded
from rmtrain.recipe.schema import Source

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
REPEATED = re.compile(r"(\*\*/+)+")
GLOB = re.compile(r"[*?\[]")
METADATA = ("dataset_infos.json", "dataset_info.json")


def read_rows(source: Source, meter: ReadMeter | None = None) -> Iterator[tuple[int, RawRow]]:
    """Stream the rows of a source with their numbers, counted from 0.

    A path that does not exist is taken as a Hub id if it looks like one. Errors are raised when rows are read, not before.

    Raises:
        DataError: a dataset, file or split that is missing or cannot be read.
        RecipeError: a key that does not apply to a local path.
        TryAgain: the disk is full.
    """
    meter = meter or ReadMeter()
    rows = hub_rows(source, meter) if is_on_hub(source) else _local_rows(source, meter)
    return enumerate(islice(rows, source.limit))


def split_names(source: Source) -> list[str]:
    """Return the splits of a source in their order; none for a single file. Raises DataError and TryAgain as `read_rows`."""
    if is_on_hub(source):
        builder = hub_builder(source)
        with hub_errors(source):
            return list(builder.info.splits or builder.as_streaming_dataset())
    path = expanded(source.path)
    if path.is_file():
        return []
    folder = path / (source.data_dir or "")
    return list(saved_splits(folder)) or sorted({_split_names(file, folder)[0] for file in _files_in(folder, source)})


def is_on_hub(source: Source) -> bool:
    """Return whether the path is a Hub id rather than a file or directory; raises DataError where it can be neither."""
    if os.path.exists(expanded(source.path)):
        return False
    if pattern := GLOB.search(source.path):
        folder, slash, rest = source.path[: pattern.start()].rpartition("/")
        files = rest + source.path[pattern.start() :]
        raise DataError(f'{source.place}: a path is not a pattern; set path: {folder or slash or "."} and data_files: "{files}"')
    if source.path[0] in "./~" or source.path.count("/") > 1 or source.path.endswith(FORMATS):
        raise DataError(missing(source.path) if source.tag is None else f"{source.tag}: {missing(source.path)}")
    return True


def _local_rows(source: Source, meter: ReadMeter) -> Iterator[RawRow]:
    if (folder := saved_dataset(source)) is not None:
        from datasets import load_from_disk

        with saved_errors(folder):
            yield from read_dataset(load_from_disk(str(folder)), meter, source)
        return
    files = data_files(source)
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes) or 1
    for index, file in enumerate(files):
        meter.begin, meter.size = sum(sizes[:index]) / total, sizes[index] / total
        rows = _read_file(file, frozenset(source.number_columns), meter)
        names = class_names(file) if file.suffix == ".parquet" else {}
        yield from by_name(cast(Iterator[Row], rows), names, source) if names else rows


def _read_file(file: Path, numbers: Set[str], meter: ReadMeter) -> Iterator[RawRow]:
    """Read a data file with the reader for its suffix; see `read_csv` for `numbers`."""
    if file.name.endswith(".parquet"):
        return read_parquet(file, meter)
    if file.name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return read_csv(file, numbers, meter)
    return read_json(file, meter)


def data_files(source: Source) -> list[Path]:
    """Return the local files of a source's split, sorted.

    In a directory the split of a file is its name without suffix and shard number (`train.jsonl`, `test-00000-of-00002.parquet`), or
    the name of a folder that contains it.
    """
    path = expanded(source.path)
    _refuse_keys(source, "name", "revision")
    if path.is_file():
        _refuse_keys(source, "data_dir", "data_files")
        if not path.name.endswith(FORMATS):
            raise DataError(f"{source.place}: not a data file; expected one of {', '.join(FORMATS)}")
        if source.split not in (None, "train", _split_names(path, path.parent)[0]):
            raise DataError(f'{source.place}: a single file without a split "{source.split}"; remove `split`')
        return [path]
    folder = path / (source.data_dir or "")
    files = _files_in(folder, source)
    if source.split is None and source.data_files is not None:
        return files
    chosen = [file for file in files if source.split in _split_names(file, folder)]
    if not chosen:  # the split is missing, or none is named, so there must be only one
        split_of(source, sorted({_split_names(file, folder)[0] for file in files}))
    return chosen or files


def _files_in(folder: Path, source: Source) -> list[Path]:
    if not folder.is_dir():
        raise DataError(missing(folder))
    patterns = patterns_of(source)
    try:
        files = files_below(folder, patterns or ["**/*"])
    except OSError as error:  # such as in /proc, whose files come and go
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error
    except (LookupError, ValueError, NotImplementedError) as error:  # what pathlib raises, by pattern
        problem = f"expected patterns of files in {folder}, such as *.jsonl, got {', '.join(map(repr, patterns))}"
        raise RecipeError(f"{source.place}: data_files: {problem}") from error
    if not files:
        raise DataError(f"{folder}: no data file; expected {', '.join(patterns or FORMATS)}")
    return files


def files_below(folder: Path, patterns: Sequence[str] = ("**/*",)) -> list[Path]:
    """Return the data files of a folder that match one of the patterns, without hidden ones and metadata."""
    return sorted(
        file
        # repeated, `**/` finds the same files, in much more time
        for file in {file for pattern in patterns for file in folder.glob(REPEATED.sub("**/", pattern))}
        if file.name.endswith(FORMATS)
        and file.name not in METADATA
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _split_names(file: Path, folder: Path) -> list[str]:
    """Return the split of a file, then its other names: its stem and the folders that contain it."""
    stem = SHARD.sub("", file.name.removesuffix(suffix_of(file)))
    folders = list(reversed(file.relative_to(folder).parts[:-1]))
    return [stem, *folders] if stem not in ("", "part", "data", "shard") or not folders else [*folders, stem]


def suffix_of(file: Path) -> str:
    """Return the end of a file's name that decides how it is read, such as `.jsonl.gz`."""
    return next((suffix for suffix in sorted(FORMATS, key=len, reverse=True) if file.name.endswith(suffix)), file.suffix)


def _refuse_keys(source: Source, *keys: str) -> None:
    if source.streaming:
        raise RecipeError(f"{source.place}: `streaming` only applies to Hub datasets, and this one is local; remove it")
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(f"{source.place}: `{key}` does not apply to a local path; remove it")


def saved_dataset(source: Source) -> Path | None:
    """Return the folder of one split that `datasets.save_to_disk` wrote, if the path is such a directory."""
    splits = saved_splits(expanded(source.path) / (source.data_dir or ""))
    if not splits:
        return None
    folder = splits[split_of(source, list(splits))]
    _refuse_keys(source, "name", "revision", "data_files")
    check_saved(folder)
    return folder
