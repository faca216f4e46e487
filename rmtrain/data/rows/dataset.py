"""A source of the recipe: its raw rows, from local files or the Hub; its `prepare` function; the fingerprints that make up a cache key.

The `datasets` library takes a second to import, in each worker process. It is only imported where a source needs it: files do without.
"""

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.rows.readers import READ_ROWS, RawRow, ReadMeter, Row, flatten, read_file
from rmtrain.errors import DISK_FULL, DataError, RecipeError, TryAgain, missing
from rmtrain.files import sha256_file
from rmtrain.recipe.schema import Source
from rmtrain.recipe.sources import Hook

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
METADATA = ("dataset_infos.json", "dataset_info.json")
SAVED_SPLITS, SAVED_DATASET = "dataset_dict.json", "state.json"  # what datasets.save_to_disk writes


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


def is_on_hub(source: Source) -> bool:
    """Return whether the path is a Hub id rather than a file or directory; raises DataError where it can be neither."""
    if Path(source.path).expanduser().exists():
        return False
    if source.path[0] in "./~" or source.path.count("/") > 1 or source.path.endswith(FORMATS):
        raise DataError(f"{source.title}: {missing(source.path)}")
    return True


def _hub_rows(source: Source, meter: ReadMeter) -> Iterator[Row]:
    """Read a source on the Hub. With `streaming` no more is downloaded than is read; offline, cached rows are read instead."""
    builder = _hub_builder(source)
    with _hub_errors(source):
        if source.streaming and not _is_cached(builder):
            if source.limit is None:
                raise RecipeError(f"{source.title}: `streaming` needs `limit`, the number of rows to read")
            split = source.split or _split_of(source, list(builder.as_streaming_dataset()))
            yield from read_dataset(builder.as_streaming_dataset(split=split).take(source.limit), meter)
        else:
            builder.download_and_prepare()
            split = source.split or _split_of(source, list(builder.info.splits))
            yield from read_dataset(builder.as_dataset(split=split), meter)


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
    from datasets.packaged_modules.cache.cache import Cache

    return isinstance(builder, Cache)  # the Hub cannot be reached, or HF_HUB_OFFLINE is set


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
        raise DataError(f"{source.title}: {missing(source.path)}, and loading it from the Hub failed: {message}") from error


def read_dataset(dataset: "Dataset | IterableDataset", meter: ReadMeter | None = None) -> Iterator[Row]:
    """Read a dataset; a stream, whose number of rows is unknown, leaves `meter` alone."""
    count = getattr(dataset, "num_rows", None)
    # cells of different shapes, which `datasets` stores as text and decodes only row by row
    if "Json(" in repr(dataset.features):
        return flatten(([row] for row in dataset), count, meter)
    tables = dataset.with_format("arrow").iter(batch_size=READ_ROWS)
    return flatten((table.to_pylist() for table in tables), count, meter)


def _split_of(source: Source, splits: Sequence[str]) -> str:
    """Return the split that a source names, or the only one there is; raises DataError where it is missing, or there are several."""
    if source.split is not None:
        if source.split in splits:
            return source.split
        raise DataError(f'{source.title}: no split "{source.split}" in {source.path}; it has: {", ".join(splits)}')
    if len(splits) != 1:
        raise DataError(f"{source.title}: {source.path} has {len(splits)} splits; set `split` to one of: {', '.join(splits)}")
    return splits[0]


def _local_rows(source: Source, meter: ReadMeter) -> Iterator[RawRow]:
    if (folder := _saved_dataset(source)) is not None:
        from datasets import load_from_disk

        yield from read_dataset(load_from_disk(str(folder)), meter)
        return
    files = _data_files(source)
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes) or 1
    for index, file in enumerate(files):
        meter.begin, meter.size = sum(sizes[:index]) / total, sizes[index] / total
        yield from read_file(file, frozenset(source.number_columns), meter)


def _data_files(source: Source) -> list[Path]:
    """Return the local files of a source's split, sorted.

    In a directory the split of a file is its name without suffix and shard number (`train.jsonl`, `test-00000-of-00002.parquet`), or
    the name of a folder that contains it.
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
    if source.split is None and source.data_files is not None:
        return files
    chosen = [file for file in files if source.split in _split_names(file, folder)]
    if not chosen:  # the split is missing, or none is named, so there must be only one
        _split_of(source, sorted({_split_names(file, folder)[0] for file in files}))
    return chosen or files


def _files_in(folder: Path, source: Source) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{source.title}: {missing(folder)}")
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
        folder /= _split_of(source, json.loads((folder / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"])
    elif (folder / SAVED_DATASET).is_file():
        _split_of(source, [json.loads((folder / SAVED_DATASET).read_text(encoding="utf-8")).get("_split") or "train"])
    else:
        return None
    _refuse_keys(source, "name", "revision", "data_files")
    return folder


MESSAGE_CHARACTERS = 200

Number = int | str
"""Number of a row in its source, from 0; rows that were made from row 12 are `12.0`, `12.1`, ..."""


def through_hook(row: Row, number: Number, source: Source) -> Iterator[tuple[Number, Row]]:
    """Yield the rows that the `prepare` function returns for a row: one, several, or none. Its prints go to stderr.

    Raises DataError where it fails or returns anything but a dict, a list of dicts or None, and RecipeError where it does not exist.
    """
    hook = hook_of(source)
    function = load_function(hook.code, hook.function, str(hook.file))
    try:
        with redirect_stdout(sys.stderr):
            result = function(row)
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"{source.title}:{number}: {_at_line(str(hook.file), error, f'{hook.function}: ')}") from error
    if result is None:
        return
    is_list = isinstance(result, list)
    for index, made in enumerate(result if is_list else [result]):
        if not isinstance(made, dict):
            returned = f"{'a list with ' if is_list else ''}{type(made).__name__}"
            expected = "expected a dict, a list of dicts or None"
            raise DataError(f"{source.title}:{number}: {hook.file}: {hook.function}: {expected}, got {returned}")
        yield (f"{number}.{index}" if is_list else number), made


def hook_of(source: Source) -> Hook:
    """Return the hook of a source that has `prepare`; raises RecipeError when its recipe was not loaded from a file."""
    if source.hook is None:
        raise RecipeError(f"{source.title}: prepare: needs a recipe that is a file, next to its code; load it with load_recipe")
    return source.hook


@cache
def load_function(code: bytes, name: str, file: str) -> Callable[[Row], Any]:
    """Return a function from the bytes that were read with the recipe, which changes no search path and writes nothing.

    Raises RecipeError where running the file fails, or it has no such function.
    """
    module = ModuleType(f"prepare_{hashlib.sha256(code).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and pickle look up the module of a class there
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except Exception as error:  # the user's file may raise anything
        raise RecipeError(f"prepare: {_at_line(file, error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"prepare: {file} has no function {name}")
    return function  # type: ignore[no-any-return]


def _at_line(file: str, error: Exception, name: str = "") -> str:
    """Return an error in one line, after the file and the last of its lines in the traceback."""
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f"{file}:{lines[-1]}" if lines else file
    return f"{place}: {name}" + " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_CHARACTERS]


PIPELINE_VERSION = 4
"""Increase it with every change of this folder that changes tokens, row ids or the stored columns: it is part of the cache key."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


def fingerprint(source: Source) -> str:
    """Return a hash of the content: sha256 over the sha256 of each local file, or over the resolved commit of a Hub dataset."""
    if is_on_hub(source):
        builder = _hub_builder(source)
        parts = [source.path, builder.config_id, builder.hash, source.split]
    else:
        folder = _saved_dataset(source)
        saved = sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".json")) if folder else None
        try:
            parts = [sha256_file(file) for file in saved or _data_files(source)]
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
