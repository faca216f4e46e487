"""Whole conversations and the preferences among them to what a comparison is made of."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rmtrain.data.comparison import Preference
from rmtrain.data.rows.conversation import Turns, is_same, split_prompt, text_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.responses import pruned
from rmtrain.recipe.schema import TextSource


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
