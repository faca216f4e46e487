"""The rows that the recipe wants: `prepare`, `filter` and `fraction` in a batch, `dedup` and `cap` over batches; and `group_by_prompt`."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from rmtrain.data.comparison import (
    HASH_RANGE,
    Adapted,
    BadRow,
    Comparison,
    Dropped,
    Preference,
    Turns,
    dropped,
    prompt_hash,
    rows_of,
)
from rmtrain.data.rows.adapt import RawBatch, adapt_batch, check_columns
from rmtrain.data.rows.cells import is_blank, require_cell, to_number
from rmtrain.data.rows.conversation import text_of
from rmtrain.data.rows.formats import Candidate
from rmtrain.data.rows.prepare_hook import Number, through_hook
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.data.rows.responses import in_groups, merged
from rmtrain.recipe.schema import Source
from rmtrain.recipe.sources import Condition, Value

SHOWN_CHARACTERS = 40
CRITERION_WORDS = {"equals": "", "is_not": "anything but ", "one_of": "one of ", "at_least": "at least ", "at_most": "at most "}


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected rows of a batch.

    rows: comparisons and dropped rows.
    groups: by row id, 64 bits of the cell that `cap` counts by; empty without `cap`.
    """

    rows: list[Adapted]
    groups: Mapping[str, int] = field(default_factory=dict)


def select(batch: RawBatch) -> Selection:
    """Return the rows of a batch as comparisons, and those that the recipe leaves out as dropped. A pure function of its argument.

    In this order: `prepare` turns each row into any number of rows (`prepared_away`: none), `filter` tests those (`filtered`), the format
    makes comparisons, and `fraction` draws from them by prompt (`not_drawn`).

    Raises:
        DataError: a column of `filter` or `cap` that no row of a first batch has; `prepare` fails; or see `adapt_batch`.
        RecipeError: `prepare` names a function that does not exist.
    """
    source, title = batch.source, batch.source.title
    if source.prepare is None and not source.filter and source.cap is None:
        return Selection(drawn(adapt_batch(batch), source))
    lost: list[Dropped] = []
    rows: list[tuple[Number, Row | Malformed]] = []
    for number, raw in batch.rows:
        row = parse(raw) if isinstance(raw, Line) else raw
        made = (
            [(number, row)] if source.prepare is None or isinstance(row, Malformed) else list(through_hook(row, number, source))
        )
        rows += made
        if not made:
            lost.append(Dropped(f"{title}:{number}", title, "prepared_away", f"{source.prepare} returned no row"))
    if batch.is_first:
        columns = [condition.column for condition in source.filter] + ([source.cap.by] if source.cap else [])
        check_columns([row for _, row in rows if not isinstance(row, Malformed)], source, columns, " for filter or cap")
    groups: dict[str, int] = {}
    kept: list[tuple[Number, Row | Malformed]] = []
    for number, row in rows:
        row_id = f"{title}:{number}"
        try:
            if not isinstance(row, Malformed):
                check_conditions(row, source.filter)
                if source.cap is not None:
                    groups[row_id] = _hash(json.dumps(require_cell(row, source.cap.by), sort_keys=True, default=str))
        except BadRow as problem:
            lost.append(dropped(row_id, title, problem))
        else:
            kept.append((number, row))
    adapted = adapt_batch(replace(batch, rows=kept)) if kept else []  # what is filtered may be of any shape
    return Selection([*lost, *drawn(adapted, source)], groups)


def check_conditions(row: Row, conditions: tuple[Condition, ...]) -> None:
    """Test a row against all conditions, in their order.

    Cells of CSV files are text, so text that spells a number, `true` or `false` equals that value where the condition has one. Null passes
    `is_not` only.

    Raises:
        BadRow: `filtered` where a condition does not hold; `missing_column` or `not_a_number` where it cannot be decided.
    """
    for condition in conditions:
        cell = require_cell(row, condition.column)
        for name, wanted in condition.criteria.items():
            if not _holds(cell, name, wanted, condition.column):
                values = wanted if isinstance(wanted, tuple) else (wanted,)
                expected = ", ".join(f"{value:g}" if type(value) is float else repr(value) for value in values)
                words = CRITERION_WORDS[name]
                raise BadRow("filtered", f"{condition.column} is {_shown(cell)}, expected {words}{expected}")


def _holds(cell: Any, name: str, value: Value | tuple[Value, ...], column: str) -> bool:
    if name == "equals":
        return _same(cell, value)
    if name == "is_not":
        return not _same(cell, value)
    if name == "one_of":
        assert isinstance(value, tuple), "the schema says so"
        return any(_same(cell, one) for one in value)
    if is_blank(cell):
        return False
    number = to_number(cell)
    if number is None:
        raise BadRow("not_a_number", f"{column} is {_shown(cell)}; {name} needs a number")
    assert isinstance(value, int | float), "the schema says so"
    return value <= number if name == "at_least" else number <= value


def _same(cell: Any, value: Any) -> bool:
    if isinstance(cell, str) and isinstance(value, bool):
        return cell.strip().lower() == str(value).lower()
    if isinstance(cell, str) and not isinstance(value, str):
        return bool(to_number(cell) == value)
    return isinstance(cell, bool) == isinstance(value, bool) and bool(cell == value)


def _shown(cell: Any) -> str:
    if isinstance(cell, dict | list):
        return "an object" if isinstance(cell, dict) else "a list"
    return "null" if cell is None else repr(cell)[:SHOWN_CHARACTERS]


def drawn(rows: Sequence[Adapted], source: Source) -> list[Adapted]:
    """Return the rows, those whose prompt is not in `fraction` as dropped. Candidates pass: they are drawn as a group, later."""
    if source.fraction is None:
        return list(rows)
    problem = BadRow("not_drawn", f"its prompt is not in the fraction of {source.fraction:g}")
    result: list[Adapted] = []
    for row in rows:
        if isinstance(row, Dropped | Candidate) or is_drawn(prompt_hash(row), source.fraction):
            result.append(row)
        else:
            result += [dropped(row_id, row.source, problem) for row_id in rows_of(row)]
    return result


def is_drawn(hash_of_prompt: int, fraction: float | None) -> bool:
    """Return whether a prompt belongs to the share that is used; this is independent of whether it is held out."""
    # hashed again: with the same hash, a fraction of 0.1 would be the prompts that holdout: 0.1 takes
    return fraction is None or _hash(f"fraction {hash_of_prompt}") < fraction * HASH_RANGE


@dataclass(frozen=True, slots=True)
class Marks:
    """The keys that `dedup` and `cap` know comparisons by, 64 bits of each.

    The chance that any two of ten million different comparisons have the same key is 3 in a million.
    """

    contents: Sequence[int]
    groups: Sequence[int]


class Limits:
    """Drops comparisons with the content of an earlier one, then those whose value of the `cap` column has its full number of rows.

    A key takes about 100 bytes of memory: 1 GB for ten million rows.

    Args:
        source: the source whose `dedup` and `cap` apply.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._contents: dict[str, set[int]] = defaultdict(set)
        self._groups: dict[str, Counter[int]] = defaultdict(Counter)

    def refused(self, split: str, ids: Sequence[str], marks: Marks) -> list[Dropped]:
        """Return which of some comparisons are dropped. All comparisons of a source must come by here, in order.

        Args:
            split: the split they go to.
            ids: their row ids.
            marks: the keys of each.
        """
        # by split, so that a held-out row does not take the place of one that is trained on
        source, contents, groups = self.source, self._contents[split], self._groups[split]
        refused: list[Dropped] = []
        for row_id, content, group in zip(ids, marks.contents, marks.groups, strict=True):
            if source.dedup:
                if content in contents:
                    refused.append(Dropped(row_id, source.title, "duplicate", "an earlier row has the same content"))
                    continue
                contents.add(content)
            if source.cap is not None:
                groups[group] += 1
                if groups[group] > source.cap.rows:
                    detail = f"{source.cap.rows} earlier rows have the same {source.cap.by}"
                    refused.append(Dropped(row_id, source.title, "capped", detail))
        return refused


def is_limited(source: Source) -> bool:
    """Return whether a source has `dedup` or `cap`."""
    return source.dedup or source.cap is not None


def content_key(prompt_hash: int, response_hashes: Sequence[int], preferences: Sequence[Preference]) -> int:
    """Return 64 bits of the content of a comparison, regardless of the order of its responses and preferences."""
    edges = sorted(
        (response_hashes[edge.winner], response_hashes[edge.loser], edge.margin, edge.probability, edge.weight)
        for edge in preferences
    )
    return _hash(repr((prompt_hash, sorted(response_hashes), edges)))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def group_by_prompt(rows: Iterable[Adapted]) -> Iterator[Adapted]:
    """Yield the rows, comparisons with exactly equal prompts as one, in the place and under the id of the first of them.

    The result has each different response once, and the preferences of all its rows, each with its margin. A preference that several rows
    state has the sum of their weights; contradictory ones are both kept. A row without a prompt stays alone.

    Args:
        rows: comparisons, and anything else, which is passed through. All are held in memory: the last row may belong to the first.
    """
    for group in in_groups(rows, lambda row: (_exact_key(row.prompt) or None) if isinstance(row, Comparison) else None):
        comparisons = [row for row in group if isinstance(row, Comparison)]
        yield _one_of(comparisons) if comparisons else group[0]


def _one_of(rows: Sequence[Comparison]) -> Comparison:
    """Return the comparison of rows with the same prompt."""
    if len(rows) == 1:
        return rows[0]
    numbers: dict[Any, int] = {}
    responses: list[Turns] = []
    edges: list[Preference] = []
    for row in rows:
        for response in row.responses:
            if numbers.setdefault(_exact_key(response), len(responses)) == len(responses):
                responses.append(response)
        for edge in row.preferences:
            winner, loser = (numbers[_exact_key(row.responses[number])] for number in (edge.winner, edge.loser))
            edges.append(replace(edge, winner=winner, loser=loser, rows=edge.rows or (row.id,)))
    left_out = tuple(reason for row in rows for reason in row.left_out)
    whole = replace(rows[0], responses=tuple(responses), preferences=merged(edges), left_out=left_out)
    return replace(whole, id=rows_of(whole)[0])


def _exact_key(turns: Turns) -> tuple[tuple[str, str, str], ...]:
    return tuple((message["role"], message["content"], text_of(message) if len(message) > 2 else "") for message in turns)
