"""Scores made elsewhere: a file of ours, or one that the benchmark's own script wrote."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rmtrain.data.rows.dataset import FORMATS, METADATA, read_rows
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.base import Benchmark, Item, Scores
from rmtrain.evaluation.benchmarks.rewardbench import SECTION_OF, scores_of
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores
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


OURS = {"id", "source", "rewards"}


def read_output(benchmark: Benchmark, path: Path) -> list[ScoredComparison] | Scores:
    """The scored rows of a file or of all files of a folder; of RewardBench also the scores of accuracies by subset.

    A file is JSON Lines, a JSON array of rows, or a JSON object of columns. What it is shows in its keys.

    Raises:
        DataError: it is none of these, or rows are not the benchmark's; one line for each, the first ten.
    """
    files = (
        sorted(file for file in path.rglob("*.json*") if not file.name.endswith(".settings.json")) if path.is_dir() else [path]
    )
    if not files:
        raise DataError(f"{path}: no file of scores")
    scored: list[ScoredComparison] = []
    for file in files:
        rows = _output_rows(file)
        if isinstance(rows, Mapping):
            if benchmark.name == "rewardbench" and set(SECTION_OF) & set(rows) and len(files) == 1:
                return scores_of({subset: _accuracy(file, subset, rows[subset]) for subset in SECTION_OF if subset in rows})
            rows = _from_columns(file, rows)
        if set(rows[0]) >= OURS:
            scored += read_scores(file)
        else:
            scored += _official(benchmark, file, rows)
    return with_unique(scored, lambda row: (row.source, row.id), lambda row, row_id: replace(row, id=row_id))


def _official(benchmark: Benchmark, file: Path, rows: Sequence[Mapping[str, Any]]) -> list[ScoredComparison]:
    if benchmark.output is None:
        raise DataError(
            f'{file}: expected lines of {{"id", "source", "rewards"}}; {benchmark.title} has no format of scores of its own'
        )
    scored, problems = [], []
    for index, row in enumerate(rows):
        try:
            scored.append(benchmark.output(row, file, index))
        except ValueError as problem:
            problems.append(f"{file}: row {index}: {problem}")
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)
    return scored


def _output_rows(file: Path) -> list[Mapping[str, Any]] | Mapping[str, Any]:
    """The rows of a file, or the object that is all of it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}") from error
    values = _values(file, text)
    if isinstance(values, dict):
        return values
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{file}: expected a JSON object a line, an array of objects, or an object of columns")
    return values


def _values(file: Path, text: str) -> Any:
    """What a `.json` file holds as a whole, and else the values of its lines."""
    try:
        if file.suffix == ".json":
            whole = json.loads(text)
            return [whole] if isinstance(whole, dict) and set(whole) >= OURS else whole
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    return [_line(file, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{number}:{error.colno}: not JSON: {error.msg}") from error


def _from_columns(file: Path, columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of columns; what is no list, such as the model's name, belongs to none."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(f"{file}: expected scores; its keys are {', '.join(list(columns)[:8]) or 'none'}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _accuracy(file: Path, subset: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{file}: {subset}: expected an accuracy in [0, 1], got {value!r:.40}")
    return float(value)
