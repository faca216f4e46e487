"""Folders that `datasets.save_to_disk` wrote: their splits, and whether their files agree, before the library reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa

from rmtrain.errors import DataError, missing
from rmtrain.files import read_json

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
LIBRARY_ERRORS = (
    *(ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, NotImplementedError),
    pa.ArrowException,
)
"""Errors that the `datasets` library raises for a folder that contradicts itself."""


def saved_splits(folder: Path) -> dict[str, Path]:
    """Return the folder of each split of a saved dataset; empty for another folder. Raises DataError where the list is damaged."""
    if (folder / SPLITS).is_file():
        names = _stored(folder / SPLITS).get("splits")
        if not names or not _are_names(names):
            raise DataError(f"{folder / SPLITS}: splits: expected a list of folders next to it; save the dataset again")
        return {name: folder / name for name in names}
    if (folder / STATE).is_file():
        return {str(_stored(folder / STATE).get("_split") or "train"): folder}
    return {}


@contextmanager
def saved_errors(folder: Path) -> Iterator[None]:
    """Raise the errors of the `datasets` library for a damaged folder as DataError."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        message = " ".join(str(error).split())
        raise DataError(f"{folder}: damaged ({type(error).__name__}: {message}); save the dataset again") from error


def check_saved(folder: Path) -> None:
    """Raise DataError where a folder that `datasets.save_to_disk` wrote lacks files, or names others than its own, which no key covers."""
    _stored(folder / INFO)
    state = _stored(folder / STATE)
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else None
    if not _are_names(names):
        raise DataError(f"{folder / STATE}: _data_files: expected a list of files next to it; save the dataset again")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{missing(folder / name)}, and {STATE} names it; save the dataset again")


def _are_names(values: Any) -> TypeGuard[list[str]]:
    """Return whether a value is a list of names of files or folders, without paths to others."""
    return isinstance(values, list) and all(isinstance(value, str) and Path(value).name == value != "" for value in values)


def _stored(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, dict)
    except FileNotFoundError as error:
        raise DataError(f"{missing(file)}; save the dataset again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}; save the dataset again") from error
