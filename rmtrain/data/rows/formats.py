"""Rows to comparisons, by the format of their source: pair, ab, ranked (a list in each row, or a row for each response), tokenized."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rmtrain.data.comparison import (
    Adapted,
    BadRow,
    Comparison,
    Dropped,
    Preference,
    TokenizedComparison,
    Turns,
    common_prefix_length,
    dropped,
)
from rmtrain.data.rows.cells import MISSING, find_cell, require_cell, to_number
from rmtrain.data.rows.conversation import ResponseCell, read_prompt, read_response
from rmtrain.data.rows.labels import DIGITS, judge, margin_of, preferences
from rmtrain.data.rows.messages import decode_cell, kind_of
from rmtrain.data.rows.readers import Row
from rmtrain.data.rows.responses import Parts, assemble, in_groups, response_key
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, Source, TokenizedSource

TIE = "tie"
TOKEN_COLUMNS = (
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    ("chosen_ids", "rejected_ids", None, None),
)


def adapt(row: Row, row_id: str, source: Source) -> Adapted:
    """Return the comparison of a row, or why it is dropped; a `Candidate` for a row that is one response of a group.

    Args:
        row: the row.
        row_id: the tag of its source and its number there, `tag:12`.
        source: the names of its columns.
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
        return dropped(row_id, source.title, problem)


def pair(row: Row, source: PairSource) -> Parts:
    """Return the parts of a pair's comparison, chosen responses first.

    Raises:
        BadRow: the row cannot be used.
    """
    chosen, rejected = (_listed(row, column, source) for column in (source.chosen, source.rejected))
    prompt, cells = read_prompt(row, source), [*chosen, *rejected]
    prompt.refuse_repeated(cells)
    conversations = [prompt.conversation(cell) for cell in cells]
    edges = product(range(len(chosen)), range(len(chosen), len(cells)))
    parts = assemble(conversations, [Preference(winner, loser) for winner, loser in edges], source)
    margin = margin_of(row, source.number_columns, source.margin_default)
    return parts._replace(preferences=tuple(replace(edge, margin=margin) for edge in parts.preferences)) if margin else parts


def _listed(row: Row, column: str, source: PairSource) -> list[ResponseCell]:
    response = read_response(row, column, source)
    if not source.lists or not isinstance(response.cell, list):
        return [response]
    if not response.cell:
        raise BadRow("empty_cell", f"{column} is an empty list")
    return [ResponseCell(f"{column}.{number}", item) for number, item in enumerate(response.cell)]


def ab(row: Row, source: AbSource) -> Parts:
    """Return the parts of a comparison of two candidates, the better one first; of a tie that is kept, a is first.

    Raises:
        BadRow: the row cannot be used; `tie` where the label says so and `source.tie` is not `half`.
    """
    outcome, strength = judge(row, source.label)
    if outcome == TIE and source.tie != "half":
        raise BadRow(TIE, "the label says that neither is better")
    cells = [read_response(row, column, source) for column in (source.a, source.b)]
    prompt = read_prompt(row, source)
    prompt.refuse_repeated(cells)
    conversations = [prompt.conversation(cell) for cell in (reversed(cells) if outcome == "b" else cells)]
    if outcome == TIE:
        return assemble(conversations, [Preference(0, 1, probability=0.5)], source)
    parts = assemble(conversations, [Preference(0, 1)], source)
    columns = source.number_columns[::-1] if outcome == "b" else source.number_columns  # the better side's score comes first
    margin = strength if source.margin_from_label else margin_of(row, columns, source.margin_default)
    if margin == math.inf:
        raise BadRow("bad_margin", "the difference of the scores is infinite")
    return parts._replace(preferences=(Preference(0, 1, margin),))


@dataclass(frozen=True, slots=True)
class ScoredConversation:
    """A response as a whole conversation, and its score."""

    turns: Turns
    score: float


def ranked(row: Row, source: RankedSource, row_id: str) -> Parts:
    """Return the parts of the comparison of a row with a list of responses; `left_out` counts those that cannot be used.

    Raises:
        BadRow: the row cannot be used; where fewer than two responses are left, the problem of the first that was left out.
    """
    assert source.responses is not None, "a source of lists names them"
    column = read_response(row, source.responses, source)
    if not isinstance(column.cell, list):
        raise BadRow("not_a_list", f"{column.name} is {kind_of(column.cell)}; expected a list of responses")
    prompt, count = read_prompt(row, source), len(column.cell)
    usable: list[ScoredConversation] = []
    problems: list[BadRow] = []
    for number, item in enumerate(column.cell):
        try:
            cell = _response_in(item, f"{column.name}.{number}", source)
            score = _score(item, row, source, cell.name, (number, count))
            usable.append(ScoredConversation(prompt.conversation(cell), score))
        except BadRow as problem:
            problems.append(problem)
    # equal responses may have different scores; the first one counts
    different: dict[tuple[tuple[str, str], ...], ScoredConversation] = {}
    for response in usable:
        different.setdefault(response_key(response.turns), response)
    if len(different) < 2:
        if problems:
            raise BadRow(problems[0].reason, f"{problems[0].detail}; fewer than two of {count} responses can be used")
        if len(usable) > 1:
            raise BadRow("identical", "the responses are the same")
        raise BadRow("one_response", f"{count} responses; a comparison needs two")
    responses = list(different.values())
    edges = preferences([response.score for response in responses], source, row_id)
    return _best_first(responses, edges, source)._replace(left_out=tuple(problem.reason for problem in problems))


def _response_in(item: Any, name: str, source: RankedSource) -> ResponseCell:
    """Return the response in an item of a list, or in a row."""
    if source.response is None:
        return ResponseCell(name, item)
    where = source.response if source.responses is None else f"{name}.{source.response}"
    cell = find_cell(item, source.response, MISSING)
    if cell is MISSING:
        raise BadRow("missing_column", f"{where} is missing")
    return ResponseCell(where, cell)


def _score(item: Any, row: Row, source: RankedSource, name: str, place: tuple[int, int]) -> float:
    """Return the weighted sum of the scores of an item, each from the item or from a list of the row with one score for each item.

    Args:
        item, row: the item of the list, and the whole row.
        source: the paths of the scores.
        name: the response, for the error.
        place: the number of the item, and the number of items.
    """
    total = 0.0
    for path, weight in ({source.score: 1.0} if isinstance(source.score, str) else source.score).items():
        cell = find_cell(item, path, MISSING)
        if cell is MISSING:
            column, (number, count) = decode_cell(find_cell(row, path), path, source.messages), place
            cell = column[number] if isinstance(column, list) and len(column) == count > 0 else None
        score = to_number(cell)
        if score is None:
            shown = "null or missing" if cell is None else repr(str(cell)[:40])
            raise BadRow("no_score", f"{path} of {name} is {shown}; expected a number")
        total += weight * score
    total = round(total, DIGITS)
    if not math.isfinite(total):
        raise BadRow("no_score", f"the score of {name} is infinite")
    return total


def _best_first(responses: Sequence[ScoredConversation], edges: Sequence[Preference], source: RankedSource) -> Parts:
    """Return the parts of a comparison of the responses that have a preference, the best first."""
    used = {number for edge in edges for number in (edge.winner, edge.loser)}
    sign = 1.0 if source.lower_is_better else -1.0
    # response 0 is the best one, as in a pair
    order = sorted(used, key=lambda number: (sign * responses[number].score, number))
    place = {number: rank for rank, number in enumerate(order)}
    moved = [replace(edge, winner=place[edge.winner], loser=place[edge.loser]) for edge in edges]
    return assemble([responses[number].turns for number in order], moved, source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Comparison):
    """A row that is one response, without preferences yet: it is compared with the others of its `group` (a JSON text).

    Until then its prompt is all but its last message. `named_prompt` is the explicit prompt of the row, if it has one.
    """

    group: str
    score: float
    named_prompt: Turns

    @property
    def turns(self) -> Turns:
        """The whole conversation."""
        return (*self.prompt, *self.responses[0])


def candidate(row: Row, source: RankedSource, row_id: str) -> Candidate:
    """Return the response of a row that is one.

    Raises:
        BadRow: the row cannot be used.
    """
    assert source.group_by is not None, "a source of single responses names the column that groups them"
    group, prompt = require_cell(row, source.group_by), read_prompt(row, source)
    if group is None:
        raise BadRow("empty_cell", f"{source.group_by} is null")
    cell = _response_in(row, source.response or "", source)
    score = _score(row, row, source, cell.name, (0, 0))
    *before, reply = prompt.conversation(cell)
    key = json.dumps(group, sort_keys=True, default=str)  # cells may be lists or objects, which cannot be keys
    return Candidate(
        row_id, source.title, tuple(before), ((reply,),), (), group=key, score=score, named_prompt=prompt.turns or ()
    )


def grouped(rows: Iterable[Adapted], source: RankedSource) -> Iterator[Adapted]:
    """Yield the comparison of each group in the place of its first row, and each row that is in no comparison with the reason.

    A row is in the comparison where its response has a preference.

    Args:
        rows: candidates, and anything else, which is passed through. All are held in memory.
        source: its policy and so on.
    """
    for group in in_groups(rows, lambda row: row.group if isinstance(row, Candidate) else None):
        candidates = [row for row in group if isinstance(row, Candidate)]
        yield from _compare(candidates, source) if candidates else group


def _compare(group: Sequence[Candidate], source: RankedSource) -> Iterator[Comparison | Dropped]:
    problems: dict[str, BadRow] = {}
    owners: dict[tuple[tuple[str, str], ...], str] = {}
    usable: list[Candidate] = []
    for row in group:
        owner = owners.setdefault(response_key(row.turns), row.id)
        if response_key(row.named_prompt) != response_key(group[0].named_prompt):
            problems[row.id] = BadRow("different_prompts", f"{group[0].id} has the same {source.group_by} and another prompt")
        elif owner != row.id:
            problems[row.id] = BadRow("identical", f"{owner} has the same response")
        else:
            usable.append(row)
    try:
        if len(usable) < 2:
            raise BadRow("one_response", f"no other usable row has the same {source.group_by}")
        edges = preferences([row.score for row in usable], source, group[0].id)
        edges = tuple(replace(edge, rows=(usable[edge.winner].id, usable[edge.loser].id)) for edge in edges)
        parts = _best_first([ScoredConversation(row.turns, row.score) for row in usable], edges, source)
    except BadRow as problem:
        problems |= {row.id: problem for row in usable}
    else:
        used = {row_id for edge in parts.preferences for row_id in edge.rows}
        unused = BadRow("not_paired", f"policy {source.policy} makes no preference with its response")
        problems |= {row.id: unused for row in usable if row.id not in used}
        yield Comparison(next(row.id for row in usable if row.id in used), source.title, *parts)
    for row in group:
        if row.id in problems:
            yield dropped(row.id, row.source, problems[row.id])


def tokenized(row: Row, source: TokenizedSource, row_id: str) -> TokenizedComparison:
    """Return the comparison of a row of tokens; its prompt is the common prefix of both sequences.

    Raises:
        BadRow: the row cannot be used.
    """
    for chosen, rejected, chosen_mask, rejected_mask in TOKEN_COLUMNS:
        missing = [column for column in (chosen, rejected) if row.get(column) is None]
        if len(missing) == 1:
            raise BadRow("one_response", f"no tokens in {missing[0]}; a comparison needs two responses")
        if not missing:
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
