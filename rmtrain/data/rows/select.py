"""A batch of raw rows to the comparisons a recipe wants: `prepare`, `filter`, format, `suspects`, `fraction`; then `dedup` and `cap`."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from rmtrain.data.comparison import (
    HASH_RANGE,
    Adapted,
    BadRow,
    Comparison,
    Dropped,
    TokenizedComparison,
    dropped,
    prompt_hash,
    rows_of,
)
from rmtrain.data.rows.formats import Candidate, adapt
from rmtrain.data.rows.hook import Number, through_hook
from rmtrain.data.rows.labels import SHOWN_CHARACTERS, TIE
from rmtrain.data.rows.messages import MISSING, find_cell, is_blank, require_cell, to_number
from rmtrain.data.rows.readers import Line, Malformed, Placed, RawRow, Row, parse
from rmtrain.data.rows.suspects import treat_suspects
from rmtrain.data.waterfall import INTENTIONAL_DROPS, with_remedy
from rmtrain.errors import DataError
from rmtrain.recipe.schema import AbSource, PairSource, Source
from rmtrain.recipe.sources import Condition, Value

NAMED_ROWS = 5
NAMED_COLUMNS = 40
CRITERION_WORDS = {"equals": "", "is_not": "anything but ", "one_of": "one of ", "at_least": "at least ", "at_most": "at most "}
TOKENS = {"input_ids_chosen", "chosen_ids"}
UNPAIRED = {"completion", "label"}
REPLACED = {"messages", "rejected_response"}
SIDES = (("1", "2"), ("0", "1"), ("a", "b"), ("A", "B"))
"""Ends of the names of two columns that hold two responses."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Rows of a source with their numbers; `share` is how much of the source has been read with them (0 to 1, None: unknown)."""

    source: Source
    rows: Sequence[tuple[Number, RawRow]]
    is_first: bool
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected rows of a batch: comparisons and dropped ones."""

    rows: list[Adapted]
    groups: Mapping[str, int] = field(default_factory=dict)
    """By row id, 64 bits of the cell that `cap` counts by; empty without `cap`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """By row id, the file and line of the row, for rows of text files."""


def select(batch: RawBatch) -> Selection:
    """Return the rows of a batch, as comparisons or, where they cannot be used or are not wanted, as dropped. A pure function.

    In this order: `prepare` turns each row into any number of rows (`prepared_away`: none), `filter` tests those (`filtered`), the format
    makes comparisons, those of `suspects` are dropped (`suspect`) or turned around, and `fraction` draws by prompt (`not_drawn`).

    Raises:
        DataError: a column that no row of a first batch has; a first batch of which all rows are dropped for the same reason; `prepare`
            fails; or see `check_rows` and `treat_suspects`.
        RecipeError: `prepare` names a function that does not exist.
    """
    source, title = batch.source, batch.source.title
    rows, lost, places = _prepared(batch)
    if batch.is_first:
        columns = [condition.column for condition in source.filter] + ([source.cap.by] if source.cap else [])
        _check_columns(rows, source, columns, " for filter or cap")

    groups: dict[str, int] = {}
    kept: list[tuple[str, Row | Malformed]] = []
    for row_id, row in rows:
        try:
            if not isinstance(row, Malformed):
                check_conditions(row, source.filter)
                if source.cap is not None:
                    groups[row_id] = _hash(json.dumps(require_cell(row, source.cap.by), sort_keys=True, default=str))
            kept.append((row_id, row))
        except BadRow as problem:
            lost.append(with_place(dropped(row_id, title, problem), places))
    if batch.is_first:
        _check_columns(kept, source)  # after the filter: rows that it takes away may be of any shape

    adapted = [
        Dropped(row_id, title, "malformed_row", row.detail) if isinstance(row, Malformed) else adapt(row, row_id, source)
        for row_id, row in kept
    ]
    adapted = [with_place(row, places) if isinstance(row, Dropped) else row for row in adapted]
    check_rows(adapted, source)
    if batch.is_first:
        _check_first(adapted, source)
    return Selection([*lost, *drawn(treat_suspects(adapted, source), source)], groups, places)


def _prepared(batch: RawBatch) -> tuple[list[tuple[str, Row | Malformed]], list[Dropped], dict[str, str]]:
    """Return the rows that `prepare` makes of a batch, with their ids; those of which it makes none; and the file and line of each row."""
    source, title = batch.source, batch.source.title
    rows: list[tuple[str, Row | Malformed]] = []
    lost: list[Dropped] = []
    places: dict[str, str] = {}
    for number, raw in batch.rows:
        row, made = parse(raw), list[tuple[str, Row | Malformed]]()
        if source.prepare is None or isinstance(row, Malformed):
            made.append((f"{title}:{number}", row))
        else:
            made += [(f"{title}:{place}", new) for place, new in through_hook(row, number, source)]
        if not made:
            lost.append(Dropped(f"{title}:{number}", title, "prepared_away", f"{source.prepare} returned no row"))
        if isinstance(raw, Line | Placed) and not isinstance(row, Malformed):  # which says itself where it is
            places.update((row_id, raw.where) for row_id, _ in made)
        rows += made
    return rows, lost, places


def with_place(row: Dropped, places: Mapping[str, str]) -> Dropped:
    """Return a row that is dropped with its file and line, where it has them."""
    return replace(row, detail=f"{places[row.id]}: {row.detail}") if row.id in places else row


def _check_columns(
    rows: Sequence[tuple[str, Row | Malformed]], source: Source, columns: Sequence[str] | None = None, keys: str = ""
) -> None:
    """Refuse a recipe that names a column which none of the first rows has: one of its `keys` or, by default, one of the format."""
    read = [row for _, row in rows if not isinstance(row, Malformed)]
    wanted = dict.fromkeys(source.columns if columns is None else columns)
    absent = [name for name in wanted if all(find_cell(row, name, MISSING) is MISSING for row in read)]
    if not read or not absent:
        return
    names = list(dict.fromkeys(str(name) for row in read for name in row))
    hint = ""
    if columns is None and TOKENS & set(names):
        hint = "; rows of tokens need format: tokenized"
    elif columns is None and isinstance(source, PairSource) and set(names) >= UNPAIRED:
        hint = "; rows of one completion and a label are unpaired (KTO), a reward model needs two responses to compare"
    elif columns is None and isinstance(source, PairSource) and set(names) >= REPLACED:
        hint = "; set chosen: messages, rejected: rejected_response"
    elif columns is None and isinstance(source, PairSource) and (sides := _two_sides(names)):
        hint = f"; with a label that says which is better, set format: ab, a: {sides[0]}, b: {sides[1]}, and label"
    missing = ", ".join(f'"{name}"' for name in absent)
    raise DataError(f"{source.title}: no column {missing}{keys}; it has: {', '.join(names[:NAMED_COLUMNS])}{hint}")


def _two_sides(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two columns that differ in their number or letter alone, such as `response_a` and `response_b`."""
    for name in names:
        for one, other in SIDES:
            if name.endswith(one) and name.removesuffix(one) + other in names:
                return name, name.removesuffix(one) + other
    return None


def check_rows(rows: Sequence[Adapted], source: Source) -> None:
    """Raise DataError for rows that cannot be dropped without changing the meaning of the recipe.

    These are bad margins and weights, and ties under `tie: error`.
    """
    # margins and weights are the user's own numbers: to drop or to clip them would train on something else than asked for
    for kind in ("margin", "weight"):
        bad = [row for row in rows if isinstance(row, Dropped) and row.reason == f"bad_{kind}"]
        if bad:
            raise DataError(f"{kind}s must be finite numbers of at least 0: {name_rows(bad)}")
    ties = [row for row in rows if isinstance(row, Dropped) and row.reason == TIE]
    if ties and isinstance(source, AbSource) and source.tie == "error":
        raise DataError(f"{source.title}: ties are not allowed (tie: error): {name_rows(ties)}")


def name_rows(rows: Sequence[Dropped]) -> str:
    """Return the first rows with their problems, and the number of the others."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return "; ".join(f"{row.id}: {row.detail}" for row in rows[:NAMED_ROWS]) + more


def _check_first(rows: Sequence[Adapted], source: Source) -> None:
    """Refuse a source whose first rows are all dropped for one reason, rather than after reading all of it."""
    # a wrong column name or format drops all rows in the same way; faults of the data do not
    reasons = {row.reason if isinstance(row, Dropped) else None for row in rows}
    first = rows[0] if len(reasons) == 1 else None
    if isinstance(first, Dropped) and first.reason not in INTENTIONAL_DROPS:
        count = "its only row is" if len(rows) == 1 else f"the first {len(rows)} rows are all"
        raise DataError(f"{source.title}: {count} refused ({first.reason}): {with_remedy(first.reason, first.detail)}")


def check_conditions(row: Row, conditions: tuple[Condition, ...]) -> None:
    """Test a row against all conditions, in their order. Null passes `is_not` only.

    Raises BadRow `filtered` where a condition does not hold, `missing_column` or `not_a_number` where it cannot be decided.
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
    if name not in ("at_least", "at_most"):
        values = value if isinstance(value, tuple) else (value,)
        return any(_same(cell, one) for one in values) != (name == "is_not")
    assert isinstance(value, int | float), "the schema says so"
    if is_blank(cell):
        return False
    number = to_number(cell)
    if number is None:
        raise BadRow("not_a_number", f"{column} is {_shown(cell)}; {name} needs a number")
    return value <= number if name == "at_least" else number <= value


def _same(cell: Any, value: Any) -> bool:
    # cells of CSV files are text: one that spells a number, true or false equals that value
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


def is_drawn(hash_of_prompt: int, fraction: float) -> bool:
    """Return whether a prompt belongs to the share that is used; this is independent of whether it is held out."""
    # hashed again: with the same hash, a fraction of 0.1 would be the prompts that holdout: 0.1 takes
    return _hash(f"fraction {hash_of_prompt}") < fraction * HASH_RANGE


class Limits:
    """Drops comparisons with the content of an earlier one, then those whose value of the `cap` column has its full number of rows.

    Contents and values are known by 64 bits each: the chance that any two of ten million different comparisons have the same key is 3 in
    a million. A key takes about 100 bytes of memory: 1 GB for ten million rows.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        # by split, so that a held-out row does not take the place of one that is trained on
        self._contents: dict[str, set[int]] = defaultdict(set)
        self._groups: dict[str, Counter[int]] = defaultdict(Counter)

    def problem(self, split: str, content: int, group: int) -> BadRow | None:
        """Return why a comparison of a split is dropped, if it is. All comparisons of the source must come by here, in order.

        `content` is its `content_key`, `group` its entry in `Selection.groups`.
        """
        if self.source.dedup:
            if content in self._contents[split]:
                return BadRow("duplicate", "an earlier row has the same content")
            self._contents[split].add(content)
        if (cap := self.source.cap) is not None:
            self._groups[split][group] += 1
            if self._groups[split][group] > cap.rows:
                return BadRow("capped", f"{cap.rows} earlier rows have the same {cap.by}")
        return None


def is_limited(source: Source) -> bool:
    """Return whether a source has `dedup` or `cap`."""
    return source.dedup or source.cap is not None


def content_key(prompt_hash: int, response_hashes: Sequence[int], row: Comparison | TokenizedComparison) -> int:
    """Return 64 bits of the content of a comparison, regardless of the order of its responses and labels."""
    edges = sorted(
        (response_hashes[edge.winner], response_hashes[edge.loser], edge.margin, edge.probability, edge.weight)
        for edge in row.preferences
    )
    targets = sorted((response_hashes[target.response], target.value, target.weight) for target in row.targets)
    return _hash(repr((prompt_hash, sorted(response_hashes), edges, targets, row.weight)))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
