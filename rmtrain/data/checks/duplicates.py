"""Responses that hardly differ, though one of them is preferred."""

import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TIE, Edges, TokenizedData, mix
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.decode import decoded_response as decoded


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


SHARED = 0.95
"""Responses that share so much of their tokens are near-identical."""
POSSIBLE = 0.8
"""Responses that share less, and do not differ by a few tokens only, are not compared as text."""
FEW = 8
DECODED = 20_000
"""Most preferences of a split whose responses are compared as text."""
DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
SIGNS = ("Sm", "Sc", "So", "Pd")

NearlySame = tuple[int, str]
"""The number of an edge, and in what its sides are the same."""


def find_near_identical(data: TokenizedData, edges: Edges, tokenizer: PreTrainedTokenizerBase) -> list[NearlySame]:
    """Edges whose winner and loser are nearly the same, in order. Any of three makes them so:

    - the same text but for case, spacing and Unicode form;
    - at least 95 % of their tokens shared: twice the number they have in common, in whatever order, over the number both have;
    - the same letters, digits and signs in the same order, whatever the case, spacing and punctuation. This is looked at where they
      share 80 % of their tokens or differ by at most eight, and for at most 20,000 edges.

    Tokens are those of the responses themselves, without prompt and end token.
    """
    same = np.flatnonzero(edges.winner_nodes == edges.loser_nodes).tolist()
    found = [(edge, "the same text but for case and spacing") for edge in same]
    doubtful: list[int] = []
    for edge, shared, size in _possible(data, edges, set(same)):
        if 2 * shared >= SHARED * size:
            found.append((edge, _overlap(shared, size)))
        elif len(doubtful) < DECODED:
            doubtful.append(edge)
    rows = [data[int(edges.comparisons[edge])] for edge in doubtful]
    winners, losers = (
        decoded(zip(rows, side[doubtful].tolist(), strict=True), tokenizer) for side in (edges.winners, edges.losers)
    )
    for edge, winner, loser in zip(doubtful, winners, losers, strict=True):
        if (letters := _letters(winner)) and letters == _letters(loser):
            found.append((edge, "the same letters and digits; only case, spacing and punctuation differ"))
    return sorted(found)


def _overlap(shared: int, size: int) -> str:
    return "the same tokens in another order" if 2 * shared == size else f"{200 * shared // size} % of the tokens are the same"


def _possible(data: TokenizedData, edges: Edges, known: set[int]) -> Iterator[tuple[int, int, int]]:
    """Edges that may be near-identical by their tokens: their number, tokens in common, and tokens of both sides together."""
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    first, prompts = begins[edges.comparisons], data.prompt_lengths[edges.comparisons]
    winners, losers = (data.lengths[first + side].astype(np.int64) - prompts - 1 for side in (edges.winners, edges.losers))
    sizes = winners + losers
    allowed = np.maximum(FEW, (1 - POSSIBLE) * sizes)
    near = [edge for edge in np.flatnonzero(np.abs(winners - losers) <= allowed).tolist() if edge not in known]
    for comparison, group in groupby(near, key=edges.comparisons.__getitem__):
        row, members = data[int(comparison)], list(group)
        sides = {edge: (int(edges.winners[edge]), int(edges.losers[edge])) for edge in members}
        counts = {number: _counts(row, number) for number in {number for pair in sides.values() for number in pair}}
        for edge in members:
            winner, loser = (counts[number] for number in sides[edge])
            shared = row.prefix_length - row.prompt_length + (winner & loser).total()
            if sizes[edge] - 2 * shared <= allowed[edge]:
                yield edge, shared, int(sizes[edge])


def _counts(row: TokenizedComparison, number: int) -> Counter[int]:
    """How often a response has each token that is neither in the common prefix nor the end token."""
    return Counter(np.asarray(row.sequences[number][row.prefix_length : -1]).tolist())


def _letters(text: str) -> str:
    """The text without case, spacing and punctuation; signs of a number, a dash and a decimal point stay, for they mean something."""
    plain = DECIMAL.sub("\N{BULLET OPERATOR}", unicodedata.normalize("NFKC", text).casefold())
    return "".join(character for character in plain if _means_something(character))


def _means_something(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in SIGNS or character in "%/"
