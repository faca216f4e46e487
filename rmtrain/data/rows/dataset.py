"""A source of the recipe as a stream of raw rows, from local files or from the Hub, and the fingerprints that make up a cache key.

The `datasets` library takes a second to import, in each worker process. It is only imported where a source needs it: files do without.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.rows.prepare_hook import hook_of
from rmtrain.data.rows.readers import READ_ROWS, RawRow, ReadMeter, Row, flatten, read_file
from rmtrain.errors import DISK_FULL, DataError, RecipeError, TryAgain
from rmtrain.files import sha256_file
from rmtrain.recipe.schema import Source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
METADATA = ("dataset_infos.json", "dataset_info.json")
SAVED_SPLITS, SAVED_DATASET = "dataset_dict.json", "state.json"  # what datasets.save_to_disk writes


def read_rows(source: Source, meter: ReadMeter | None = None) -> Iterator[tuple[int, RawRow]]:
    """Stream the rows of a source with their numbers, counted from 0.

    A relative path is relative to the current directory. A path that does not exist is taken as a Hub id if it looks like one.

    Args:
        source: the source.
        meter: shows how much of it has been read.

    Raises:
        DataError: a dataset, file or split that is missing or cannot be read.
        RecipeError: a key that does not apply to a local path.
        TryAgain: the disk is full.
    """
    meter = meter or ReadMeter()
    rows = _hub_rows(source, meter) if is_on_hub(source) else _local_rows(source, meter)
    return enumerate(islice(rows, source.limit))


def is_on_hub(source: Source) -> bool:
    """Return whether the path is a Hub id rather than a file or directory.

    Raises:
        DataError: the path does not exist and cannot be a Hub id.
    """
    if Path(source.path).expanduser().exists():
        return False
    if source.path[0] in "./~" or source.path.count("/") > 1 or source.path.endswith(FORMATS):
        raise DataError(f"{source.title}: {source.path} does not exist")
    return True


def _hub_rows(source: Source, meter: ReadMeter) -> Iterator[Row]:
    """Read a source on the Hub. With `streaming` no more is downloaded than is read; offline, cached rows are read instead."""
    builder = _hub_builder(source)
    if source.streaming and not _is_cached(builder):
        return _streamed_rows(source, builder)
    with _hub_errors(source):
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=source.split or _only_split(source, list(builder.info.splits)))
    return read_dataset(dataset, meter, dataset.num_rows)


def _streamed_rows(source: Source, builder: "DatasetBuilder") -> Iterator[Row]:
    if source.limit is None:
        raise RecipeError(f"{source.title}: `streaming` needs `limit`, the number of rows to read")
    with _hub_errors(source):
        split = source.split or _only_split(source, list(builder.as_streaming_dataset()))
        yield from read_dataset(builder.as_streaming_dataset(split=split).take(source.limit))


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
            f"{source.title}: cannot check offline whether the cached {source.path} is revision {source.revision}; "
            f"remove `revision`, or set it to the cached one: {builder.hash}"
        )
    return builder


def _is_cached(builder: "DatasetBuilder") -> bool:
    """Return whether a builder reads what is cached, because the Hub cannot be reached or HF_HUB_OFFLINE is set."""
    from datasets.packaged_modules.cache.cache import Cache

    return isinstance(builder, Cache)


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Raise errors of the `datasets` library as errors of ours, in one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise TryAgain(
                f"{source.title}: no disk space left to download {source.path}; free some, set HF_HOME to another disk, or set "
                "streaming: true with a limit"
            ) from error
        message = " ".join(str(error).split())[:400]
        raise DataError(
            f"{source.title}: {source.path} is not a local file, and loading it from the Hub failed: {message}"
        ) from error


def read_dataset(dataset: "Dataset | IterableDataset", meter: ReadMeter | None = None, count: int | None = None) -> Iterator[Row]:
    """Read a dataset; `count` is its number of rows, where known, for `meter`."""
    # cells of different shapes, which `datasets` stores as text and decodes only row by row
    if "Json(" in repr(dataset.features):
        return flatten(([row] for row in dataset), count, meter)
    tables = dataset.with_format("arrow").iter(batch_size=READ_ROWS)
    return flatten((table.to_pylist() for table in tables), count, meter)


def _only_split(source: Source, splits: Sequence[str]) -> str:
    """Return the split of a source that does not name one; raises DataError when there are several."""
    if len(splits) == 1:
        return splits[0]
    raise DataError(f"{source.title}: {source.path} has {len(splits)} splits; set `split` to one of: {', '.join(splits)}")


def _no_such_split(source: Source, splits: Sequence[str]) -> DataError:
    return DataError(f'{source.title}: no split "{source.split}" in {source.path}; it has: {", ".join(splits)}')


def _local_rows(source: Source, meter: ReadMeter) -> Iterator[RawRow]:
    folder = _saved_dataset(source)
    if folder is not None:
        from datasets import load_from_disk

        dataset = load_from_disk(str(folder))
        return read_dataset(dataset, meter, dataset.num_rows)
    return _file_rows(data_files(source), frozenset(source.number_columns), meter)


def _file_rows(files: Sequence[Path], numbers: frozenset[str], meter: ReadMeter) -> Iterator[RawRow]:
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes) or 1
    for index, file in enumerate(files):
        meter.begin, meter.size = sum(sizes[:index]) / total, sizes[index] / total
        yield from read_file(file, numbers, meter)


def data_files(source: Source) -> list[Path]:
    """Return the local files of a source's split, in the order of their names.

    In a directory the split of a file is its name without suffix and shard number (`train.jsonl`, `test-00000-of-00002.parquet`), or
    the name of a folder that contains it.

    Raises:
        DataError: no such file or split.
        RecipeError: a key that only applies to a Hub dataset or a directory.
    """
    path = Path(source.path).expanduser()
    _refuse_keys(source, "name", "revision")
    if path.is_file():
        _refuse_keys(source, "data_dir", "data_files")
        if not path.name.endswith(FORMATS):
            raise DataError(f"{source.title}: {path} is not a data file; expected one of {', '.join(FORMATS)}")
        if source.split not in (None, "train", _split_names(path, path.parent)[0]):
            raise DataError(f'{source.title}: {path} is a single file without a split "{source.split}"; remove `split`')
        return [path]
    folder = path / (source.data_dir or "")
    files = _files_in(folder, source)
    splits = sorted({_split_names(file, folder)[0] for file in files})
    if source.split is None:
        if source.data_files is None:
            _only_split(source, splits)
        return files
    chosen = [file for file in files if source.split in _split_names(file, folder)]
    if not chosen:
        raise _no_such_split(source, splits)
    return chosen


def _files_in(folder: Path, source: Source) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{source.title}: {folder} does not exist")
    patterns = _patterns(source)
    try:
        files = files_below(folder, patterns or ["**/*"])
    except OSError as error:  # such as in /proc, whose files come and go
        raise DataError(f"{source.title}: {folder} cannot be listed: {error.strerror}: {error.filename}") from error
    if not files:
        raise DataError(f"{source.title}: no data file in {folder}; expected {', '.join(patterns or FORMATS)}")
    return files


def files_below(folder: Path, patterns: Sequence[str] = ("**/*",)) -> list[Path]:
    """Return the data files of a folder that match one of the patterns, without hidden ones and metadata."""
    return sorted(
        file
        for file in {file for pattern in patterns for file in folder.glob(pattern)}
        if file.name.endswith(FORMATS)
        and file.name not in METADATA
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _patterns(source: Source) -> list[str]:
    return [source.data_files] if isinstance(source.data_files, str) else list(source.data_files or ())


def _split_names(file: Path, folder: Path) -> list[str]:
    """Return the split of a file, then its other names: its stem and the folders that contain it."""
    suffix = next(suffix for suffix in sorted(FORMATS, key=len, reverse=True) if file.name.endswith(suffix))
    stem = SHARD.sub("", file.name.removesuffix(suffix))
    folders = list(reversed(file.relative_to(folder).parts[:-1]))
    return [stem, *folders] if stem not in ("", "part", "data", "shard") or not folders else [*folders, stem]


def _refuse_keys(source: Source, *keys: str) -> None:
    if source.streaming:
        raise RecipeError(f"{source.title}: `streaming` only applies to Hub datasets, and {source.path} is local; remove it")
    for key in keys:
        if getattr(source, key) is not None:
            raise RecipeError(f"{source.title}: `{key}` does not apply to the local path {source.path}; remove it")


def _saved_dataset(source: Source) -> Path | None:
    """Return the folder of one split that `datasets.save_to_disk` wrote, if the path is such a directory."""
    folder = Path(source.path).expanduser() / (source.data_dir or "")
    if (folder / SAVED_SPLITS).is_file():
        names = json.loads((folder / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
        split = source.split or _only_split(source, names)
        folder = folder / split
    elif (folder / SAVED_DATASET).is_file():
        names = [json.loads((folder / SAVED_DATASET).read_text(encoding="utf-8")).get("_split") or "train"]
        split = source.split or names[0]
    else:
        return None
    if split not in names:
        raise _no_such_split(source, names)
    _refuse_keys(source, "name", "revision", "data_files")
    return folder


PIPELINE_VERSION = 4
"""Increase it with every change of this folder that changes tokens, row ids or the stored columns: it is part of the cache key."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


def fingerprint(source: Source) -> str:
    """Return a hash of the content: sha256 over the sha256 of each local file, or over the resolved commit of a Hub dataset.

    Raises:
        DataError: see `read_rows`; or a file cannot be read.
    """
    if is_on_hub(source):
        builder = _hub_builder(source)
        parts = [source.path, builder.config_id, builder.hash, source.split]
    else:
        folder = _saved_dataset(source)
        saved = sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".json")) if folder else None
        try:
            parts = [sha256_file(file) for file in saved or data_files(source)]
        except OSError as error:
            raise DataError(f"{source.title}: {error.filename} cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """Return the settings and the content hash of a source: the bytes of its files and of `prepare` count, their location does not."""
    settings = source.model_dump(mode="json", exclude={"path", "tag", "streaming"})
    code = None if source.prepare is None else hashlib.sha256(hook_of(source).code).hexdigest()
    return settings | {"title": source.title, "content": fingerprint(source), "code": code}


def digest(parts: dict[str, Any]) -> str:
    """Return the sha256 of JSON values and of the versions of all packages that turn rows into tokens."""
    versions = {name: version(name) for name in PACKAGES} | {"pipeline": PIPELINE_VERSION}
    return hashlib.sha256(json.dumps({"versions": versions, **parts}, sort_keys=True).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
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
