"""Rows with a list of scored responses, and rows that are one scored response each, to comparisons; the best response comes first."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rmtrain.data.comparison import Adapted, Comparison, Dropped, Preference
from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.assemble import Parts, assemble, response_key
from rmtrain.data.rows.conversation import Opening, Side, Turns, opening, read_side
from rmtrain.data.rows.labels import DIGITS
from rmtrain.data.rows.lookup import find_cell, require_cell, to_number
from rmtrain.data.rows.messages import BadRow, decoded, kind_of
from rmtrain.data.rows.policies import preferences
from rmtrain.recipe.schema import RankedSource

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Scored:
    """A response as a whole conversation, and its score."""

    conversation: Turns
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Comparison):
    """A row that is one response, with no preferences yet: to be compared with the others whose `group` is the same text.

    Until then its prompt is all but its last message. `explicit` is the prompt that the row names, if it names one.
    """

    group: str
    score: float
    explicit: Turns | None

    @property
    def conversation(self) -> Turns:
        """All of its messages."""
        return (*self.prompt, *self.responses[0])


def ranked(row: Row, source: RankedSource, row_id: str) -> Parts:
    """The parts of the comparison of a row that holds a list of responses. A response that cannot be used is left out, and said to be.

    Raises:
        BadRow: why there are none; where less than two responses are left, that of the first that is not.
    """
    assert source.responses is not None, "a source of lists names them"
    side = read_side(row, source.responses, source)
    if not isinstance(side.cell, list):
        raise BadRow("not_a_list", f"{side.name} is {kind_of(side.cell)}; expected a list of responses")
    opened, scored, problems = opening(row, source), list[Scored](), list[BadRow]()
    for number, item in enumerate(side.cell):
        try:
            scored.append(_scored(_side(item, f"{side.name}.{number}", source), item, opened, row, (number, len(side.cell))))
        except BadRow as problem:
            problems.append(problem)
    first: dict[tuple[tuple[str, str], ...], Scored] = {}
    for each in scored:
        first.setdefault(response_key(each.conversation), each)
    different = list(first.values())
    if len(different) < 2:
        raise _too_few(len(side.cell), scored, problems)
    edges = preferences([each.score for each in different], source, row_id)
    return _assembled(different, edges, source)._replace(left_out=tuple(problem.reason for problem in problems))


def _too_few(listed: int, scored: Sequence[Scored], problems: Sequence[BadRow]) -> BadRow:
    if problems:
        return BadRow(problems[0].reason, f"{problems[0].detail}; of {listed} responses less than two are left")
    if len(scored) > 1:
        return BadRow("identical", "the responses are the same")
    return BadRow("one_response", f"{listed} responses; a comparison needs two")


def candidate(row: Row, source: RankedSource, row_id: str) -> Candidate:
    """The response of a row that is one.

    Raises:
        BadRow: why it cannot be used.
    """
    assert source.group_by is not None, "a source of single responses says which belong together"
    group, opened = require_cell(row, source.group_by), opening(row, source)
    if group is None:
        raise BadRow("empty_cell", f"{source.group_by} is null")
    side = _side(row, source.response or "", source)
    response = _scored(side, row, opened, row, (0, 0))
    prompt, reply = response.conversation[:-1], response.conversation[-1:]
    key = json.dumps(group, sort_keys=True, default=str)
    return Candidate(row_id, source.title, prompt, (reply,), (), group=key, score=response.score, explicit=opened.prompt)


def grouped(rows: Iterable[Adapted], source: RankedSource) -> Iterator[Adapted]:
    """The comparison of each group in the place of its first row, and each row that is in none with the reason.

    A row is in the comparison where a preference is about its response.

    Args:
        rows: candidates, and anything else, which passes. All of them are held in memory.
        source: policy and so on.
    """
    places: dict[str, list[Candidate]] = {}
    in_order: list[list[Candidate] | Adapted] = []
    for row in rows:
        if not isinstance(row, Candidate):
            in_order.append(row)
        elif row.group in places:
            places[row.group].append(row)
        else:
            places[row.group] = [row]
            in_order.append(places[row.group])
    for item in in_order:
        if isinstance(item, list):
            yield from _group(item, source)
        else:
            yield item


def _group(rows: Sequence[Candidate], source: RankedSource) -> Iterator[Comparison | Dropped]:
    left, lost = _comparable(rows, source)
    try:
        if len(left) < 2:
            raise BadRow("one_response", f"no other row that can be used has the same {source.group_by}")
        edges = preferences([row.score for row in left], source, rows[0].id)
        responses = [Scored(row.conversation, row.score) for row in left]
        parts = _assembled(responses, _with_rows(edges, left), source)
    except BadRow as problem:
        lost.update({row.id: problem for row in left})
    else:
        used = {row_id for edge in parts.preferences for row_id in edge.rows}
        unused = BadRow("not_paired", f"policy {source.policy} makes no preference about it")
        lost.update({row.id: unused for row in left if row.id not in used})
        yield Comparison(next(row.id for row in left if row.id in used), source.title, *parts)
    for row in rows:
        if row.id in lost:
            yield Dropped(row.id, row.source, lost[row.id].reason, lost[row.id].detail)


def _comparable(rows: Sequence[Candidate], source: RankedSource) -> tuple[list[Candidate], dict[str, BadRow]]:
    """The rows of a group that have its first prompt and a response of their own, and what is wrong with the others."""
    left: list[Candidate] = []
    lost: dict[str, BadRow] = {}
    owners: dict[tuple[tuple[str, str], ...], str] = {}
    for row in rows:
        owner = owners.setdefault(response_key(row.conversation), row.id)
        if _asked(row) != _asked(rows[0]):
            detail = f"{rows[0].id} has the same {source.group_by} and another prompt"
            lost[row.id] = BadRow("different_prompts", detail)
        elif owner != row.id:
            lost[row.id] = BadRow("identical", f"{owner} has the same response")
        else:
            left.append(row)
    return left, lost


def _asked(row: Candidate) -> tuple[tuple[str, str], ...]:
    return response_key(row.explicit or ())


def _with_rows(edges: Sequence[Preference], rows: Sequence[Candidate]) -> list[Preference]:
    return [replace(edge, rows=(rows[edge.winner].id, rows[edge.loser].id)) for edge in edges]


def _assembled(responses: Sequence[Scored], edges: Sequence[Preference], source: RankedSource) -> Parts:
    """The parts of a comparison of those responses that a preference is about, the best first."""
    used = {number for edge in edges for number in (edge.winner, edge.loser)}
    sign = 1.0 if source.lower_is_better else -1.0
    best_first = sorted(used, key=lambda number: (sign * responses[number].score, number))
    place = {number: rank for rank, number in enumerate(best_first)}
    moved = [replace(edge, winner=place[edge.winner], loser=place[edge.loser]) for edge in edges]
    return assemble([responses[number].conversation for number in best_first], moved, source)


def _side(item: Any, name: str, source: RankedSource) -> Side:
    """The response within an item of a list, or within a row."""
    if source.response is None:
        return Side(name, item)
    path = source.response
    cell = find_cell(item, path, _MISSING)
    where = name if source.responses is None else f"{name}.{path}"
    if cell is _MISSING:
        raise BadRow("missing_column", f"there is no {where}")
    return Side(where, cell)


def _scored(side: Side, item: Any, opened: Opening, row: Row, place: tuple[int, int]) -> Scored:
    source = opened.source
    assert isinstance(source, RankedSource), "only they have scores"
    weights = {source.score: 1.0} if isinstance(source.score, str) else source.score
    score = round(sum(weight * _number(path, item, row, source, side.name, place) for path, weight in weights.items()), DIGITS)
    if not math.isfinite(score):
        raise BadRow("no_score", f"the score of {side.name} is too large")
    return Scored(opened.conversation(side), score)


def _number(path: str, item: Any, row: Row, source: RankedSource, name: str, place: tuple[int, int]) -> float:
    """A number within an item, or in a list of the row with one for each item."""
    cell = find_cell(item, path, _MISSING)
    if cell is _MISSING:
        column, (number, count) = decoded(find_cell(row, path), path, source.messages), place
        cell = column[number] if isinstance(column, list) and len(column) == count > 0 else None
    found = to_number(cell)
    if found is None:
        came = "null or not there" if cell is None else repr(str(cell)[:40])
        raise BadRow("no_score", f"{path} of {name} is {came}; expected a number")
    return found
