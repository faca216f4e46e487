"""Prompts of benchmarks that must not be trained on: of a file, or of what `rmtrain.evaluation.benchmarks` reads."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rmtrain.data.comparison import BadRow, Turns
from rmtrain.data.rows.dataset import FORMATS, read_rows
from rmtrain.data.rows.messages import to_messages
from rmtrain.data.rows.readers import Malformed, RawRow, parse
from rmtrain.errors import DataError, missing
from rmtrain.files import expanded
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
"""Columns in which benchmarks keep their prompt, the most usual first; the first that a row has is used."""
HH = Messages(transcript="hh")


class PromptSource(NamedTuple):
    """A benchmark whose prompts must not be trained on.

    title: its name, or that of its file.
    sources: its rows.
    prompts: converts a row, given its source and number, to what names it and to its prompt in each form that a training row may have;
        none for a row that does not count. Raises ValueError or DataError for a row that is not the benchmark's.
    """

    title: str
    sources: tuple[PairSource, ...]
    prompts: Callable[[RawRow, PairSource, int], tuple[str, Sequence[Turns]]]


def prompt_file(name: str) -> PromptSource:
    """Return a file of prompts as a benchmark.

    The first of `PROMPT_COLUMNS` is a row's prompt, as text or messages; with `instruction` and `input`, also both together. A system
    message and the turns before the last are part of a prompt, so a row with different ones is a different row.

    Raises:
        DataError: the file is missing, or of another kind.
    """
    path = expanded(name)
    if not path.exists():
        raise DataError(f"data.benchmarks: {missing(name)}")
    if not path.is_file() or not path.name.endswith(FORMATS):
        raise DataError(f"data.benchmarks: {name} is not a data file; expected one of {', '.join(FORMATS)}")

    def prompts(raw: RawRow, source: PairSource, index: int) -> tuple[str, Sequence[Turns]]:
        where = f"{path.name}:{index}"
        return where, list(_prompts(raw, where))

    return PromptSource(path.name, (PairSource(path=str(path)),), prompts)


def rows_of_benchmark(benchmark: PromptSource) -> Iterator[tuple[str, Sequence[Turns]]]:
    """Yield the rows of a benchmark; raises DataError where one cannot be read, or where there are none."""
    count = 0
    try:
        for source in benchmark.sources:
            for index, row in read_rows(source):
                count += 1
                try:
                    yield benchmark.prompts(row, source, index)
                except ValueError as problem:
                    raise DataError(f"{benchmark.title}:{index}: {problem}") from None
    except DataError as error:
        raise DataError(*(f"data.benchmarks: {problem}" for problem in error.problems)) from error
    if not count:
        raise DataError(f"data.benchmarks: {benchmark.title} has no rows")


def _prompts(raw: RawRow, where: str) -> Iterator[Turns]:
    """Yield the prompt of a benchmark row, in each form in which a training row may have it."""
    row = parse(raw)
    if isinstance(row, Malformed):
        raise DataError(f"{where} cannot be read: {row.detail}")
    column = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    if column is None:
        expected = ", ".join(PROMPT_COLUMNS)
        raise DataError(f"{where} has no prompt; expected one of the columns {expected}; it has: {', '.join(row)}")
    try:
        turns = to_messages(row[column], column, HH, "user")
    except BadRow as problem:
        raise DataError(f"{where}: {problem.detail}") from None
    if len(turns) > 1 and turns[-1]["role"] == "assistant":  # a conversation with its answer
        turns = turns[:-1]
    yield turns
    if turns[0]["role"] == "system" and len(turns) > 1:
        yield turns[1:]
    if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        yield ({"role": "user", "content": f"{row['instruction']}\n{row['input']}"},)
