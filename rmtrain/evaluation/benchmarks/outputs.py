"""Scores made elsewhere: a file of ours, or one that the benchmark's own script wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.benchmark import Benchmark, Scores
from rmtrain.evaluation.benchmarks.reading import MAX_PROBLEMS, with_unique
from rmtrain.evaluation.benchmarks.rewardbench import SECTION_OF, scores_of
from rmtrain.evaluation.scores import ScoredComparison, read_scores

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
        rows = _rows(file)
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


def _rows(file: Path) -> list[Mapping[str, Any]] | Mapping[str, Any]:
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
