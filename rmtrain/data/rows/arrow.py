"""Rows of Arrow data: of Parquet files, and of datasets. Cells that Python cannot represent cost only the rows that need them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rmtrain.data.rows.readers import MAX_LINE_BYTES, ReadMeter, Row
from rmtrain.errors import DataError

READ_ROWS = 1000


def read_parquet(path: Path, meter: ReadMeter | None = None) -> Iterator[Row]:
    """Read a Parquet file; raises DataError when it is damaged or not Parquet."""
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise DataError(f"{path}: repeated column name: {', '.join(names)}")
        yield from flatten(arrow_rows(file.iter_batches(READ_ROWS), str(path)), file.metadata.num_rows, meter)


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except ARROW_ERRORS as error:
        raise DataError(f"{path}: invalid Parquet: {' '.join(str(error).split())}") from error


ARROW_ERRORS = (pa.ArrowException, OSError)
"""Errors of Arrow for damaged data: that of the decoders is a plain OSError."""


def arrow_rows(pages: Iterable[pa.RecordBatch | pa.Table], place: str) -> Iterator[list[Row]]:
    """Yield the rows of each page; a cell that Python cannot represent becomes `Unreadable`. Raises DataError for damaged data."""
    read = 0
    try:
        for page in pages:
            page.validate()
            yield _page_rows(page)
            read += len(page)
    except ARROW_ERRORS as error:
        raise DataError(f"{place}: damaged after row {read}: {' '.join(str(error).split())}; write the file again") from error


def _page_rows(page: pa.RecordBatch | pa.Table) -> list[Row]:
    if page.nbytes <= MAX_LINE_BYTES:
        with suppress(*CELL_ERRORS):
            rows: list[Row] = page.to_pylist()
            return rows
    columns = [[_cell(value) for value in column] for column in page.columns]
    return [dict(zip(page.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


CELL_ERRORS = (ArithmeticError, LookupError, ValueError, RecursionError, pa.ArrowException)
"""Errors of the conversion to Python: of text that is not UTF-8, of dates out of range, and of unknown time zones."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell that is too long, or whose value Python cannot represent: only a row that needs it is refused."""

    problem: str

    def __str__(self) -> str:
        return self.problem


def _cell(value: pa.Scalar) -> Any:
    if isinstance(value, pa.BinaryScalar) and value.is_valid and value.as_buffer().size > MAX_LINE_BYTES:
        return Unreadable(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return value.as_py()
    except CELL_ERRORS:
        return Unreadable("text that is not UTF-8" if pa.types.is_string(value.type) else f"a {value.type} out of range")


def class_names(path: Path) -> dict[str, list[str]]:
    """Return the names of the values of each ClassLabel column of a Parquet file that the `datasets` library wrote."""
    with _open_parquet(path) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(stored)["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # another library wrote it
    classes = {column: feature for column, feature in features if isinstance(feature, dict)}
    return {
        column: list(map(str, feature["names"])) for column, feature in classes.items() if isinstance(feature.get("names"), list)
    }


def flatten(pages: Iterable[list[Row]], count: int | None, meter: ReadMeter | None) -> Iterator[Row]:
    """Yield the rows of pages that Arrow made, without the keys that it added; `count` is the number of all rows, for `meter`."""
    done = 0
    if meter is not None and count is not None:
        meter.position = lambda: done / count if count else 1.0
    for page in pages:
        for row in page:
            yield {name: _without_null_keys(cell) for name, cell in row.items()}
        done += len(page)


def _without_null_keys(cell: Any) -> Any:
    """Remove the None keys that Arrow adds to structs, since all structs of a column have the same keys."""
    if isinstance(cell, dict):
        return {key: _without_null_keys(value) for key, value in cell.items() if value is not None}
    if isinstance(cell, list) and cell and isinstance(cell[0], dict | list):
        return [_without_null_keys(value) for value in cell]
    return cell
