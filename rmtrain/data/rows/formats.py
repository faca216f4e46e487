"""A row of a source to a comparison, as the source's format says."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rmtrain.data.comparison import Adapted, Comparison, Dropped, Preference, TokenizedComparison, common_prefix_length
from rmtrain.data.rows.cells import find_cell, require_cell, to_number
from rmtrain.data.rows.conversation import Opening, Side, Turns, opening, read_side
from rmtrain.data.rows.labels import DIGITS, judge, margin_of, preferences
from rmtrain.data.rows.messages import BadRow, decoded, kind_of
from rmtrain.data.rows.readers import Row
from rmtrain.data.rows.responses import Parts, assemble, response_key
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, Source, TokenizedSource


def pair(row: Row, source: PairSource) -> Parts:
    """The parts of a row's comparison, chosen responses first.

    Raises:
        BadRow: why there are none.
    """
    chosen, rejected = (_sides(row, column, source) for column in (source.chosen, source.rejected))
    opened, sides = opening(row, source), [*chosen, *rejected]
    opened.refuse_repeated(sides)
    conversations = [opened.conversation(side) for side in sides]
    edges = product(range(len(chosen)), range(len(chosen), len(sides)))
    parts = assemble(conversations, [Preference(winner, loser) for winner, loser in edges], source)
    margin = margin_of(row, source.number_columns, source.margin_default)
    if not margin:
        return parts
    return parts._replace(preferences=tuple(_with_margin(edge, margin) for edge in parts.preferences))


def _with_margin(edge: Preference, margin: float) -> Preference:
    return Preference(edge.winner, edge.loser, margin, weight=edge.weight)


def _sides(row: Row, column: str, source: PairSource) -> list[Side]:
    side = read_side(row, column, source)
    if not source.lists or not isinstance(side.cell, list):
        return [side]
    if not side.cell:
        raise BadRow("empty_cell", f"{column} is an empty list")
    return [Side(f"{column}.{number}", item) for number, item in enumerate(side.cell)]


TIE = "tie"


def ab(row: Row, source: AbSource) -> Parts:
    """The parts of a row's comparison. Of a tie, unless it is dropped, a is response 0.

    Raises:
        BadRow: why there are none; `tie` where the label says so and `source.tie` is not `half`.
    """
    outcome, strength = judge(row, source.label)
    if outcome == TIE and source.tie != "half":
        raise BadRow(TIE, "the label says that neither is better")
    sides = [read_side(row, column, source) for column in (source.a, source.b)]
    opened = opening(row, source)
    opened.refuse_repeated(sides)
    conversations = [opened.conversation(side) for side in (reversed(sides) if outcome == "b" else sides)]
    if outcome == TIE:
        return assemble(conversations, [Preference(0, 1, probability=0.5)], source)
    parts = assemble(conversations, [Preference(0, 1)], source)
    margin = strength if source.margin_from_label else _margin(row, source, outcome == "b")
    if margin == math.inf:
        raise BadRow("bad_margin", "the difference of the scores is too large")
    return parts._replace(preferences=(Preference(0, 1, margin),))


def _margin(row: Row, source: AbSource, b_is_better: bool) -> float:
    columns = source.number_columns
    return margin_of(row, columns[::-1] if b_is_better else columns, source.margin_default)


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


TOKEN_COLUMNS = (
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    ("chosen_ids", "rejected_ids", None, None),
)


def tokenized(row: Row, source: TokenizedSource, row_id: str) -> TokenizedComparison:
    """The comparison of a row of tokens; its prompt is what both sides begin with.

    Raises:
        BadRow: why there is none.
    """
    for chosen, rejected, chosen_mask, rejected_mask in TOKEN_COLUMNS:
        absent = [column for column in (chosen, rejected) if row.get(column) is None]
        if len(absent) == 1:
            raise BadRow("one_response", f"no tokens in {absent[0]}; a comparison needs two responses")
        if not absent:
            sequences = (_tokens(row, chosen, chosen_mask), _tokens(row, rejected, rejected_mask))
            prefix = common_prefix_length(sequences)
            edge = Preference(0, 1, margin_of(row, source.number_columns, source.margin_default))
            return TokenizedComparison(row_id, source.title, sequences, prefix, prefix, (edge,))
    expected = " or ".join(f"{chosen}, {rejected}" for chosen, rejected, _, _ in TOKEN_COLUMNS)
    raise BadRow("missing_column", f"expected columns {expected}; it has: {', '.join(map(str, row))}")


def _tokens(row: Row, column: str, mask_column: str | None) -> list[int]:
    tokens, mask = row[column], row.get(mask_column or "")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise BadRow("not_tokens", f"{column}: expected a list of token ids")
    if mask is not None:
        if not isinstance(mask, list) or len(mask) != len(tokens) or not all(value in (0, 1) for value in mask):
            raise BadRow("not_tokens", f"{mask_column}: expected one 0 or 1 for each token of {column}")
        tokens = [token for token, real in zip(tokens, mask, strict=True) if real]
    if not tokens:
        raise BadRow("empty_response", f"{column} is empty")
    return tokens


def adapt(row: Row, row_id: str, source: Source) -> Adapted:
    """The comparison of a row, or why it is dropped; of a row that is one response to be grouped with others, a `Candidate`.

    Args:
        row: its columns.
        row_id: its title and number in the source, `tag:12`.
        source: which columns hold what.
    """
    try:
        match source:
            case PairSource():
                return Comparison(row_id, source.title, *pair(row, source))
            case AbSource():
                return Comparison(row_id, source.title, *ab(row, source))
            case RankedSource() if source.group_by is not None:
                return candidate(row, source, row_id)
            case RankedSource():
                return Comparison(row_id, source.title, *ranked(row, source, row_id))
            case TokenizedSource():
                return tokenized(row, source, row_id)
    except BadRow as problem:
        return Dropped(row_id, source.title, problem.reason, problem.detail)
