"""A source in batches while it is read: raw rows for other processes to adapt, or comparisons where rows are combined first."""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeGuard, TypeVar

from rmtrain.data.comparison import (
    Adapted,
    BadRow,
    Comparison,
    Dropped,
    Preference,
    Target,
    Turns,
    dropped,
    is_held_out,
    prompt_hash,
    response_hashes,
    rows_of,
)
from rmtrain.data.rows.conversation import ResponseKey, merged, response_key, text_of
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.formats import Candidate, compare_scored
from rmtrain.data.rows.readers import ReadMeter
from rmtrain.data.rows.select import Limits, RawBatch, Selection, check_rows, content_key, drawn, is_limited, select
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import RankedSource, Source, TextSource

BATCH_ROWS = 1000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """Progress on a source: the number of its rows that are done, and their share of it, from 0 to 1 (None: unknown).

    `doing` is `gathering` while rows that are combined are read, before the first of them is tokenized, and `augmenting` while
    comparisons that are made of its rows are.
    """

    source: str
    rows: int
    share: float | None = None
    doing: str = "tokenizing"


Progress = Callable[[Reading], None]
"""Called after each batch."""


def no_progress(reading: Reading) -> None:
    """Report nothing."""


def _batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def read_batches(source: Source, progress: Progress = no_progress) -> Iterator[RawBatch | list[Adapted]]:
    """Yield all rows of a source in batches: raw ones, to be selected and adapted by any process; or comparisons where rows are grouped.

    `dedup` and `cap` are left to the process that sees all raw batches in order; comparisons that were grouped have passed them. `progress`
    is called while rows are grouped, before the first batch is yielded. Raises DataError as `read_rows` and `select`.
    """
    # the rows of a group may be anywhere in the source, so that one process has to see all of them
    by_prompt = isinstance(source, TextSource) and source.group_by_prompt
    if by_prompt or _is_grouped(source):
        rows = chain.from_iterable(load_comparisons(source, progress))
        return _batched(group_by_prompt(rows) if by_prompt else rows)
    return _raw_batches(source)


def load_comparisons(source: Source, progress: Progress = no_progress) -> Iterator[list[Adapted]]:
    """Yield the same as comparisons and dropped rows, selected but not grouped by prompt; raises DataError as `read_rows` and `select`."""

    def selections() -> Iterator[Selection]:
        read = 0
        for batch in _raw_batches(source):
            yield select(batch)
            read += len(batch.rows)
            progress(Reading(source.title, read, batch.share, "gathering"))

    limits = Limits(source)
    for selection in _compare_groups(selections(), source) if _is_grouped(source) else selections():
        yield _apply_limits(selection, source, limits) if is_limited(source) else selection.rows


CHECKED_BATCHES = 10


@contextmanager
def all_problems(sources: Iterable[Source]) -> Iterator[None]:
    """Add to an error of the block what is wrong with the other sources, as far as their first ten thousand rows show it."""
    try:
        yield
    except (DataError, RecipeError) as error:
        problems = dict.fromkeys(error.problems)
        for source in sources:
            if any(problem.startswith((f"{source.title}:", f"{source.place}:")) for problem in error.problems):
                continue  # it is the one that failed, perhaps after a long wait for the Hub
            try:
                for batch in islice(_raw_batches(source), CHECKED_BATCHES):
                    select(batch)
            except (DataError, RecipeError) as another:
                problems |= dict.fromkeys(another.problems)
        raise type(error)(*problems) from error


def _is_grouped(source: Source) -> TypeGuard[RankedSource]:
    return isinstance(source, RankedSource) and source.group_by is not None


def _raw_batches(source: Source) -> Iterator[RawBatch]:
    meter, read = ReadMeter(), 0
    for rows in _batched(read_rows(source, meter)):
        is_first, read = not read, read + len(rows)
        # a limit may end a large file early, and the file may end before its limit
        share = max(meter.share or 0.0, read / source.limit) if source.limit else meter.share
        yield RawBatch(source, rows, is_first, share)


def _apply_limits(selection: Selection, source: Source, limits: Limits) -> list[Adapted]:
    """Return the rows with comparisons that `dedup` or `cap` refuse as dropped, each under all of its row ids."""
    result: list[Adapted] = []
    for row in selection.rows:
        if isinstance(row, Dropped):
            result.append(row)
            continue
        prompt = prompt_hash(row)
        content = content_key(prompt, response_hashes(row), row)
        split = "eval" if is_held_out(prompt, source.holdout, source.fold) else "train"
        problem = limits.problem(split, content, selection.groups.get(row.id, 0))
        result += [row] if problem is None else [dropped(row_id, row.source, problem) for row_id in rows_of(row)]
    return result


def _in_groups(rows: Iterable[Adapted], key_of: Callable[[Adapted], Hashable]) -> Iterable[list[Adapted]]:
    """Return rows with equal keys together, in the place of the first of them; a row whose key is None is alone."""
    # all rows are held in memory: the last may belong to the first
    groups: dict[Hashable, list[Adapted]] = {}
    for row in rows:
        key = key_of(row)
        groups.setdefault(object() if key is None else key, []).append(row)
    return groups.values()


def _compare_groups(selections: Iterable[Selection], source: RankedSource) -> Iterator[Selection]:
    """Yield the same rows, but each group of candidates as a comparison, in the place of its first row. All are read first."""
    rows: list[Adapted] = []
    groups: dict[str, int] = {}
    for selection in selections:
        rows += selection.rows
        groups.update(selection.groups)

    def compared() -> Iterator[Adapted]:
        for group in _in_groups(rows, lambda row: row.group if isinstance(row, Candidate) else None):
            candidates = [row for row in group if isinstance(row, Candidate)]
            yield from _compare(candidates, source) if candidates else group

    for batch in _batched(compared()):
        check_rows(batch, source)
        yield Selection(drawn(batch, source), groups)


def _compare(group: Sequence[Candidate], source: RankedSource) -> Iterator[Comparison | Dropped]:
    """Yield the comparison of a group, and each row whose response has no preference in it with the reason."""
    problems: dict[str, BadRow] = {}
    owners: dict[ResponseKey, str] = {}
    usable: list[Candidate] = []
    for row in group:
        owner = owners.setdefault(response_key(row.turns), row.id)
        if response_key(row.named_prompt) != response_key(group[0].named_prompt):
            problems[row.id] = BadRow("different_prompts", f"{group[0].id} has the same {source.group_by} and another prompt")
        elif row.variables != group[0].variables:
            detail = f"{group[0].id} has the same {source.group_by} and other template variables"
            problems[row.id] = BadRow("different_prompts", detail)
        elif owner != row.id:
            problems[row.id] = BadRow("identical", f"{owner} has the same response")
        else:
            usable.append(row)
    try:
        if len(usable) < 2:
            raise BadRow("one_response", f"no other usable row has the same {source.group_by}")
        conversations, scores, ids = zip(*((row.turns, row.score, row.id) for row in usable), strict=True)
        comparison = compare_scored(conversations, scores, source, group[0].id, ids)
    except BadRow as problem:
        problems |= {row.id: problem for row in usable}
    else:
        used = {row_id for edge in comparison.preferences for row_id in edge.rows}
        unused = BadRow("not_paired", f"policy {source.policy} makes no preference with its response")
        problems |= {row.id: unused for row in usable if row.id not in used}
        row_id, first = next(row.id for row in usable if row.id in used), usable[0]
        yield replace(comparison, id=row_id, variables=first.variables, columns=first.columns)
    for row in group:
        if row.id in problems:
            yield dropped(row.id, row.source, problems[row.id])


def group_by_prompt(rows: Iterable[Adapted]) -> Iterator[Adapted]:
    """Yield the rows, comparisons with exactly equal prompts as one, in the place and under the id of the first of them.

    The result has each different response once, and the labels of all its rows, each with its margin and the weight of its row. A
    preference that several rows state has the sum of their weights; contradictory ones are both kept. The weight of the whole is the mean
    of its rows. A row without a prompt stays alone; other rows pass through. Template variables are part of the prompt.
    """

    def key_of(row: Adapted) -> Hashable:
        if not isinstance(row, Comparison) or not row.prompt:
            return None
        return _exact_key(row.prompt), json.dumps(row.variables, sort_keys=True, default=str)

    for group in _in_groups(rows, key_of):
        comparisons = [row for row in group if isinstance(row, Comparison)]
        yield _one_of(comparisons) if comparisons else group[0]


def _one_of(rows: Sequence[Comparison]) -> Comparison:
    """Return the comparison of rows with the same prompt."""
    if len(rows) == 1:
        return rows[0]
    numbers: dict[Any, int] = {}
    responses: list[Turns] = []
    edges: list[Preference] = []
    targets: list[Target] = []
    for row in rows:
        for response in row.responses:
            if numbers.setdefault(_exact_key(response), len(responses)) == len(responses):
                responses.append(response)
        for edge in row.preferences:
            winner, loser = (numbers[_exact_key(row.responses[number])] for number in (edge.winner, edge.loser))
            edges.append(replace(edge, winner=winner, loser=loser, weight=edge.weight * row.weight, rows=edge.rows or (row.id,)))
        for target in row.targets:
            number = numbers[_exact_key(row.responses[target.response])]
            targets.append(replace(target, response=number, weight=target.weight * row.weight, rows=target.rows or (row.id,)))
    left_out = tuple(reason for row in rows for reason in row.left_out)
    winners = tuple(side for row in rows for side in row.winners)
    whole = replace(
        rows[0],
        responses=tuple(responses),
        preferences=merged(edges),
        targets=tuple(targets),
        weight=sum(row.weight for row in rows) / len(rows),
        left_out=left_out,
        winners=winners,
    )
    return replace(whole, id=rows_of(whole)[0])


def _exact_key(turns: Turns) -> tuple[tuple[str, str, str], ...]:
    return tuple((message["role"], message["content"], text_of(message) if len(message) > 2 else "") for message in turns)
