"""Prompts that are in the training data, and in the evaluation data or a benchmark as well."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmtrain.data.artifact import TokenizedData, response_nodes
from rmtrain.data.comparison import BadRow, Comparison, Turns, prompt_hash
from rmtrain.data.rows.dataset import FORMATS, read_rows
from rmtrain.data.rows.messages import to_messages
from rmtrain.data.rows.readers import Malformed, RawRow, parse
from rmtrain.errors import DataError, missing
from rmtrain.files import expanded
from rmtrain.recipe.schema import Messages, PairSource

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """An evaluation row whose prompt is also trained on.

    evaluated: number of the row in the evaluation data.
    trained: number of a row of the training data with this prompt, one with exactly this prompt if there is one.
    exact: whether the prompts have the same tokens; otherwise they differ in case, spacing or Unicode form.
    responses_too: whether all responses of the evaluation row are trained on under this prompt, normalised as well.
    """

    evaluated: int
    trained: int
    exact: bool
    responses_too: bool


def find_overlap(train: TokenizedData, evaluation: TokenizedData) -> list[Overlap]:
    """Return the rows of the evaluation data whose prompt, normalised, is also trained on, in order."""
    shared = np.flatnonzero(np.isin(evaluation.prompt_hashes, train.prompt_hashes))
    if not len(shared):
        return []
    trained: dict[int, dict[bytes, int]] = defaultdict(dict)  # by hash, the first training row with each exact prompt
    for number in np.flatnonzero(np.isin(train.prompt_hashes, evaluation.prompt_hashes[shared])).tolist():
        trained[int(train.prompt_hashes[number])].setdefault(_prompt(train, number), number)
    known_responses = np.isin(response_nodes(evaluation), response_nodes(train))
    are_known = np.logical_and.reduceat(known_responses, evaluation.first_responses)
    rows = []
    for number in shared.tolist():
        by_prompt, prompt = trained[int(evaluation.prompt_hashes[number])], _prompt(evaluation, number)
        first = next(iter(by_prompt.values()))
        rows.append(Overlap(number, by_prompt.get(prompt, first), prompt in by_prompt, bool(are_known[number])))
    return rows


def _prompt(data: TokenizedData, number: int) -> bytes:
    row = data[number]
    return np.asarray(row.sequences[0][: row.prompt_length], np.int32).tobytes()


def check_overlap(rows: Sequence[Overlap], evaluation: TokenizedData) -> None:
    """Refuse evaluation data that is also trained on.

    Raises:
        DataError: naming the first rows of the evaluation data whose prompt is in the training data as well.
    """
    if rows:
        exact = sum(row.exact for row in rows)
        raise DataError(
            f"{len(rows)} of {len(evaluation)} evaluation rows have a prompt that is also trained on: "
            f"{named([evaluation.ids[row.evaluated] for row in rows])}; remove them, or set data.allow_overlap "
            f"({exact} exactly the same, {len(rows) - exact} except for case and spacing)"
        )


def named(ids: Sequence[str]) -> str:
    """Return the first row ids, and the number of the others."""
    return ", ".join(ids[:EXAMPLES]) + (f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else "")


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


def benchmark_overlap(data: TokenizedData, files: Sequence[str]) -> dict[int, str]:
    """Return the numbers of the rows whose normalised prompt is in a benchmark, each with one row of it, as `file:index`.

    The first of `PROMPT_COLUMNS` is a row's prompt, as text or messages; with `instruction` and `input`, also both together. A system
    message and the turns before the last are part of a prompt, so a row with different ones is a different row. Tokenized rows are not
    compared.

    Raises:
        DataError: a file that is missing or cannot be read, or one of its rows has no prompt.
    """
    first: dict[int, str] = {}
    for name in files:
        path = expanded(name)
        if not path.exists():
            raise DataError(f"data.benchmarks: {missing(name)}")
        if not path.is_file() or not path.name.endswith(FORMATS):
            raise DataError(f"data.benchmarks: {name} is not a data file; expected one of {', '.join(FORMATS)}")
        count = 0
        try:
            for index, row in read_rows(PairSource(path=str(path))):
                count += 1
                where = f"{path.name}:{index}"
                for prompt in _prompts(row, where):
                    first.setdefault(prompt_hash(Comparison(where, path.name, prompt, ())), where)
        except DataError as error:
            raise DataError(*(f"data.benchmarks: {problem}" for problem in error.problems)) from error
        if not count:
            raise DataError(f"data.benchmarks: {name} has no rows")
    matches = np.flatnonzero(np.isin(data.prompt_hashes, np.array(list(first), np.uint64)))
    return {number: first[int(data.prompt_hashes[number])] for number in matches.tolist()}


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
