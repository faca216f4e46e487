"""Preferences that are stated again, and those that are stated the other way round."""

from dataclasses import dataclass

import numpy as np

from rmtrain.data.stored.edges import TIE, Edges, mix


@dataclass(frozen=True, slots=True)
class Repeat:
    """What several edges say about the same two responses of one prompt.

    edges: their numbers, in order.
    ways: for each, 0 where it is a tie, 1 where it says what the first that is none says, -1 where it says the opposite.
    """

    edges: tuple[int, ...]
    ways: tuple[int, ...]

    @property
    def is_contradictory(self) -> bool:
        """Whether they do not all say the same."""
        return len(set(self.ways)) > 1


def find_repeats(edges: Edges) -> list[Repeat]:
    """All sets of two or more edges between the same two responses, whatever rows they come from, by their first edge.

    Time and memory go by the number of edges: a sort of 64-bit values.
    """
    first, second = np.minimum(edges.winner_nodes, edges.loser_nodes), np.maximum(edges.winner_nodes, edges.loser_nodes)
    keys = mix(first, second)
    order = np.argsort(keys, kind="stable")
    begins = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1])
    sizes = np.diff([*begins, len(order)])
    ways = np.where(edges.probabilities <= TIE, 0, np.where(edges.winner_nodes == first, 1, -1))
    groups = [order[begin : begin + size] for begin, size in zip(begins[sizes > 1], sizes[sizes > 1], strict=True)]
    return sorted((_repeat(group.tolist(), ways[group].tolist()) for group in groups), key=lambda repeat: repeat.edges)


def _repeat(edges: list[int], ways: list[int]) -> Repeat:
    reference = next((way for way in ways if way), 1)
    return Repeat(tuple(edges), tuple(way * reference for way in ways))
