"""What makes tokenized data the same data: the parts of a cache key."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.cache.cache import Cache
from transformers import PreTrainedTokenizerBase

from rmtrain.data.rows.prepare_hook import hook_of
from rmtrain.data.rows.readers import Meter, RawRow, Row, read_csv, read_dataset, read_json, read_parquet
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


FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")
METADATA = ("dataset_infos.json", "dataset_info.json")
SAVED_SPLITS, SAVED_DATASET = "dataset_dict.json", "state.json"  # what datasets.save_to_disk writes
HASH_BYTES = 2**20


def read_rows(source: Source, meter: Meter | None = None) -> Iterator[tuple[int, RawRow]]:
    """Rows of a source with their numbers, counted from 0, streamed.

    A relative path is relative to the current directory. A path that is not there is taken as a Hub id where it looks like one.

    Args:
        source: where the rows are.
        meter: told how far the reading is.

    Raises:
        DataError: a dataset, file or split that is not there or cannot be read.
        RecipeError: a key that does not go with a local path.
    """
    meter = meter or Meter()
    rows = hub_rows(source, meter) if is_on_hub(source) else _local_rows(source, meter)
    return enumerate(islice(rows, source.limit))


def fingerprint(source: Source) -> str:
    """A hash of the source's content: sha256 over the bytes of local files, or the resolved version of a Hub dataset.

    Raises:
        DataError: as `read_rows` says, or a file cannot be read.
    """
    digest = hashlib.sha256()
    if is_on_hub(source):
        builder = hub_builder(source)
        digest.update(json.dumps([source.path, builder.config_id, builder.hash, source.split]).encode())
        return digest.hexdigest()
    folder = _saved_dataset(source)
    for file in _saved_files(folder) if folder else data_files(source):
        digest.update(f"{file.stat().st_size}:".encode())
        try:
            with file.open("rb") as stream:
                while block := stream.read(HASH_BYTES):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{source.title}: {file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def is_on_hub(source: Source) -> bool:
    """Whether the path is a Hub id rather than a file or directory.

    Raises:
        DataError: nothing is at the path, and it cannot be a Hub id.
    """
    path = Path(source.path).expanduser()
    if path.exists():
        return False
    if source.path[0] in "./~" or source.path.count("/") > 1 or source.path.endswith(FORMATS):
        raise DataError(f"{source.title}: {source.path} is not there")
    return True


def _local_rows(source: Source, meter: Meter) -> Iterator[RawRow]:
    folder = _saved_dataset(source)
    if folder is not None:
        dataset = load_from_disk(str(folder))
        return meter.through([read_dataset(dataset, meter, dataset.num_rows)], [1])
    files, numbers = data_files(source), frozenset(source.number_columns)
    return meter.through((_read_file(file, numbers, meter) for file in files), [file.stat().st_size for file in files])


def _read_file(file: Path, numbers: frozenset[str], meter: Meter) -> Iterator[RawRow]:
    if file.name.endswith(".parquet"):
        return read_parquet(file, meter)
    if file.name.endswith((".csv", ".csv.gz")):
        return read_csv(file, numbers, meter)
    return read_json(file, meter)


def data_files(source: Source) -> list[Path]:
    """The local files of a source's split, in the order of their names.

    In a directory the split of a file is its name without suffix and shard number (`train.jsonl`, `test-00000-of-00002.parquet`), or
    the name of a folder it lies in.

    Raises:
        DataError: no such file or split.
        RecipeError: a key that only a Hub dataset or a directory has.
    """
    path = Path(source.path).expanduser()
    _refuse_keys(source, "name", "revision")
    if path.is_file():
        _refuse_keys(source, "data_dir", "data_files")
        if not path.name.endswith(FORMATS):
            raise DataError(f"{source.title}: {path} is no data file; expected one of {', '.join(FORMATS)}")
        if source.split not in (None, "train", _split_names(path, path.parent)[0]):
            raise DataError(f'{source.title}: {path} is one file, it has no split "{source.split}"; leave `split` out')
        return [path]
    folder = path / (source.data_dir or "")
    files = _files_in(folder, source)
    splits = {name for file in files for name in _split_names(file, folder)[:1]}
    if source.split is None:
        if source.data_files is None:
            only_split(source, sorted(splits))
        return files
    chosen = [file for file in files if source.split in _split_names(file, folder)]
    if not chosen:
        raise _no_split(source, sorted(splits))
    return chosen


def _refuse_keys(source: Source, *keys: str) -> None:
    if source.streaming:
        raise RecipeError(
            f"{source.title}: `streaming` is for Hub datasets; the local {source.path} is streamed anyway, so leave it out"
        )
    given = [key for key in keys if getattr(source, key) is not None]
    if given:
        raise RecipeError(f"{source.title}: `{given[0]}` does not go with the local path {source.path}; leave it out")


def _files_in(folder: Path, source: Source) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{source.title}: {folder} is not there")
    named = patterns(source)
    try:
        found = {file for pattern in named or ["**/*"] for file in folder.glob(pattern)}
        files = sorted(file for file in found if _holds_rows(file.relative_to(folder)) and file.is_file())
    except OSError as error:  # such as in /proc, whose files come and go
        raise DataError(f"{source.title}: {folder} cannot be listed: {error.strerror}: {error.filename}") from error
    if not files:
        wanted = ", ".join(named) or ", ".join(FORMATS)
        raise DataError(f"{source.title}: no data file in {folder}; expected {wanted}")
    return files


def _holds_rows(file: Path) -> bool:
    return file.name.endswith(FORMATS) and file.name not in METADATA and not any(part.startswith(".") for part in file.parts)


def _split_names(file: Path, folder: Path) -> list[str]:
    """The split a file belongs to, then the other names it goes by: its stem and the folders it lies in."""
    relative = file.relative_to(folder)
    suffix = next(suffix for suffix in sorted(FORMATS, key=len, reverse=True) if file.name.endswith(suffix))
    stem = SHARD.sub("", file.name.removesuffix(suffix))
    folders = list(reversed(relative.parts[:-1]))
    return [stem, *folders] if stem not in ("", "part", "data", "shard") or not folders else [*folders, stem]


def _no_split(source: Source, splits: list[str]) -> DataError:
    return DataError(f'{source.title}: no split "{source.split}" in {source.path}; it has: {", ".join(splits)}')


def _saved_dataset(source: Source) -> Path | None:
    """The folder of one split that `datasets.save_to_disk` wrote, if the path is such a directory."""
    folder = Path(source.path).expanduser() / (source.data_dir or "")
    splits, state = folder / SAVED_SPLITS, folder / SAVED_DATASET
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        split = source.split or only_split(source, names)
        folder = folder / split
    elif state.is_file():
        split = json.loads(state.read_text(encoding="utf-8")).get("_split") or "train"
        names = [split]
    else:
        return None
    if (source.split or split) not in names:
        raise _no_split(source, names)
    _refuse_keys(source, "name", "revision", "data_files")
    return folder


def _saved_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".json"))


PIPELINE_VERSION = 3
"""Raise it with every change of this folder that changes tokens, row ids or what is stored."""
PACKAGES = ("rmtrain", "transformers", "tokenizers")


def digest(parts: dict[str, Any]) -> str:
    """sha256 of JSON values and of the versions of everything that turns rows into tokens."""
    versions = {name: version(name) for name in PACKAGES} | {"pipeline": PIPELINE_VERSION}
    return hashlib.sha256(json.dumps({"versions": versions, **parts}, sort_keys=True).encode()).hexdigest()


def source_identity(source: Source) -> dict[str, Any]:
    """A source by content and reading: where its file lies does not matter, its bytes and its row ids do, and those of `prepare`."""
    said = source.model_dump(mode="json", exclude={"path", "tag", "streaming"})
    code = None if source.prepare is None else hashlib.sha256(hook_of(source).code).hexdigest()
    return said | {"title": source.title, "content": fingerprint(source), "code": code}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything in a fast tokenizer that shapes tokens: its `tokenizer.json`, special tokens and chat template.

    Padding and truncation do not: every call sets them anew, and they are turned off here.
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
