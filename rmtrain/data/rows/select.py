"""Which rows of a batch the recipe wants: `prepare`, `filter` and `fraction`, and what `cap` will count them by."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from rmtrain.data.comparison import Dropped, rows_of
from rmtrain.data.hashes import HASH_RANGE, prompt_hash
from rmtrain.data.raw.hooks import Number, through_hook
from rmtrain.data.raw.json_reader import Line, Malformed, Row, parse
from rmtrain.data.rows.batches import Adapted, RawBatch, adapt_batch
from rmtrain.data.rows.conditions import check_conditions
from rmtrain.data.rows.lookup import has_cell, require_cell
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.ranked import Candidate
from rmtrain.data.rows.responses import dropped
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Source

Numbered = tuple[Number, Row | Malformed]
NAMED_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class Selection:
    """What a batch gives.

    rows: comparisons and dropped rows.
    groups: by row id 64 bits of the cell that `cap` goes by; empty without `cap`.
    """

    rows: list[Adapted]
    groups: Mapping[str, int] = field(default_factory=dict)


def select(batch: RawBatch) -> Selection:
    """The rows of a batch as comparisons, and those that the recipe leaves out as dropped. A pure function of its argument.

    In this order: `prepare` makes of each row what it likes (`prepared_away`: nothing), `filter` tests what it made (`filtered`), the
    format makes comparisons, and `fraction` draws from them by prompt (`not_drawn`).

    Raises:
        DataError: a column of `filter` or `cap` that no row of a first batch has, `prepare` fails, or as `adapt_batch` says.
        RecipeError: there is no function for `prepare`.
    """
    source = batch.source
    if source.prepare is None and not source.filter and source.cap is None:
        return Selection(drawn(adapt_batch(batch), source))
    lost: list[Dropped] = []
    rows = list(_prepared(batch, lost))
    if batch.is_first:
        _check_columns([row for _, row in rows if not isinstance(row, Malformed)], source)
    groups: dict[str, int] = {}
    kept = list(_passing(rows, source, groups, lost))
    adapted = adapt_batch(RawBatch(source, kept, batch.is_first)) if kept else []
    return Selection([*lost, *drawn(adapted, source)], groups)


def is_drawn(hash_of_prompt: int, fraction: float | None) -> bool:
    """Whether a prompt belongs to the share that is used; independent of whether it is held out."""
    if fraction is None:
        return True
    return int.from_bytes(blake2b(b"fraction %d" % hash_of_prompt, digest_size=8).digest()) < fraction * HASH_RANGE


def _prepared(batch: RawBatch, lost: list[Dropped]) -> Iterator[Numbered]:
    source = batch.source
    for number, raw in batch.rows:
        row = parse(raw) if isinstance(raw, Line) else raw
        if source.prepare is None or isinstance(row, Malformed):
            yield number, row
            continue
        made = list(through_hook(row, number, source))
        if not made:
            lost.append(_lost(number, source, BadRow("prepared_away", f"{source.prepare} makes nothing of it")))
        yield from made


def _passing(rows: Sequence[Numbered], source: Source, groups: dict[str, int], lost: list[Dropped]) -> Iterator[Numbered]:
    for number, row in rows:
        if isinstance(row, Malformed):
            yield number, row
            continue
        try:
            check_conditions(row, source.filter)
            if source.cap is not None:
                groups[_row_id(number, source)] = _hash(require_cell(row, source.cap.by))
        except BadRow as problem:
            lost.append(_lost(number, source, problem))
        else:
            yield number, row


def drawn(rows: Sequence[Adapted], source: Source) -> list[Adapted]:
    """The same rows, of which those whose prompt is not in `fraction` are dropped. Candidates pass: they are drawn as a group."""
    if source.fraction is None:
        return list(rows)
    problem = BadRow("not_drawn", f"its prompt is not in the fraction of {source.fraction:g}")
    return [left for row in rows for left in _left(row, source.fraction, problem)]


def _left(row: Adapted, fraction: float, problem: BadRow) -> list[Adapted]:
    if isinstance(row, Dropped | Candidate) or is_drawn(prompt_hash(row), fraction):
        return [row]
    return [dropped(row_id, row.source, problem) for row_id in rows_of(row)]


def _check_columns(rows: Sequence[Row], source: Source) -> None:
    named = dict.fromkeys([condition.column for condition in source.filter] + ([source.cap.by] if source.cap else []))
    missing = [f'"{name}"' for name in named if not any(has_cell(row, name) for row in rows)]
    if rows and missing:
        names = dict.fromkeys(str(name) for row in rows for name in row)
        there = ", ".join(list(names)[:NAMED_COLUMNS])
        raise DataError(f"{source.title}: no column {', '.join(missing)} for filter or cap; it has: {there}")


def _row_id(number: Number, source: Source) -> str:
    return f"{source.title}:{number}"


def _lost(number: Number, source: Source, problem: BadRow) -> Dropped:
    return dropped(_row_id(number, source), source.title, problem)


def _hash(cell: Any) -> int:
    return int.from_bytes(blake2b(json.dumps(cell, sort_keys=True, default=str).encode(), digest_size=8).digest())
