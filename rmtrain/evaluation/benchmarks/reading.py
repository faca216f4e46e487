"""Rows of a benchmark, from the Hub or from the files that it is published as."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rmtrain.data.raw.json_reader import Line, Malformed, Row, parse
from rmtrain.data.raw.sources import FORMATS, METADATA, read_rows
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.benchmark import Benchmark, Item
from rmtrain.recipe.schema import PairSource

MAX_PROBLEMS = 10
T = TypeVar("T")


def read_items(benchmark: Benchmark, data_dir: Path | None) -> list[Item]:
    """All rows of a benchmark. None is left out: a row that cannot be read is an error.

    Args:
        benchmark: which.
        data_dir: folder of its official files, or one with a folder of the benchmark's name in it, or one file; None: from the Hub.

    Raises:
        DataError: no such files, or rows that are not the benchmark's; one line for each, the first ten.
    """
    problems: list[str] = []
    items: list[Item] = []
    for file, index, row in _rows(benchmark, data_dir):
        where = f"{benchmark.name}: {file.name if file else 'row'}:{index}"
        try:
            if isinstance(row, Malformed):
                raise ValueError(row.detail)
            items.append(benchmark.item(row, file, index))
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)
    if not items:
        raise DataError(f"{benchmark.name}: {data_dir or (benchmark.hub or ('',))[0]} has no rows")
    return with_unique(items, lambda item: (item.source, item.id), lambda item, row_id: replace(item, id=row_id))


def with_unique(rows: list[T], key: Callable[[T], tuple[str, str]], renamed: Callable[[T, str], T]) -> list[T]:
    """The same rows, of which those that repeat the id of an earlier one of their subset are numbered: `7`, `7#2`, `7#3`."""
    seen: Counter[tuple[str, str]] = Counter()
    unique = []
    for row in rows:
        seen[key(row)] += 1
        count = seen[key(row)]
        unique.append(row if count == 1 else renamed(row, f"{key(row)[1]}#{count}"))
    return unique


def _rows(benchmark: Benchmark, data_dir: Path | None) -> Iterator[tuple[Path | None, int, Row | Malformed]]:
    if data_dir is None:
        if benchmark.hub is None:
            raise DataError(
                f"{benchmark.name}: it is not on the Hub in a form that can be read; give --data-dir {benchmark.published}"
            )
        dataset, split = benchmark.hub
        source = PairSource(path=dataset, split=split, tag=benchmark.name)
        yield from ((None, index, _parsed(row)) for index, row in read_rows(source))
        return
    for file in find_files(benchmark, data_dir):
        yield from ((file, index, _parsed(row)) for index, row in read_rows(PairSource(path=str(file), tag=benchmark.name)))


def _parsed(row: Row | Line | Malformed) -> Row | Malformed:
    return parse(row) if isinstance(row, Line) else row


def find_files(benchmark: Benchmark, data_dir: Path) -> list[Path]:
    """The files of a benchmark in a folder; raises DataError where there are none."""
    path = data_dir.expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{benchmark.name}: {data_dir} is not there; expected {benchmark.published}")
    own = path / benchmark.name
    folder = own if own.is_dir() else path
    found = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if _holds_rows(file.relative_to(folder), file)]
    wanted = [folder / file for file in benchmark.files(found)]
    if not wanted:
        raise DataError(f"{benchmark.name}: no file of it in {folder}; expected {benchmark.published}")
    return wanted


def _holds_rows(relative: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return file.is_file() and not hidden and file.name.endswith(FORMATS) and file.name not in METADATA
