"""Rows of a source, from the Hub or from local files, and the fingerprint of their content."""

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets import load_from_disk

from rmtrain.data.raw.hub_rows import hub_builder, hub_rows, only_split, patterns
from rmtrain.data.raw.json_reader import RawRow, read_json
from rmtrain.data.raw.meter import Meter
from rmtrain.data.raw.table_reader import read_csv, read_dataset, read_parquet
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import Source

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
