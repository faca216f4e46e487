"""The responses of a comparison: equal ones merged, unusable ones left out together with their preferences."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rmtrain.data.comparison import (
    Adapted,
    BadRow,
    Dropped,
    Preference,
    TokenizedComparison,
    Turns,
    common_prefix_length,
    dropped,
    rows_of,
)
from rmtrain.data.rows.conversation import is_same, split_prompt, text_of
from rmtrain.recipe.schema import TextSource


class Parts(NamedTuple):
    """A comparison without its id and source."""

    prompt: Turns
    responses: tuple[Turns, ...]
    preferences: tuple[Preference, ...]
    left_out: tuple[str, ...] = ()


def assemble(conversations: Sequence[Turns], edges: Sequence[Preference], source: TextSource) -> Parts:
    """Return the parts of a comparison. Equal responses are merged, and those without a preference are left out.

    Args:
        conversations: whole conversations, at least two.
        edges: preferences among them, at least one.
        source: its `messages.transcript` says whether they are transcripts.

    Raises:
        BadRow: see `split_prompt`; or `identical`: all preferences are between equal responses.
    """
    prompt, responses = split_prompt(conversations, at_last_turn=source.messages.transcript == "hh")
    if len(responses) == 2:  # the usual case, without building the keys of all messages
        one, other = responses
        if len(one) != len(other) or not all(map(is_same, one, other)):
            return Parts(prompt, responses, tuple(edges))
    first: dict[tuple[tuple[str, str], ...], int] = {}
    same_as = [first.setdefault(response_key(response), number) for number, response in enumerate(responses)]
    moved = [replace(edge, winner=same_as[edge.winner], loser=same_as[edge.loser]) for edge in edges]
    used, kept = pruned([edge for edge in moved if edge.winner != edge.loser])
    if not kept:
        raise BadRow("identical", "the responses are the same")
    return Parts(prompt, tuple(responses[number] for number in used), kept)


def in_groups(rows: Iterable[Adapted], key_of: Callable[[Adapted], Hashable]) -> Iterable[list[Adapted]]:
    """Return rows with equal keys together, in the place of the first of them; a row whose key is None is alone.

    All rows are held in memory: the last may belong to the first.
    """
    groups: dict[Hashable, list[Adapted]] = {}
    for row in rows:
        key = key_of(row)
        groups.setdefault(object() if key is None else key, []).append(row)
    return groups.values()


def response_key(response: Turns) -> tuple[tuple[str, str], ...]:
    """Return a key that is equal for responses with the same roles and texts, ignoring the space around them."""
    return tuple((message["role"], text_of(message)) for message in response)


def pruned(edges: Sequence[Preference]) -> tuple[list[int], tuple[Preference, ...]]:
    """Return the responses that have a preference, in order, and the preferences renumbered to these alone, equal ones merged."""
    used = sorted({response for edge in edges for response in (edge.winner, edge.loser)})
    place = {response: number for number, response in enumerate(used)}
    return used, merged(replace(edge, winner=place[edge.winner], loser=place[edge.loser]) for edge in edges)


def merged(edges: Iterable[Preference]) -> tuple[Preference, ...]:
    """Merge equal preferences into one with the sum of their weights; opposite ones, and those with other margins, stay apart."""
    by_key: dict[Preference, Preference] = {}
    for edge in edges:
        key = replace(edge, weight=1.0)
        known = by_key.get(key)
        by_key[key] = edge if known is None else replace(known, weight=known.weight + edge.weight, rows=known.rows + edge.rows)
    return tuple(by_key.values())


@dataclass(frozen=True, slots=True)
class Checked:
    """The remainder of a comparison.

    row: the comparison, under the id of the first of its rows that remains; None: nothing remains.
    responses: the responses that remain, by their previous numbers.
    lost: its rows of which nothing remains.
    left_out: the reasons of responses that were removed, where no lost row counts them.
    """

    row: TokenizedComparison | None
    responses: Sequence[int] = ()
    lost: tuple[Dropped, ...] = ()
    left_out: tuple[str, ...] = ()


def without(row: TokenizedComparison, faults: Mapping[int, BadRow]) -> Checked:
    """Return a comparison without its faulty responses. Responses with equal tokens are merged; those without a preference are left out.

    Args:
        row: the comparison.
        faults: the problem of each response that cannot stay, by number.
    """
    numbers = range(len(row.sequences))
    same_as: Sequence[int] = numbers
    if len(set(map(len, row.sequences))) < len(row.sequences):  # responses of different lengths cannot be equal
        first: dict[bytes, int] = {}
        same_as = [first.setdefault(np.asarray(row.sequences[number], np.int32).tobytes(), number) for number in numbers]
    if not faults and list(same_as) == list(numbers):
        return Checked(row, same_as)
    edges: list[Preference] = []
    problems: dict[str, BadRow] = {}
    for edge in row.preferences:
        winner, loser = same_as[edge.winner], same_as[edge.loser]
        faulty = [number for number in (winner, loser) if number in faults]
        if faulty:
            problem = faults[max(faulty, key=lambda number: len(row.sequences[number]))]
        elif winner == loser:
            problem = BadRow("identical", "the responses have the same tokens")
        else:
            edges.append(replace(edge, winner=winner, loser=loser))
            continue
        problems.update(dict.fromkeys(edge.rows or (row.id,), problem))
    used, kept = pruned(edges)
    rows = rows_of(replace(row, preferences=kept))
    lost = tuple(dropped(row_id, row.source, problem) for row_id, problem in problems.items() if row_id not in rows)
    left_out = () if lost else tuple(problem.reason for problem in faults.values())
    if not kept:
        return Checked(None, lost=lost, left_out=left_out)
    sequences = tuple(row.sequences[number] for number in used)
    prefix = common_prefix_length(sequences)
    remaining = TokenizedComparison(rows[0], row.source, sequences, prefix, min(row.prompt_length, prefix), kept)
    return Checked(remaining, used, lost, left_out)
