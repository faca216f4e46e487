"""Which rows of a batch the recipe wants: `prepare`, `filter` and `fraction`, and what `cap` will count them by."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.comparison import HASH_RANGE, Adapted, Comparison, Dropped, Message, Preference, prompt_hash, rows_of
from rmtrain.data.rows.adapt import RawBatch, adapt_batch
from rmtrain.data.rows.cells import has_cell, is_blank, require_cell, to_number
from rmtrain.data.rows.conversation import text_of
from rmtrain.data.rows.formats import Candidate
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.prepare_hook import Number, through_hook
from rmtrain.data.rows.readers import Line, Malformed, Row, parse
from rmtrain.data.rows.responses import dropped, merged
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Source
from rmtrain.recipe.sources import Condition, Criterion

SHOWN_CHARACTERS = 40


def check_conditions(row: Row, conditions: tuple[Condition, ...]) -> None:
    """Hold a row to all conditions, in their order.

    Text that spells a number is a number where the condition has one, and `true` or `false` are what they say where it has one of these:
    cells of CSV files are text. Null passes `is_not` alone.

    Raises:
        BadRow: `filtered` where a condition does not hold; `missing_column` and `not_a_number` where it cannot be decided.
    """
    for condition in conditions:
        cell = require_cell(row, condition.column)
        for criterion in condition.criteria:
            if not _holds(cell, criterion, condition.column):
                raise BadRow("filtered", f"{condition.column} is {_shown(cell)}, expected {_in_words(criterion)}")


def _holds(cell: Any, criterion: Criterion, column: str) -> bool:
    name, value = criterion
    match name:
        case "equals":
            return _same(cell, value)
        case "is_not":
            return not _same(cell, value)
        case "one_of":
            assert isinstance(value, tuple), "the schema says so"
            return any(_same(cell, one) for one in value)
    number = _number(cell, column)
    assert isinstance(value, int | float), "the schema says so"
    return number is not None and (value <= number if name == "at_least" else number <= value)


def _same(cell: Any, value: Any) -> bool:
    if isinstance(cell, str) and isinstance(value, bool):
        return cell.strip().lower() == str(value).lower()
    if isinstance(cell, str) and not isinstance(value, str):
        return bool(to_number(cell) == value)
    return isinstance(cell, bool) == isinstance(value, bool) and bool(cell == value)


def _number(cell: Any, column: str) -> float | None:
    """The number of a cell; None where it says nothing, which is within no bounds."""
    if is_blank(cell):
        return None
    number = to_number(cell)
    if number is None:
        raise BadRow("not_a_number", f"{column} is {_shown(cell)}; a bound needs a number")
    return number


def _shown(cell: Any) -> str:
    if isinstance(cell, dict | list):
        return "an object" if isinstance(cell, dict) else "a list"
    return "null" if cell is None else repr(cell)[:SHOWN_CHARACTERS]


def _in_words(criterion: Criterion) -> str:
    name, value = criterion
    words = {"equals": "", "is_not": "anything but ", "one_of": "one of ", "at_least": "at least ", "at_most": "at most "}
    values = value if isinstance(value, tuple) else (value,)
    return words[name] + ", ".join(f"{one:g}" if type(one) is float else repr(one) for one in values)


Keys = NDArray[np.uint64]


class Quota:
    """Admits the first so many of each key. What it remembers are 12 bytes for each different key.

    Args:
        most: how many of each key.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._runs: list[_Run] = []  # each less than half of the one before it: few, and each key is seldom moved

    def admit(self, keys: Keys) -> NDArray[np.bool_]:
        """For each of some keys whether it is among the first. In order, as if they came one by one."""
        order = np.argsort(keys, kind="stable")
        different, begins, counts = np.unique(keys[order], return_index=True, return_counts=True)
        before = np.arange(len(keys)) - np.repeat(begins, counts) + np.repeat(self._seen(different), counts)
        admitted = np.empty(len(keys), np.bool_)
        admitted[order] = before < self.most
        self._remember(_Run(different, counts.astype(np.uint32)))
        return admitted

    def _seen(self, keys: Keys) -> NDArray[np.int64]:
        seen = np.zeros(len(keys), np.int64)
        for run in self._runs:
            seen += run.count(keys)
        return seen

    def _remember(self, run: "_Run") -> None:
        if not len(run.keys):
            return
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            run = run.merged(self._runs.pop())
        self._runs.append(run)


@dataclass(frozen=True, slots=True)
class _Run:
    """Different keys in order, with how many came of each."""

    keys: Keys
    counts: NDArray[np.uint32]

    def count(self, keys: Keys) -> NDArray[np.int64]:
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0).astype(np.int64)

    def merged(self, other: "_Run") -> "_Run":
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([self.counts, other.counts])).astype(np.uint32)
        return _Run(keys, counts)


@dataclass(frozen=True, slots=True)
class Marks:
    """What `dedup` and `cap` know comparisons by, 64 bits for each; either may be left empty where it is not asked for.

    That two of ten million differ and yet look the same has a chance of 3 in a million.
    """

    contents: Keys
    groups: Keys


class Limits:
    """Refuses comparisons that say what an earlier one says, then those whose value has had its share.

    What is held out is counted apart from what is trained on, so that neither takes the other's place.

    Args:
        source: whose `dedup` and `cap` hold.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._contents: dict[str, Quota] = defaultdict(lambda: Quota(1))
        self._groups: dict[str, Quota] = defaultdict(lambda: Quota(source.cap.rows if source.cap else 0))

    def refused(self, split: str, ids: Sequence[str], marks: Marks) -> list[Dropped]:
        """Those of some comparisons that do not stay, in their order; all of a source must come, in order.

        Args:
            split: where they go.
            ids: their row ids.
            marks: one for each.
        """
        left, found, cap = np.arange(len(ids)), {}, self.source.cap
        if self.source.dedup:
            is_new = self._contents[split].admit(marks.contents)
            found = dict.fromkeys(left[~is_new].tolist(), BadRow("duplicate", "an earlier row says the same"))
            left = left[is_new]
        if cap is not None:
            fits = self._groups[split].admit(marks.groups[left])
            problem = BadRow("capped", f"{cap.rows} earlier rows have its {cap.by}")
            found |= dict.fromkeys(left[~fits].tolist(), problem)
        return [dropped(ids[place], self.source.title, problem) for place, problem in sorted(found.items())]


def is_limited(source: Source) -> bool:
    """Whether a source has anything for `Limits` to do."""
    return source.dedup or source.cap is not None


def content_key(prompt_hash: int, response_hashes: Sequence[int], preferences: Sequence[Preference]) -> int:
    """64 bits of what a comparison says, whatever the order of its responses and preferences."""
    edges = sorted(
        (response_hashes[edge.winner], response_hashes[edge.loser], edge.margin, edge.probability, edge.weight)
        for edge in preferences
    )
    content = repr((prompt_hash, sorted(response_hashes), edges))
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest())


def gather(rows: Iterable[Any]) -> Iterator[Any]:
    """The same rows, comparisons with exactly equal prompts as one, in the place and under the id of the first of them.

    It has each different response once, and the preferences of all its rows, each with its margin; a preference that several rows
    state weighs as much as they do together, and contradictory ones are both there. A row without a prompt stays alone.

    Args:
        rows: comparisons, and anything else, which passes. All of them are held in memory: the last may belong to the first.
    """
    places: dict[Any, _Group] = {}
    in_order: list[Any] = []
    for row in rows:
        if not isinstance(row, Comparison) or not row.prompt:
            in_order.append(row)
            continue
        key = _key(row.prompt)
        if key not in places:
            places[key] = _Group()
            in_order.append(places[key])
        places[key].rows.append(row)
    return (row.comparison() if isinstance(row, _Group) else row for row in in_order)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of one prompt."""

    rows: list[Comparison] = field(default_factory=list)

    def comparison(self) -> Comparison:
        first = self.rows[0]
        if len(self.rows) == 1:
            return first
        numbers: dict[Any, int] = {}
        responses: list[tuple[Message, ...]] = []
        edges: list[Preference] = []
        for row in self.rows:
            for response in row.responses:
                if numbers.setdefault(_key(response), len(responses)) == len(responses):
                    responses.append(response)
            for edge in row.preferences:
                winner, loser = (numbers[_key(row.responses[side])] for side in (edge.winner, edge.loser))
                edges.append(replace(edge, winner=winner, loser=loser, rows=edge.rows or (row.id,)))
        left_out = tuple(reason for row in self.rows for reason in row.left_out)
        whole = replace(first, responses=tuple(responses), preferences=merged(edges), left_out=left_out)
        return replace(whole, id=rows_of(whole)[0])


def _key(messages: Sequence[Message]) -> tuple[tuple[str, str, str], ...]:
    return tuple((message["role"], message["content"], text_of(message) if len(message) > 2 else "") for message in messages)


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
