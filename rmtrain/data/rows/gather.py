"""Rows of one prompt to one comparison, as InstructGPT trains on all pairs of a prompt at once (arXiv:2203.02155, section 3.5)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rmtrain.data.comparison import Comparison, Message, Preference, rows_of
from rmtrain.data.rows.conversation import text_of
from rmtrain.data.rows.responses import merged


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
