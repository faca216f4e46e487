"""Responses that cannot stay in a comparison, and what is left of it without them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rmtrain.data.comparison import Dropped, Preference, TokenizedComparison, common_prefix_length, rows_of
from rmtrain.data.rows.conversation import Turns, is_same, split_prompt, text_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import TextSource


@dataclass(frozen=True, slots=True)
class Checked:
    """What is left of a comparison.

    row: the comparison, under the id of the first of its rows that is left; None: nothing is left.
    responses: which of its responses are left, by their numbers before.
    lost: its rows of which nothing is left.
    left_out: the reasons for which responses are gone that none of these rows counts.
    """

    row: TokenizedComparison | None
    responses: Sequence[int] = ()
    lost: tuple[Dropped, ...] = ()
    left_out: tuple[str, ...] = ()


def without(row: TokenizedComparison, faults: Mapping[int, BadRow]) -> Checked:
    """The comparison without faulty responses, with responses of the same tokens made one, and without those that no preference names.

    Args:
        row: the comparison.
        faults: for responses that cannot stay, by number, why.
    """
    same_as = _first_of_same(row)
    if not faults and same_as == list(range(len(same_as))):
        return Checked(row, same_as)
    edges: list[Preference] = []
    problems: dict[str, BadRow] = {}
    for edge in row.preferences:
        winner, loser = same_as[edge.winner], same_as[edge.loser]
        faulty = [side for side in (winner, loser) if side in faults]
        if faulty:
            problem = faults[max(faulty, key=lambda side: len(row.sequences[side]))]
        elif winner == loser:
            problem = BadRow("identical", "the responses have the same tokens")
        else:
            edges.append(replace(edge, winner=winner, loser=loser))
            continue
        problems.update(dict.fromkeys(edge.rows or (row.id,), problem))
    checked = _left(row, edges, problems)
    return checked if checked.lost else replace(checked, left_out=tuple(problem.reason for problem in faults.values()))


def _first_of_same(row: TokenizedComparison) -> list[int]:
    if len(set(map(len, row.sequences))) == len(row.sequences):
        return list(range(len(row.sequences)))
    first: dict[bytes, int] = {}
    return [first.setdefault(np.asarray(ids, np.int32).tobytes(), number) for number, ids in enumerate(row.sequences)]


def _left(row: TokenizedComparison, edges: Sequence[Preference], problems: Mapping[str, BadRow]) -> Checked:
    used, edges = pruned(edges)
    rows = rows_of(replace(row, preferences=edges))
    lost = tuple(dropped(row_id, row.source, problem) for row_id, problem in problems.items() if row_id not in rows)
    if not edges:
        return Checked(None, lost=lost)
    sequences = tuple(row.sequences[response] for response in used)
    prefix = common_prefix_length(sequences)
    prompt = min(row.prompt_length, prefix)
    return Checked(TokenizedComparison(rows[0], row.source, sequences, prefix, prompt, edges), used, lost)


def pruned(edges: Sequence[Preference]) -> tuple[list[int], tuple[Preference, ...]]:
    """The responses that preferences are about, in order, and the preferences among these alone, equal ones merged."""
    used = sorted({response for edge in edges for response in (edge.winner, edge.loser)})
    place = {response: number for number, response in enumerate(used)}
    return used, merged(replace(edge, winner=place[edge.winner], loser=place[edge.loser]) for edge in edges)


def merged(edges: Iterable[Preference]) -> tuple[Preference, ...]:
    """Equal preferences made one that weighs as much as all of them; opposite ones, and those with other margins, stay apart."""
    found: dict[Preference, Preference] = {}
    for edge in edges:
        key = replace(edge, weight=1.0)
        known = found.get(key)
        found[key] = edge if known is None else replace(known, weight=known.weight + edge.weight, rows=known.rows + edge.rows)
    return tuple(found.values())


def dropped(row_id: str, source: str, problem: BadRow) -> Dropped:
    """A row that is not used, for a reason."""
    return Dropped(row_id, source, problem.reason, problem.detail)


class Parts(NamedTuple):
    """A comparison without its name."""

    prompt: Turns
    responses: tuple[Turns, ...]
    preferences: tuple[Preference, ...]
    left_out: tuple[str, ...] = ()


def assemble(sides: Sequence[Turns], edges: Sequence[Preference], source: TextSource) -> Parts:
    """The parts of a comparison: equal responses are one, and those that no preference is about are left out.

    Args:
        sides: whole conversations, at least two.
        edges: preferences among them, at least one.
        source: whether they are transcripts.

    Raises:
        BadRow: as `split_prompt` says, or `identical`: all preferences are between equal responses.
    """
    prompt, responses = split_prompt(sides, at_last_turn=source.messages.transcript == "hh")
    if len(sides) == 2 and not _are_same(*responses):
        return Parts(prompt, responses, tuple(edges))
    first: dict[tuple[tuple[str, str], ...], int] = {}
    same_as = [first.setdefault(response_key(response), number) for number, response in enumerate(responses)]
    moved = [replace(edge, winner=same_as[edge.winner], loser=same_as[edge.loser]) for edge in edges]
    used, kept = pruned([edge for edge in moved if edge.winner != edge.loser])
    if not kept:
        raise BadRow("identical", "the responses are the same")
    return Parts(prompt, tuple(responses[number] for number in used), kept)


def _are_same(one: Turns, other: Turns) -> bool:
    return len(one) == len(other) and all(map(is_same, one, other))


def response_key(response: Turns) -> tuple[tuple[str, str], ...]:
    """What makes two responses the same: who says what, whatever the space around it."""
    return tuple((message["role"], text_of(message)) for message in response)
