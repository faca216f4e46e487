"""Prompts that are in the training data, and in the evaluation data or a benchmark as well."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TokenizedData, response_nodes
from rmtrain.data.checks.benchmark_prompts import PromptSource, rows_of_benchmark
from rmtrain.data.checks.edited_prompts import PromptIndex
from rmtrain.data.comparison import Comparison, prompt_hash
from rmtrain.data.text.tokenizer import decoded
from rmtrain.errors import DataError
from rmtrain.recipe.schema import EditedPrompts

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


def benchmark_overlap(
    data: TokenizedData, benchmarks: Sequence[PromptSource], tokenizer: PreTrainedTokenizerBase, edited: EditedPrompts | None
) -> dict[int, str]:
    """Return the numbers of the rows whose prompt is in a benchmark, each with what it has of which row of it, in order.

    A prompt is that of a benchmark if both are the same, normalised. With `edited` also if it has enough of the same words in the same
    order, see `PromptIndex`: an edited prompt, or a longer one that contains it. Rows of tokens are compared as text too, and never whole.

    Raises:
        DataError: a file that cannot be read, or one of its rows has no prompt.
    """
    first: dict[int, str] = {}
    texts: list[tuple[str, str]] = []
    for benchmark in benchmarks:
        for where, prompts in rows_of_benchmark(benchmark):
            for prompt in prompts:
                first.setdefault(prompt_hash(Comparison(where, benchmark.title, prompt, ())), where)
            if prompts:
                texts.append((where, max(("\n".join(turn["content"] for turn in prompt) for prompt in prompts), key=len)))
    matches = np.flatnonzero(np.isin(data.prompt_hashes, np.array(list(first), np.uint64)))
    found = {number: f"prompt of {first[int(data.prompt_hashes[number])]}" for number in matches.tolist()}
    if edited is not None and texts:
        index = PromptIndex(texts, edited.words)
        for number in (number for number in range(len(data)) if number not in found):
            row = data[number]
            near = index.find(decoded(row.sequences[0][: row.prompt_length], tokenizer, special_tokens=False), edited.share)
            if near is not None:
                found[number] = f"{near.share:.0%} of the prompt of {near.where}"
    return dict(sorted(found.items()))
