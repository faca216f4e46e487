"""Preferences that go in a circle: A over B, B over C, C over A. No reward can satisfy all of them."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.stored.edges import Edges

ROUNDS = 32
"""Rounds of trimming. A chain longer than this is left to the search, which walks it once."""

Graph = Mapping[int, Mapping[int, int]]
"""For each node the nodes it wins over, and the number of the first edge that says so."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """One shortest circle through the first edge of a set of responses that cannot be ordered.

    edges: numbers of its edges, each from the loser of the one before.
    responses: how many responses the whole set has.
    """

    edges: tuple[int, ...]
    responses: int


def find_cycles(edges: Edges, without: Sequence[int] = ()) -> list[Cycle]:
    """A circle for each set of responses of one prompt that win over one another in turn, whatever rows say so, by their first edge.

    Ties and edges between two texts that are the same after normalisation say no order and are left out.

    Args:
        edges: all preferences of a split.
        without: numbers of edges to leave out: those that contradict each other, which are circles of two.
    """
    counted = edges.are_decided & (edges.winner_nodes != edges.loser_nodes)
    counted[np.asarray(without, np.int64)] = False
    left = np.flatnonzero(counted)
    nodes = np.unique(np.concatenate([edges.winner_nodes[left], edges.loser_nodes[left]]), return_inverse=True)[1].reshape(2, -1)
    graph: dict[int, dict[int, int]] = defaultdict(dict)
    for edge, winner, loser in _trimmed(np.stack([left, *nodes], axis=1)).tolist():
        graph[winner].setdefault(loser, edge)
    knots = [set(knot) for knot in _strongly_connected(graph) if len(knot) > 1]
    return sorted((_shortest_cycle(graph, knot) for knot in knots), key=lambda cycle: cycle.edges)


def _trimmed(left: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges without those whose winner never loses or whose loser never wins, and again for what is left.

    Args:
        left: [E, 3], for each its number, winner and loser.
    """
    for _ in range(ROUNDS):
        winners, losers = left[:, 1], left[:, 2]
        wins, loses = np.zeros((2, left[:, 1:].max(initial=0) + 1), bool)
        wins[winners], loses[losers] = True, True
        kept = left[loses[winners] & wins[losers]]
        if len(kept) == len(left):
            break
        left = kept
    return left


def _strongly_connected(graph: Graph) -> Iterator[list[int]]:
    """Sets of nodes that reach one another (R. Tarjan, Depth-first search and linear graph algorithms, 1972), without recursion."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in graph:
        if root in order:
            continue
        walk = [(root, iter(graph[root]))]
        _enter(root, order, lowest, stack, on_stack)
        while walk:
            node, successors = walk[-1]
            for successor in successors:
                if successor not in order:
                    _enter(successor, order, lowest, stack, on_stack)
                    walk.append((successor, iter(graph.get(successor, {}))))
                    break
                if successor in on_stack:
                    lowest[node] = min(lowest[node], order[successor])
            else:
                walk.pop()
                if walk:
                    lowest[walk[-1][0]] = min(lowest[walk[-1][0]], lowest[node])
                if lowest[node] == order[node]:
                    yield _leave(node, stack, on_stack)


def _enter(node: int, order: dict[int, int], lowest: dict[int, int], stack: list[int], on_stack: set[int]) -> None:
    order[node] = lowest[node] = len(order)
    stack.append(node)
    on_stack.add(node)


def _leave(node: int, stack: list[int], on_stack: set[int]) -> list[int]:
    knot = [stack.pop()]
    while knot[-1] != node:
        knot.append(stack.pop())
    on_stack.difference_update(knot)
    return knot


def _shortest_cycle(graph: Graph, knot: set[int]) -> Cycle:
    """A shortest circle through the first edge within a set of nodes that reach one another, by breadth-first search back to its winner."""
    first, winner, loser = min((edge, winner, loser) for winner in knot for loser, edge in graph[winner].items() if loser in knot)
    came_by: dict[int, tuple[int, int]] = {}
    queue = deque([loser])
    while winner not in came_by:
        node = queue.popleft()
        for successor, edge in graph[node].items():
            if successor in knot and successor != loser and successor not in came_by:
                came_by[successor] = (node, edge)
                queue.append(successor)
    back = []
    node = winner
    while node != loser:
        node, edge = came_by[node]
        back.append(edge)
    return Cycle((first, *reversed(back)), len(knot))
