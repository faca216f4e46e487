"""CSV, Parquet and Arrow to rows."""

import csv
import gzip
from collections.abc import Iterable, Iterator, Set
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from rmtrain.data.raw.json_reader import Malformed, Row, open_bytes
from rmtrain.data.raw.meter import Meter
from rmtrain.errors import DataError

READ_ROWS = 1000
MAX_FIELD_CHARACTERS = 16 * 2**20


def read_csv(path: Path, numbers: Set[str], meter: Meter | None = None) -> Iterator[Row | Malformed]:
    """Rows of a comma-separated file with a header, `.gz` or not. Every cell is text.

    Args:
        path: the file, in UTF-8; a quoted cell may span lines.
        numbers: columns whose cells are numbers; an empty one is None, one that is no number stays text for the caller to refuse.
        meter: told how much of the file is read.

    Raises:
        DataError: quoting that cannot be followed, a repeated column name, invalid UTF-8.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with open_bytes(path, meter) as opened, TextIOWrapper(opened, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) != len(columns):
                raise DataError(f"{path}:1: a column name is there twice: {', '.join(columns)}")
            for cells in filter(None, reader):
                if len(cells) == len(columns):
                    yield {name: _number(cell) if name in numbers else cell for name, cell in zip(columns, cells, strict=True)}
                else:
                    yield Malformed(f"{path.name}:{reader.line_num}: {len(cells)} cells, but the header has {len(columns)}")
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{path}:{reader.line_num + 1}: not CSV in UTF-8: {error}") from error


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def read_parquet(path: Path, meter: Meter | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, of which `meter` is told; raises DataError when it is none."""
    try:
        with pq.ParquetFile(path) as file:
            yield from _counted(map(pa.RecordBatch.to_pylist, file.iter_batches(READ_ROWS)), file.metadata.num_rows, meter)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not Parquet: {' '.join(str(error).split())}") from error


def read_dataset(dataset: Dataset | IterableDataset, meter: Meter | None = None, number: int | None = None) -> Iterator[Row]:
    """Rows of a dataset; with their `number`, `meter` is told how many of them are read."""
    if "Json(" in repr(dataset.features):  # cells of different shapes, which `datasets` keeps as text and only decodes row by row
        yield from _counted(([row] for row in dataset), number, meter)
        return
    tables = dataset.with_format("arrow").iter(batch_size=READ_ROWS)
    yield from _counted((table.to_pylist() for table in tables), number, meter)


def _counted(pages: Iterable[list[Row]], number: int | None, meter: Meter | None) -> Iterator[Row]:
    done = 0
    if meter is not None and number is not None:
        meter.enter(lambda: done / number if number else 1.0)
    for page in pages:
        yield from map(without_null_keys, page)
        done += len(page)


def without_null_keys(row: Row) -> Row:
    """The row without the None keys that Arrow adds inside structs when it gives all of them the same keys. Columns stay."""
    return {name: _without_null_keys(cell) for name, cell in row.items()}


def _without_null_keys(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {key: _without_null_keys(value) for key, value in cell.items() if value is not None}
    if isinstance(cell, list):
        return [_without_null_keys(value) for value in cell] if cell and isinstance(cell[0], dict | list) else cell
    return cell
