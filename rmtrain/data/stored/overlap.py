"""Evaluation rows whose prompt is trained on, too."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.edges import mix
from rmtrain.errors import DataError

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """An evaluation row whose prompt is trained on.

    evaluated: number of the row in the evaluation data.
    trained: number of a row of the training data with this prompt; one with exactly this prompt where there is one.
    exact: whether the prompts have the same tokens; otherwise they are the same but for case, spacing and Unicode form.
    responses_too: whether all responses of the evaluation row are trained on under this prompt, normalised as well.
    """

    evaluated: int
    trained: int
    exact: bool
    responses_too: bool


def overlap(train: TokenizedData, evaluation: TokenizedData) -> list[Overlap]:
    """Rows of the evaluation data whose prompt, normalised, is also trained on, in order."""
    shared = np.flatnonzero(np.isin(evaluation.prompt_hashes, train.prompt_hashes))
    if not len(shared):
        return []
    same_prompt = _numbers_by_prompt(train, evaluation.prompt_hashes[shared])
    trained_texts = {hash_of: _first_by_text(train, numbers) for hash_of, numbers in same_prompt.items()}
    known = _known_responses(train, evaluation)
    found = []
    for number in shared.tolist():
        hash_of, text = int(evaluation.prompt_hashes[number]), _prompt(evaluation, number)
        numbers = trained_texts[hash_of]
        trained = numbers.get(text, same_prompt[hash_of][0])
        found.append(Overlap(number, trained, text in numbers, bool(known[number])))
    return found


def check_overlap(train: TokenizedData, evaluation: TokenizedData) -> None:
    """Refuse evaluation data that was trained on.

    Raises:
        DataError: naming the first rows of the evaluation data whose prompt is in the training data too.
    """
    rows = overlap(train, evaluation)
    if rows:
        exact = sum(row.exact for row in rows)
        raise DataError(
            f"{len(rows)} of {len(evaluation)} evaluation rows have a prompt that is also trained on: "
            f"{named([evaluation.ids[row.evaluated] for row in rows])}; remove them, or set data.allow_overlap "
            f"(to the letter {exact}, but for case and spacing {len(rows) - exact})"
        )


def named(ids: Sequence[str]) -> str:
    """The first row ids, and how many more there are."""
    return ", ".join(ids[:EXAMPLES]) + (f" and {len(ids) - EXAMPLES} more" if len(ids) > EXAMPLES else "")


def _numbers_by_prompt(data: TokenizedData, hashes: NDArray[np.uint64]) -> dict[int, list[int]]:
    numbers: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(np.isin(data.prompt_hashes, hashes)).tolist():
        numbers[int(data.prompt_hashes[number])].append(number)
    return numbers


def _first_by_text(data: TokenizedData, numbers: Sequence[int]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for number in numbers:
        first.setdefault(_prompt(data, number), number)
    return first


def _prompt(data: TokenizedData, number: int) -> bytes:
    row = data[number]
    return np.asarray(row.sequences[0][: row.prompt_length], np.int32).tobytes()


def _known_responses(train: TokenizedData, evaluation: TokenizedData) -> list[bool]:
    """For each evaluation row, whether all of its responses are trained on under its prompt."""
    trained, evaluated = (
        mix(np.repeat(data.prompt_hashes, data.response_counts), data.response_hashes) for data in (train, evaluation)
    )
    is_known = np.isin(evaluated, trained)
    begins = np.cumsum(evaluation.response_counts) - evaluation.response_counts
    known: list[bool] = np.logical_and.reduceat(is_known, begins).tolist()
    return known
