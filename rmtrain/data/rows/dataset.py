"""A source of the recipe: its raw rows, from local files or the Hub, and the fingerprints that make up a cache key.

The `datasets` library takes a second to import, in each worker process. It is only imported where a source needs it: files do without.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from yaml import YAMLError

from rmtrain.data.rows.arrow import READ_ROWS, arrow_rows, class_names, flatten, read_parquet
from rmtrain.data.rows.hook import hook_of
from rmtrain.data.rows.readers import RawRow, ReadMeter, Row, read_csv, read_json
from rmtrain.data.rows.saved import check_saved, saved_errors, saved_splits
from rmtrain.data.rows.suspects import read_suspects
from rmtrain.errors import DISK_FULL, DataError, RecipeError, RmtrainError, TryAgain, missing
from rmtrain.files import expanded, sha256_file
from rmtrain.network import raise_if_passing, refusal
from rmtrain.recipe.preference_labels import ValueLabel, label_text
from rmtrain.recipe.schema import AbSource, ComparedSource, Source
from rmtrain.recipe.sources import RESAMPLING

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset
    from transformers import PreTrainedTokenizerBase

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
REPEATED = re.compile(r"(\*\*/+)+")
GLOB = re.compile(r"[*?\[]")
METADATA = ("dataset_infos.json", "dataset_info.json")
DOWNLOAD = "download its files with `hf download`, and set path to their folder"


def read_rows(source: Source, meter: ReadMeter | None = None) -> Iterator[tuple[int, RawRow]]:
    """Stream the rows of a source with their numbers, counted from 0.

    A path that does not exist is taken as a Hub id if it looks like one. Errors are raised when rows are read, not before.

    Raises:
        DataError: a dataset, file or split that is missing or cannot be read.
        RecipeError: a key that does not apply to a local path.
        TryAgain: the disk is full.
    """
    meter = meter or ReadMeter()
    rows = _hub_rows(source, meter) if is_on_hub(source) else _local_rows(source, meter)
    return enumerate(islice(rows, source.limit))


def split_names(source: Source) -> list[str]:
    """Return the splits of a source in their order; none for a single file. Raises DataError and TryAgain as `read_rows`."""
    if is_on_hub(source):
        builder = _hub_builder(source)
        with _hub_errors(source):
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


def _hub_rows(source: Source, meter: ReadMeter) -> Iterator[Row]:
    """Read a source on the Hub. With `streaming` no more is downloaded than is read; offline, cached rows are read instead."""
    builder = _hub_builder(source)
    with _hub_errors(source):
        if source.streaming and not _is_cached(builder):
            if source.limit is None:
                raise RecipeError(f"{source.place}: `streaming` needs `limit`, the number of rows to read")
            split = source.split or _split_of(source, list(builder.as_streaming_dataset()))
            yield from read_dataset(builder.as_streaming_dataset(split=split).take(source.limit), meter, source)
        else:
            builder.download_and_prepare()
            split = source.split or _split_of(source, list(builder.info.splits))
            yield from read_dataset(builder.as_dataset(split=split), meter, source)


def _hub_builder(source: Source) -> "DatasetBuilder":
    """Return the builder of a source on the Hub; its `hash` is the commit of the revision."""
    from datasets import load_dataset_builder

    with _hub_errors(source):
        builder = load_dataset_builder(
            source.path,
            name=source.name,
            revision=source.revision,
            data_dir=source.data_dir,
            data_files=_patterns(source) or None,
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
def _hub_errors(source: Source) -> Iterator[None]:
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
    """Read a dataset; a stream, whose number of rows is unknown, leaves `meter` alone. For `source` see `_by_name`.

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
    return _by_name(rows, names, source) if names and source is not None else rows


def _validated(table: pa.Table) -> pa.Table:
    """Return a table whose offsets and texts were checked: a stranger's, mapped from a file, could point anywhere."""
    table.validate(full=True)
    return table


def _by_name(rows: Iterator[Row], names: Mapping[str, Sequence[str]], source: Source) -> Iterator[Row]:
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


def _split_of(source: Source, splits: Sequence[str]) -> str:
    """Return the split that a source names, or the only one there is; raises DataError where it is missing, or there are several."""
    if source.split is not None:
        if source.split in splits:
            return source.split
        raise DataError(f'{source.place}: no split "{source.split}"; it has: {", ".join(splits)}')
    if len(splits) != 1:
        raise DataError(f"{source.place}: {len(splits)} splits; set `split` to one of: {', '.join(splits)}")
    return splits[0]


def _local_rows(source: Source, meter: ReadMeter) -> Iterator[RawRow]:
    if (folder := _saved_dataset(source)) is not None:
        from datasets import load_from_disk

        with saved_errors(folder):
            yield from read_dataset(load_from_disk(str(folder)), meter, source)
        return
    files = _data_files(source)
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes) or 1
    for index, file in enumerate(files):
        meter.begin, meter.size = sum(sizes[:index]) / total, sizes[index] / total
        rows = _read_file(file, frozenset(source.number_columns), meter)
        names = class_names(file) if file.suffix == ".parquet" else {}
        yield from _by_name(cast(Iterator[Row], rows), names, source) if names else rows


def _read_file(file: Path, numbers: Set[str], meter: ReadMeter) -> Iterator[RawRow]:
    """Read a data file with the reader for its suffix; see `read_csv` for `numbers`."""
    if file.name.endswith(".parquet"):
        return read_parquet(file, meter)
    if file.name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return read_csv(file, numbers, meter)
    return read_json(file, meter)


def _data_files(source: Source) -> list[Path]:
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
        _split_of(source, sorted({_split_names(file, folder)[0] for file in files}))
    return chosen or files


def _files_in(folder: Path, source: Source) -> list[Path]:
    if not folder.is_dir():
        raise DataError(missing(folder))
    patterns = _patterns(source)
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


def _patterns(source: Source) -> list[str]:
    return [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or ())


def _split_names(file: Path, folder: Path) -> list[str]:
    """Return the split of a file, then its other names: its stem and the folders that contain it."""
    stem = SHARD.sub("", file.name.removesuffix(_suffix(file)))
    folders = list(reversed(file.relative_to(folder).parts[:-1]))
    return [stem, *folders] if stem not in ("", "part", "data", "shard") or not folders else [*folders, stem]


def _suffix(file: Path) -> str:
    """Return the end of a file's name that decides how it is read, such as `.jsonl.gz`."""
    return next((suffix for suffix in sorted(FORMATS, key=len, reverse=True) if file.name.endswith(suffix)), file.suffix)


def _refuse_keys(source: Source, *keys: str) -> None:
    if source.streaming:
        raise RecipeError(f"{source.place}: `streaming` only applies to Hub datasets, and this one is local; remove it")
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(f"{source.place}: `{key}` does not apply to a local path; remove it")


def _saved_dataset(source: Source) -> Path | None:
    """Return the folder of one split that `datasets.save_to_disk` wrote, if the path is such a directory."""
    splits = saved_splits(expanded(source.path) / (source.data_dir or ""))
    if not splits:
        return None
    folder = splits[_split_of(source, list(splits))]
    _refuse_keys(source, "name", "revision", "data_files")
    check_saved(folder)
    return folder


PIPELINE_VERSION = 6
"""Increase it with every change of this folder that changes tokens, row ids or the stored columns: it is part of the cache key."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


class Snapshot:
    """Sources with what identifies them when a key is made, to check that nothing else was read.

    `identities` are their `source_identity`, in order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._states = [_file_states(source) for source in sources]
        self.identities = [source_identity(source) for source in sources]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise TryAgain if a local file is written or replaced before the block ends, so that no result is kept under a wrong key."""
        try:
            yield
        except DataError:
            self._check()  # a file that is being written may well be malformed
            raise
        self._check()

    def _check(self) -> None:
        for source, states, identity in zip(self._sources, self._states, self.identities, strict=True):
            try:
                is_same = not states or (_file_states(source) == states and fingerprint(source) == identity["content"])
            except DataError:
                is_same = False
            if not is_same:
                raise TryAgain(f"{source.place}: changed while it was read; repeat the command when nothing writes to it")


def _file_states(source: Source) -> list[tuple[str | int, ...]]:
    """Return the name, number, size and times of each local file: they also tell a change that was undone."""
    states = [] if is_on_hub(source) else [(str(file), file.stat()) for file in _stored_files(source)]
    return [(name, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]


def _stored_files(source: Source) -> list[Path]:
    """Return all local files that a source is read from."""
    if (folder := _saved_dataset(source)) is None:
        return _data_files(source)
    return sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".json") and file.is_file())


def fingerprint(source: Source) -> str:
    """Return a hash of the content: of the bytes of each local file and of the reader for its name, or of the commit of a Hub dataset."""
    parts: list[Any]
    if is_on_hub(source):
        builder = _hub_builder(source)
        parts = [source.path, builder.config_id, builder.hash, source.split]
    else:
        try:
            parts = [(_suffix(file), sha256_file(file)) for file in _stored_files(source)]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """Return the settings and the content hash of a source: the bytes of its files and of `prepare` count, their location does not."""
    # keys that were added later do not change the identity of a source that does not set them: what is cached stays valid
    unset = {name for name in RESAMPLING if name not in source.resampling_keys}
    unset |= {name for name in ("fold", "suspects") if getattr(source, name, None) is None}
    settings = source.model_dump(mode="json", exclude={"path", "tag", "streaming", *unset})
    if isinstance(source, ComparedSource) and source.suspects is not None:
        settings["suspects"] = [source.suspects.labels, *sorted(read_suspects(source).items())]
    code = None if source.prepare is None else hashlib.sha256(hook_of(source).code).hexdigest()
    return settings | {"title": source.title, "content": fingerprint(source), "code": code}


def digest(parts: dict[str, Any]) -> str:
    """Return the sha256 of JSON values and of the versions of all packages that turn rows into tokens."""
    versions = {name: version(name) for name in PACKAGES} | {"pipeline": PIPELINE_VERSION}
    return hashlib.sha256(json.dumps({"versions": versions, **parts}, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 of all of a fast tokenizer that shapes tokens: its `tokenizer.json`, special tokens and chat template.

    Padding and truncation do not count: each call sets its own, so both are turned off here.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    parts = [
        backend.to_str(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
