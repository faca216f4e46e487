"""Files of benchmarks as they are published: the rows to score, scores that were made elsewhere, and the cells of both."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rmtrain.data.checks.benchmark_prompts import PromptSource
from rmtrain.data.comparison import Message, Turns
from rmtrain.data.rows.dataset import files_below, read_rows
from rmtrain.data.rows.readers import Malformed, RawRow, has_lone_surrogate, open_bytes, parse
from rmtrain.errors import DataError, missing
from rmtrain.evaluation.benchmarks.base import Benchmark, Item, Row, Scores
from rmtrain.evaluation.scores_file import ScoredComparison, checked_number, convert_rows, prompt_of, read_scores
from rmtrain.files import expanded
from rmtrain.recipe.schema import PairSource

OURS = {"id", "source", "rewards"}
"""Keys that every line of a `scores.jsonl` has."""
PROMPT_COLUMNS = ("prompt", "question", "input", "conversation_input")
"""Names that benchmarks have for the prompt."""
MAX_BYTES = 128 * 2**20
T = TypeVar("T")
KINDS: Mapping[type, str] = {str: "text", list: "a list", int: "a whole number"}
Unique = TypeVar("Unique", Item, ScoredComparison)


def read_items(benchmark: Benchmark, data_dir: Path | None) -> list[Item]:
    """Read all rows of a benchmark. None is left out: raises DataError where one cannot be read, or where there are no files.

    `data_dir` is a folder of its official files, or one with a folder of the benchmark's name in it, or one file; None: from the Hub.
    """

    def item(raw: RawRow, file: Path, index: int) -> Item | None:
        row = parse(raw)
        if isinstance(row, Malformed):
            raise ValueError(row.detail)
        return benchmark.item(row, file, index)

    sources = sources_of(benchmark, data_dir)
    rows = (
        (f"{benchmark.name}: {file.name if data_dir else 'row'}:{index}: ", (row, file, index))
        for source in sources
        for file in [Path(source.path, source.name or "")]
        for index, row in read_rows(source)
    )
    items = [item for item in convert_rows(item, rows) if item is not None]
    if not items:
        raise DataError(f"{benchmark.name}: {data_dir or sources[0].path} has no rows")
    return with_unique_ids(items)


def sources_of(benchmark: Benchmark, data_dir: Path | None) -> list[PairSource]:
    """Return the files or the datasets of a benchmark, see `read_items`; raises DataError where there are none."""
    if data_dir is not None:
        return [PairSource(path=str(file), tag=benchmark.name) for file in find_files(benchmark, data_dir)]
    if not benchmark.hub:
        option = "pass --data-dir, or set `path` in a recipe"
        raise DataError(f"{benchmark.name}: the Hub has it in no readable form; {option}: {benchmark.published}")
    return [PairSource(path=path, split=split, name=name, tag=benchmark.name) for path, split, name in benchmark.hub]


def prompt_source(benchmark: Benchmark, data_dir: Path | None) -> PromptSource:
    """Return a benchmark as one whose prompts must not be trained on; raises DataError as `sources_of`."""

    def prompts(raw: RawRow, source: PairSource, index: int) -> tuple[str, Sequence[Turns]]:
        row = parse(raw)
        if isinstance(row, Malformed):
            raise ValueError(row.detail)
        item = benchmark.item(row, Path(source.path, source.name or ""), index)
        return ("", ()) if item is None else (f"{benchmark.name}: {item.source}/{item.id}", (item.prompt,))

    try:
        return PromptSource(benchmark.name, tuple(sources_of(benchmark, data_dir)), prompts)
    except DataError as error:
        raise DataError(*(f"data.benchmarks: {problem}" for problem in error.problems)) from error


def find_files(benchmark: Benchmark, data_dir: Path) -> list[Path]:
    """Find the files of a benchmark in a folder; raises DataError where there are none."""
    path = expanded(data_dir)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{benchmark.name}: {missing(data_dir)}; expected {benchmark.published}")
    own = path / benchmark.name
    folder = own if own.is_dir() else path
    files = [folder / file for file in benchmark.files([file.relative_to(folder) for file in files_below(folder)])]
    if not files:
        raise DataError(f"{benchmark.name}: none of its files in {folder}; expected {benchmark.published}")
    return files


def read_output(benchmark: Benchmark, path: Path) -> list[ScoredComparison] | Scores:
    """Read the scored rows of a file or of all files of a folder; or accuracies by subset, where the benchmark's results have these.

    A file is JSON Lines, a JSON array of rows, or a JSON object of columns; its keys show whether rmtrain or the benchmark's own script
    wrote it. Raises DataError for one that is none of these, or has rows that are not the benchmark's.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.json*") if file.is_file() and not file.name.endswith(".settings.json"))
    if not files:
        raise DataError(f"{path}: no file of scores")
    scored: list[ScoredComparison] = []
    shares: dict[str, float] = {}
    for file in files:
        rows = _read_json(file)
        if isinstance(rows, Mapping):
            of_file = benchmark.accuracies(file, rows)
            if repeated := shares.keys() & of_file.keys():
                raise DataError(f"{file}: {min(repeated)} is in another file as well; pass the results of one model")
            shares |= of_file
            if of_file:
                continue
            rows = _from_columns(file, rows)
        if set(rows[0]) >= OURS:
            scored += read_scores(file)
        else:
            numbered = [(f"{file}: row {index}: ", (row, file, index)) for index, row in enumerate(rows)]
            with_prompts = zip(convert_rows(benchmark.output, numbered), rows, strict=True)
            scored += [
                replace(of_row, prompt=prompt_of(row, PROMPT_COLUMNS)) for of_row, row in with_prompts if of_row is not None
            ]
    if shares and scored:
        raise DataError(f"{path}: has scores of rows and accuracies of subsets; pass one of them")
    return benchmark.scores_of(shares) if shares else with_unique_ids(scored)


def with_unique_ids(rows: Sequence[Unique]) -> list[Unique]:
    """Number the rows that repeat the id of an earlier one of their subset: `7`, `7#2`, `7#3`."""
    counts: Counter[tuple[str, str]] = Counter()
    unique = []
    for row in rows:
        counts[row.source, row.id] += 1
        count = counts[row.source, row.id]
        unique.append(row if count == 1 else replace(row, id=f"{row.id}#{count}"))
    return unique


def _read_json(file: Path) -> Sequence[Row] | Row:
    """Return the rows of a file, or the one object of columns that it is."""
    values = _json_values(file)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    elif len(values) == 1 and isinstance(values[0], dict) and file.suffix == ".json" and not set(values[0]) >= OURS:
        columns: Row = values[0]
        return columns
    if not values or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{file}: expected a JSON object a line, an array of objects, or an object of columns")
    return values


def _json_values(file: Path) -> list[Any]:
    """Return the values of a file, one after the other, on lines or not."""
    with open_bytes(file) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{file}: expected at most {MAX_BYTES:,} bytes of scores; leave out the texts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}") from error
    values: list[Any] = []
    decoder, position, end = json.JSONDecoder(), 0, len(text.rstrip())
    while position < end or not values:
        if text[position : position + 1].isspace():
            position += 1
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{file}:{line}: not JSON: {error}") from error
        values.append(value)
    if has_lone_surrogate(text, values):
        raise DataError(f"{file}: lone surrogate (half of a UTF-16 pair); replace it by the character that is meant")
    return values


def _from_columns(file: Path, columns: Row) -> Sequence[Row]:
    """Return the rows of an object of columns, without keys such as the model's name that are not lists."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(f"{file}: expected scores; its keys are {', '.join(list(columns)[:8]) or 'none'}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def accuracy(file: Path, subset: str, value: Any) -> float:
    """Return the accuracy of a subset in a file of results; raises DataError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{file}: {subset}: expected an accuracy in [0, 1], got {value!r:.40}")
    return float(value)


def matching(found: Sequence[Path], words: Sequence[str], parts: int = 1) -> list[Path]:
    """Return the files with one of the words, case ignored, in the last `parts` parts of their path; 0: in all."""
    return [file for file in found if first_in(words, file, parts) is not None]


def first_in(words: Sequence[str], file: Path, parts: int = 1) -> str | None:
    """Return the first of the words, case ignored, that is in the last `parts` parts of a path; None where none is."""
    path = "/".join(file.parts[-parts:]).lower()
    return next((word for word in words if word.lower() in path), None)


def cell(row: Row, column: str, kind: type[T]) -> T:
    """Return a cell of a row; raises ValueError where it is missing or of another kind."""
    if column not in row:
        raise ValueError(f"no {column}; the row has {', '.join(map(str, row)) or 'nothing'}")
    value = row[column]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{column}: expected {KINDS.get(kind, kind.__name__)}, got {value!r:.60}")
    return value


def texts(row: Row, column: str) -> list[str]:
    """Return a list of texts of a row; raises ValueError where it is something else, or empty."""
    values = cell(row, column, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{column}: expected a list of texts, got {values!r:.60}")
    return values


def number(value: Any, column: str) -> float:
    """Return a reward; some models write it as a list of one. Raises ValueError where it is not a number."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{column}: expected a number, got {value!r:.60}")
    return checked_number(value)


def user(text: str) -> tuple[Message, ...]:
    """Return a prompt of one message."""
    return ({"role": "user", "content": text},)
