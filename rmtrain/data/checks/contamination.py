"""Prompts of benchmark files, and the training rows that have them too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Comparison, Message, prompt_hash
from rmtrain.data.rows.dataset import FORMATS, read_rows
from rmtrain.data.rows.messages import BadRow, to_messages
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Messages, PairSource

PROMPT_COLUMNS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "conversation_input",
    "messages",
    "conversations",
    "context",
    "problem",
    "text",
    "input",
)
"""Where benchmarks keep their prompt, the usual names first; the first that a row has is taken."""
HH = Messages(transcript="hh")


@dataclass(frozen=True, slots=True)
class Contaminated:
    """A row that has the prompt of a benchmark: its number, and one of the benchmark's rows, as `file:index`."""

    row: int
    benchmark: str


def benchmark_overlap(data: TokenizedData, files: Sequence[str]) -> list[Contaminated]:
    """Rows whose prompt, normalised, is in one of the files.

    The first of `PROMPT_COLUMNS` is a row's prompt, as text or messages; with `instruction` and `input`, also both together. A system
    message and the turns before the last are part of a prompt, so a row with others is another one. Rows of tokens are not compared.

    Args:
        data: what is trained on.
        files: json, jsonl, csv or parquet, `.gz` or not.

    Raises:
        DataError: a file that is not there or cannot be read, or a row of it without a prompt.
    """
    found = _prompts(files) if files else {}
    hit = np.flatnonzero(np.isin(data.prompt_hashes, np.array(list(found), np.uint64)))
    return [Contaminated(row, found[int(data.prompt_hashes[row])]) for row in hit.tolist()]


def _prompts(files: Sequence[str]) -> dict[int, str]:
    """For each normalised prompt the first row that has it."""
    found: dict[int, str] = {}
    for name in files:
        path = Path(name).expanduser()
        if not path.is_file() or not path.name.endswith(FORMATS):
            raise DataError(f"data.benchmarks: {name} is no data file; expected one of {', '.join(FORMATS)}")
        count = 0
        for index, row in _rows(path):
            count += 1
            where = f"{path.name}:{index}"
            for prompt in _row_prompts(row, where):
                found.setdefault(prompt_hash(Comparison(where, path.name, prompt, ())), where)
        if not count:
            raise DataError(f"data.benchmarks: {name} has no rows")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Row | Malformed]]:
    try:
        for index, row in read_rows(PairSource(path=str(path))):
            yield index, parse(row) if isinstance(row, Line) else row
    except DataError as error:
        raise DataError(*(f"data.benchmarks: {problem}" for problem in error.problems)) from error


def _row_prompts(row: Row | Malformed, where: str) -> Iterator[tuple[Message, ...]]:
    """The prompt of a row, in every form that a training row may have it."""
    if isinstance(row, Malformed):
        raise DataError(f"data.benchmarks: {where} cannot be read: {row.detail}")
    column = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    if column is None:
        expected = ", ".join(PROMPT_COLUMNS)
        raise DataError(
            f"data.benchmarks: {where} has no prompt; expected one of the columns {expected}; it has: {', '.join(row)}"
        )
    messages = _messages(row[column], column, where)
    yield messages
    if messages[0]["role"] == "system" and len(messages) > 1:
        yield messages[1:]
    if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        yield ({"role": "user", "content": f"{row['instruction']}\n{row['input']}"},)


def _messages(cell: Any, column: str, where: str) -> tuple[Message, ...]:
    """The messages of a prompt: what stands before the last turn of the assistant, if that is the last."""
    try:
        messages = to_messages(cell, column, HH, "user")
    except BadRow as problem:
        raise DataError(f"data.benchmarks: {where}: {problem.detail}") from None
    return messages[:-1] if len(messages) > 1 and messages[-1]["role"] == "assistant" else messages
