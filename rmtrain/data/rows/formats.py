"""Rows to comparisons, by the format of their source: pair, ab, ranked (a list in each row, or a row for each response), scored, tokenized.

Preferences come from labels, scores and margins: the better of two candidates, the pairs among scored responses, and by how much. Targets
are numbers of single responses.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import combinations, groupby, pairwise, product
from typing import Any

from rmtrain.data.comparison import (
    Adapted,
    BadRow,
    Comparison,
    Preference,
    Target,
    TokenizedComparison,
    Turns,
    common_prefix_length,
    dropped,
)
from rmtrain.data.rows.conversation import ResponseCell, ResponseKey, assemble, read_prompt, read_response, response_key
from rmtrain.data.rows.labels import DIGITS, SHOWN_CHARACTERS, TIE, judge, to_score
from rmtrain.data.rows.messages import (
    MISSING,
    decode_cell,
    decode_messages,
    find_cell,
    is_blank,
    is_turns,
    kind_of,
    require_cell,
    template_values,
    to_number,
)
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.preference_labels import label_text
from rmtrain.recipe.schema import AbSource, PairSource, RankedSource, ScoredSource, Source, TokenizedSource

TOKEN_COLUMNS = (
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    ("chosen_ids", "rejected_ids", None, None),
)


def adapt(row: Row, row_id: str, source: Source) -> Adapted:
    """Return the comparison of a row, or why it is dropped; a `Candidate` for a row that is one response of a group.

    `row_id` is the tag of the source and the row's number there, `tag:12`.
    """
    try:
        match source:
            case PairSource():
                comparison = _pair(row, source, row_id)
            case AbSource():
                comparison = _ab(row, source, row_id)
            case RankedSource():
                comparison = (_ranked if source.group_by is None else _candidate)(row, source, row_id)
            case ScoredSource():
                comparison = _scored(row, source, row_id)
            case TokenizedSource():
                return replace(_tokenized(row, source, row_id), weight=_weight(row, source))
        columns = tuple(name for name, cell in row.items() if not is_blank(cell) and cell not in ([], {}))
        return replace(comparison, variables=template_values(row, source), columns=columns, weight=_weight(row, source))
    except BadRow as problem:
        return dropped(row_id, source.title, problem)


def _weight(row: Row, source: Source) -> float:
    """Return the weight of a row; raises BadRow `bad_weight` or, for a row that would add nothing, `zero_weight`."""
    if source.weight is None:
        return 1.0
    cell = find_cell(row, source.weight)
    weight = to_number(cell)
    if weight is None or weight < 0:
        shown = "null or missing" if is_blank(cell) else repr(str(cell)[:SHOWN_CHARACTERS])
        raise BadRow("bad_weight", f"{source.weight} is {shown}; expected a finite number of at least 0")
    if weight == 0:
        raise BadRow("zero_weight", f"{source.weight} is 0")
    return weight


def _pair(row: Row, source: PairSource, row_id: str) -> Comparison:
    """Return the comparison of a pair, chosen responses first."""
    chosen, rejected = (_listed(row, column, source) for column in (source.chosen, source.rejected))
    conversations = _conversations(row, [*chosen, *rejected], source)
    edges = product(range(len(chosen)), range(len(chosen), len(conversations)))
    pair = assemble(conversations, [Preference(winner, loser) for winner, loser in edges], source, row_id)
    margin = margin_of(row, source.number_columns, source.margin_default)
    return replace(pair, preferences=tuple(replace(edge, margin=margin) for edge in pair.preferences)) if margin else pair


def _conversations(row: Row, cells: Sequence[ResponseCell], source: PairSource | AbSource) -> list[Turns]:
    """Return the conversation of each response.

    Where no prompt is named, a text next to a list of messages replaces its last turn, such as `rejected_response` next to `messages`.
    """
    prompt = read_prompt(row, source)
    whole = next((cell for cell in cells if isinstance(cell.cell, list) and not is_turns(cell.cell)), None)
    if prompt.turns is None and whole is not None and any(isinstance(cell.cell, str) for cell in cells):
        prompt = replace(prompt, turns=prompt.conversation(whole)[:-1])
    return prompt.conversations(cells)


def _listed(row: Row, column: str, source: PairSource) -> list[ResponseCell]:
    response = read_response(row, column, source)
    if not source.lists or not isinstance(response.cell, list):
        return [response]
    if not response.cell:
        raise BadRow("empty_cell", f"{column} is an empty list")
    return [ResponseCell(f"{column}.{number}", item) for number, item in enumerate(response.cell)]


def _ab(row: Row, source: AbSource, row_id: str) -> Comparison:
    """Return the comparison of two candidates, the better one first; of a tie that is kept, a is first."""
    outcome, strength, probability = judge(row, source.label)
    if outcome == TIE and source.tie != "half" and not source.label.is_soft:
        raise BadRow(TIE, "the label says that neither is better")
    cells = [read_response(row, column, source) for column in (source.a, source.b)]
    conversations = _conversations(row, cells[::-1] if outcome == "b" else cells, source)
    if outcome == TIE:
        return assemble(conversations, [Preference(0, 1, probability=0.5)], source, row_id)
    compared = assemble(conversations, [Preference(0, 1)], source, row_id)
    columns = source.number_columns[::-1] if outcome == "b" else source.number_columns  # the better side's score comes first
    margin = strength if source.margin_from_label else margin_of(row, columns, source.margin_default)
    if margin == math.inf:
        raise BadRow("bad_margin", "the difference of the scores is infinite")
    return replace(compared, preferences=(Preference(0, 1, margin, probability),), winners=(outcome,))


def margin_of(row: Row, columns: Sequence[str], default: float | None) -> float:
    """Return the margin of a row, finite and not negative; raises BadRow `bad_margin`.

    Args:
        row: the row.
        columns: none, for a margin of 0; the column of the margin; or the score columns of the better response and of the other.
        default: the margin where a cell is null or missing; None: that is an error.
    """
    if not columns:
        return 0.0
    values: list[float] = []
    for column in columns:
        cell = find_cell(row, column)
        if cell is None:
            continue
        number = None if isinstance(cell, str) else to_number(cell) if len(columns) == 1 else to_score(cell)
        if number is None:
            raise BadRow("bad_margin", f"{column}: expected a finite number, got {str(cell)[:SHOWN_CHARACTERS]!r}")
        values.append(number)
    if len(values) < len(columns):
        if default is None:
            raise BadRow("bad_margin", f"no number in {' or '.join(columns)}; set margin_default, or remove the row")
        return default
    margin = values[0] if len(values) == 1 else values[0] - values[1]
    if not 0 <= margin < math.inf:
        raise BadRow("bad_margin", f"expected at least 0, got {margin:g}")
    return margin


def _ranked(row: Row, source: RankedSource, row_id: str) -> Comparison:
    """Return the comparison of a list of responses; where fewer than two can be used, raise the problem of the first that cannot."""
    assert source.responses is not None, "a source of lists names them"
    column = read_response(row, source.responses, source)
    if not isinstance(column.cell, list):
        raise BadRow("not_a_list", f"{column.name} is {kind_of(column.cell)}; expected a list of responses")
    prompt, count = read_prompt(row, source), len(column.cell)
    usable: list[tuple[Turns, float]] = []
    problems: list[BadRow] = []
    for number, item in enumerate(column.cell):
        try:
            cell = _response_in(item, f"{column.name}.{number}", source)
            score = _score(item, row, source, cell.name, (number, count))
            usable.append((prompt.conversation(cell), score))
        except BadRow as problem:
            problems.append(problem)
    # equal responses may have different scores; the first one counts
    different: dict[ResponseKey, tuple[Turns, float]] = {}
    for conversation, score in usable:
        different.setdefault(response_key(conversation), (conversation, score))
    if len(different) < 2:
        if problems:
            raise BadRow(problems[0].reason, f"{problems[0].detail}; fewer than two of {count} responses can be used")
        if len(usable) > 1:
            raise BadRow("identical", "the responses are the same")
        raise BadRow("one_response", f"{count} responses; a comparison needs two")
    conversations, scores = zip(*different.values(), strict=True)
    comparison = compare_scored(conversations, scores, source, row_id)
    return replace(comparison, left_out=tuple(problem.reason for problem in problems))


def _response_in(item: Any, name: str, source: RankedSource | ScoredSource) -> ResponseCell:
    """Return the response in an item of a list, or in a row."""
    if source.response is None:
        return ResponseCell(name, item)
    where = source.response if source.responses is None else f"{name}.{source.response}"
    cell = find_cell(item, source.response, MISSING)
    if cell is MISSING:
        raise BadRow("missing_column", f"{where} is missing")
    return ResponseCell(where, decode_messages(cell, where, source.messages))


def _number_for(item: Any, path: str, row: Row, source: RankedSource | ScoredSource, place: tuple[int, int]) -> Any:
    """Return the cell with an item's number: in the item, or in a list of the row with one for each item; None: there is none.

    `place` is the number of the item, and the number of items.
    """
    cell = find_cell(item, path, MISSING)
    if cell is not MISSING:
        return cell
    column, (number, count) = decode_cell(find_cell(row, path), path, source.messages), place
    return column[number] if isinstance(column, list) and len(column) == count > 0 else None


def _score(item: Any, row: Row, source: RankedSource, name: str, place: tuple[int, int]) -> float:
    """Return the weighted sum of the scores of an item, each from the item or from a list of the row with one score for each item.

    `place` is the number of the item, and the number of items.
    """
    total = 0.0
    for path, weight in ({source.score: 1.0} if isinstance(source.score, str) else source.score).items():
        cell = _number_for(item, path, row, source, place)
        score = to_score(cell)
        if score is None:
            shown = "null or missing" if cell is None else repr(str(cell)[:SHOWN_CHARACTERS])
            raise BadRow("no_score", f"{path} of {name} is {shown}; expected a number")
        total += weight * score
    total = round(total, DIGITS)
    if not math.isfinite(total):
        raise BadRow("no_score", f"the score of {name} is infinite")
    return total


def compare_scored(
    conversations: Sequence[Turns], scores: Sequence[float], source: RankedSource, row_id: str, rows: Sequence[str] = ()
) -> Comparison:
    """Return the comparison of the responses that have a preference, the best first.

    No two conversations are equal. `rows` are the ids of their rows, where each has its own. Raises BadRow as `preferences` and `assemble`.
    """
    edges = preferences(scores, source, row_id)
    used = {number for edge in edges for number in (edge.winner, edge.loser)}
    sign = 1.0 if source.lower_is_better else -1.0
    # response 0 is the best one, as in a pair
    order = sorted(used, key=lambda number: (sign * scores[number], number))
    place = {number: rank for rank, number in enumerate(order)}
    moved = []
    for edge in edges:
        its_rows = (rows[edge.winner], rows[edge.loser]) if rows else ()
        moved.append(replace(edge, winner=place[edge.winner], loser=place[edge.loser], rows=its_rows))
    return assemble([conversations[number] for number in order], moved, source, row_id)


def preferences(scores: Sequence[float], source: RankedSource, name: str) -> tuple[Preference, ...]:
    """Return the preferences that the source's policy makes of finite scores, those of the best responses first.

    `max_pairs` draws by `name`, the row id. Raises BadRow `tie` (all are equal), `below_min_gap` (none differ enough) or `bad_margin` (a
    difference is infinite).
    """
    pairs = _pairs(scores, source)
    if not pairs:
        raise BadRow("tie", f"all {len(scores)} responses have the score {scores[0]:g}")
    gaps = {(winner, loser): round(abs(scores[winner] - scores[loser]), DIGITS) for winner, loser in pairs}
    if source.min_gap is not None:
        pairs = [pair for pair in pairs if gaps[pair] >= source.min_gap]
        if not pairs:
            largest = max(gaps.values())
            raise BadRow("below_min_gap", f"the largest difference of scores is {largest:g}, less than {source.min_gap:g}")
    if source.margin_from_score and math.inf in gaps.values():
        raise BadRow("bad_margin", "the difference of two scores is infinite")
    if source.max_pairs is not None and len(pairs) > source.max_pairs:
        # drawn by hash, so that a row keeps its pairs wherever it is read
        hashes = {pair: blake2b(f"{name} {pair[0]} {pair[1]}".encode()).digest() for pair in pairs}
        drawn = set(sorted(pairs, key=hashes.__getitem__)[: source.max_pairs])
        pairs = [pair for pair in pairs if pair in drawn]
    return tuple(Preference(*pair, gaps[pair] if source.margin_from_score else 0.0) for pair in pairs)


def _pairs(scores: Sequence[float], source: RankedSource) -> list[tuple[int, int]]:
    """Return pairs of responses with different scores, the better one first; among equal bests or worsts, the first one listed."""
    numbers = sorted(range(len(scores)), key=lambda number: scores[number], reverse=not source.lower_is_better)
    levels = [list(level) for _, level in groupby(numbers, key=lambda number: scores[number])]
    if len(levels) == 1:
        return []
    match source.policy:
        case "best_worst":
            return [(levels[0][0], levels[-1][0])]
        case "best_vs_rest":
            return [(levels[0][0], worse) for level in levels[1:] for worse in level]
        case "adjacent":
            return [pair for better, worse in pairwise(levels) for pair in product(better, worse)]
        case "all":
            return [pair for better, worse in combinations(levels, 2) for pair in product(better, worse)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Comparison):
    """A row that is one response, to be compared with the others of its group. Until then its prompt is all but its last message."""

    group: str
    """The cell of `group_by`, as JSON."""
    score: float
    named_prompt: Turns
    """The explicit prompt of the row, if it has one."""

    @property
    def turns(self) -> Turns:
        """The whole conversation."""
        return (*self.prompt, *self.responses[0])


def _candidate(row: Row, source: RankedSource, row_id: str) -> Candidate:
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


def _scored(row: Row, source: ScoredSource, row_id: str) -> Comparison:
    """Return a row's responses with their targets; where none can be used, raise the problem of the first."""
    prompt = read_prompt(row, source)
    if source.responses is None:
        value = _target(find_cell(row, source.target), source.target, source)
        return assemble([prompt.conversation(_response_in(row, "", source))], (), source, row_id, [Target(0, value)])
    column = read_response(row, source.responses, source)
    if not isinstance(column.cell, list):
        raise BadRow("not_a_list", f"{column.name} is {kind_of(column.cell)}; expected a list of responses")
    conversations: list[Turns] = []
    targets: list[Target] = []
    problems: list[BadRow] = []
    for number, item in enumerate(column.cell):
        try:
            cell = _response_in(item, f"{column.name}.{number}", source)
            value = _target(_number_for(item, source.target, row, source, (number, len(column.cell))), cell.name, source)
            conversations.append(prompt.conversation(cell))
            targets.append(Target(len(targets), value))
        except BadRow as problem:
            problems.append(problem)
    if not targets:
        raise problems[0] if problems else BadRow("one_response", f"{column.name} is an empty list")
    comparison = assemble(conversations, (), source, row_id, targets)
    return replace(comparison, left_out=tuple(problem.reason for problem in problems))


def _target(cell: Any, name: str, source: ScoredSource) -> float:
    """Return the target that a cell states; raises BadRow `no_target` or `unknown_target`."""
    if is_blank(cell):
        raise BadRow("no_target", f"{source.target} of {name} is null, empty or missing")
    number = source.numbers.get(label_text(cell)) if source.values else to_score(cell)
    if number is None:
        expected = (
            f"one of {', '.join(source.values)}, see values" if source.values else "a finite number; name words in `values`"
        )
        reason = "unknown_target" if source.values else "no_target"
        raise BadRow(reason, f"{source.target} is {str(cell)[:SHOWN_CHARACTERS]!r}; expected {expected}")
    target = source.scale * number + source.offset
    if not math.isfinite(target):
        raise BadRow("no_target", f"{source.target} of {name} is infinite with this scale")
    return target


def _tokenized(row: Row, source: TokenizedSource, row_id: str) -> TokenizedComparison:
    """Return the comparison of a row of tokens; its prompt is the common prefix of both sequences."""
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
