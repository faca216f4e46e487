"""Checks of the preferences of a split: repeats, contradictions, cycles, near-identical responses, outliers, and simple rules.

A rule, such as "the longer response wins", is what a model could learn instead of quality.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import TIE, PreferenceEdges, TokenizedData, edges_of, mix
from rmtrain.data.text.tokenizer import decoded
from rmtrain.intervals import Sample, wilson_interval


@dataclass(frozen=True, slots=True)
class Repeat:
    """Several edges between the same two responses of one prompt.

    edges: their numbers, in order.
    ways: for each edge 0 where it is a tie, 1 where it agrees with the first edge that is not a tie, -1 where it contradicts that one.
    """

    edges: tuple[int, ...]
    ways: tuple[int, ...]

    @property
    def is_contradictory(self) -> bool:
        """True when the edges disagree."""
        return len(set(self.ways)) > 1


def find_repeats(edges: PreferenceEdges, without: Sequence[int] = ()) -> list[Repeat]:
    """Return all sets of two or more edges between the same two responses, from any rows, ordered by their first edge.

    The edges `without` are ignored. Time and memory are those of a sort of 64-bit values, one for each edge.
    """
    first, second = np.minimum(edges.winner_nodes, edges.loser_nodes), np.maximum(edges.winner_nodes, edges.loser_nodes)
    keys = mix(first, second)  # sorted: a dictionary of ten million pairs takes gigabytes
    numbers = np.delete(np.arange(len(edges)), np.asarray(without, np.int64))
    order = numbers[np.argsort(keys[numbers], kind="stable")]
    begins = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1])
    sizes = np.diff([*begins, len(order)])
    ways = np.where(edges.probabilities <= TIE, 0, np.where(edges.winner_nodes == first, 1, -1))
    repeats = []
    for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        group = order[begin : begin + size]
        group_ways = ways[group].tolist()
        reference = next((way for way in group_ways if way), 1)
        repeats.append(Repeat(tuple(group.tolist()), tuple(way * reference for way in group_ways)))
    return sorted(repeats, key=lambda repeat: repeat.edges)


TRIMMING_ROUNDS = 32
"""Chains of more edges than this are left to the graph search, which walks each of them once."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """A shortest cycle through the first edge of a set of responses that cannot be ordered.

    edges: numbers of its edges; each begins at the loser of the one before.
    responses: number of responses of the whole set.
    """

    edges: tuple[int, ...]
    responses: int


def find_cycles(edges: PreferenceEdges, without: Sequence[int] = ()) -> list[Cycle]:
    """Return a cycle for each set of responses of one prompt that beat one another in turn, from any rows, ordered by their first edge.

    Ties, edges between responses that are equal after normalisation, and the edges `without` are ignored: those that contradict each other
    are cycles of two.
    """
    counted = edges.are_decided & (edges.winner_nodes != edges.loser_nodes)
    counted[np.asarray(without, np.int64)] = False
    numbers = np.flatnonzero(counted)
    nodes = np.unique(np.concatenate([edges.winner_nodes[numbers], edges.loser_nodes[numbers]]), return_inverse=True)[1]
    graph = nx.DiGraph()
    # of several edges between two responses the first is kept: findings then do not depend on the others
    for number, winner, loser in _trim(np.stack([numbers, *nodes.reshape(2, -1)], axis=1)).tolist():
        if not graph.has_edge(winner, loser):
            graph.add_edge(winner, loser, number=number)
    cycles = []
    for component in nx.strongly_connected_components(graph):
        if len(component) > 1:
            inner = graph.subgraph(component)
            winner, loser, first = min(inner.edges(data="number"), key=lambda edge: edge[2])
            back = [inner.edges[step]["number"] for step in pairwise(nx.shortest_path(inner, loser, winner))]
            cycles.append(Cycle((first, *back), len(component)))
    return sorted(cycles, key=lambda cycle: cycle.edges)


def _trim(edges_E3: NDArray[np.int64]) -> NDArray[np.int64]:
    """Remove edges (number, winner, loser) whose winner never loses or whose loser never wins, repeatedly: they are in no cycle.

    Nearly all edges of real data go here, so that ten million of them never become a graph of Python objects.
    """
    for _ in range(TRIMMING_ROUNDS):
        winners, losers = edges_E3[:, 1], edges_E3[:, 2]
        wins, loses = np.zeros((2, edges_E3[:, 1:].max(initial=0) + 1), bool)
        wins[winners], loses[losers] = True, True
        kept_E3 = edges_E3[loses[winners] & wins[losers]]
        if len(kept_E3) == len(edges_E3):
            break
        edges_E3 = kept_E3
    return edges_E3


Suspect = tuple[int, str]
"""The number of an edge, and the reason."""
SHARED = 0.95
"""Responses that share at least this part of their tokens are near-identical."""
POSSIBLE = 0.8
"""Responses that share less than this, and differ by more than `FEW` tokens, are not compared as text."""
FEW = 8
DECODED = 20_000
"""At most this number of preferences of a split are compared as text."""
DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
SIGNS = ("Sm", "Sc", "So", "Pd")


def find_near_identical(data: TokenizedData, edges: PreferenceEdges, tokenizer: PreTrainedTokenizerBase) -> list[Suspect]:
    """Return the edges whose winner and loser are nearly the same, in order. The reason is one of three:

    - the same text except for case, spacing and Unicode form;
    - at least 95 % shared tokens: twice the number of tokens in common, in any order, over the number of tokens of both;
    - the same letters, digits and signs in the same order, ignoring case, spacing and punctuation. This is only checked for responses that
      share 80 % of their tokens or differ by at most eight, and for at most 20,000 edges.

    Tokens are those of the responses, without prompt and end token.
    """
    winners, losers = (lengths.astype(np.int64) - 1 for lengths in data.preference_lengths())
    sizes = winners + losers
    allowed = np.maximum(FEW, (1 - POSSIBLE) * sizes)
    are_same = edges.winner_nodes == edges.loser_nodes
    reasons = dict.fromkeys(np.flatnonzero(are_same).tolist(), "the same text except for case and spacing")
    compared = 0
    possible = np.flatnonzero(~are_same & (np.abs(winners - losers) <= allowed)).tolist()
    for comparison, members in groupby(possible, key=edges.comparisons.__getitem__):
        row = data[int(comparison)]
        # after the common prefix, and without the end token
        counts = [Counter(np.asarray(sequence[row.prefix_length : -1]).tolist()) for sequence in row.sequences]
        for edge in members:
            sides = edges.winners[edge], edges.losers[edge]
            shared = row.prefix_length - row.prompt_length + (counts[sides[0]] & counts[sides[1]]).total()
            size = int(sizes[edge])
            if size - 2 * shared > allowed[edge]:
                continue
            if 2 * shared == size:
                reasons[edge] = "the same tokens in another order"
            elif 2 * shared >= SHARED * size:
                reasons[edge] = f"{200 * shared // size} % of the tokens are the same"
            elif compared < DECODED:
                compared += 1
                texts = (decoded(row.sequences[side][row.prompt_length :], tokenizer, special_tokens=False) for side in sides)
                one, other = map(_letters, texts)
                if one and one == other:
                    reasons[edge] = "the same letters and digits; only case, spacing and punctuation differ"
    return sorted(reasons.items())


def _letters(text: str) -> str:
    """Remove case, spacing and punctuation; signs of a number, dashes and decimal points stay, because they change the meaning."""
    plain = DECIMAL.sub("\N{BULLET OPERATOR}", unicodedata.normalize("NFKC", text).casefold())
    categories = ((character, unicodedata.category(character)) for character in plain)
    return "".join(c for c, category in categories if category[0] in "LMN" or category in SIGNS or c in "%/")


FAR_OUT = 10
"""A margin is an outlier above the third quartile plus this number of interquartile ranges. Tukey calls three "far out", but margins with a
long tail reach that by the hundred."""
SHORT, LONG = 3, 60
"""Most tokens of a winner, and fewest of its loser, that are suspicious; prompt and end token are not counted."""


def zero_margins(data: TokenizedData, edges: PreferenceEdges) -> list[Suspect]:
    """Return decided edges with margin 0 in sources that have other margins as well."""
    return [
        (edge, "its margin is 0")
        for numbers in _edges_with_margins(data, edges)
        for edge in numbers[(edges.margins[numbers] == 0) & edges.are_decided[numbers]].tolist()
    ]


def margin_outliers(data: TokenizedData, edges: PreferenceEdges) -> list[Suspect]:
    """Return edges whose margin is more than ten interquartile ranges above the third quartile of their source."""
    outliers = []
    for numbers in _edges_with_margins(data, edges):
        margins = edges.margins[numbers]
        low, high = np.percentile(margins, (25, 75))
        if high > low:
            far = numbers[margins > high + FAR_OUT * (high - low)].tolist()
            outliers += [
                (edge, f"its margin is {edges.margins[edge]:g}, half of them are in {low:g} to {high:g}") for edge in far
            ]
    return outliers


def short_winners(data: TokenizedData, edges: PreferenceEdges) -> list[Suspect]:
    """Return decided edges with a nearly empty winner and a long loser."""
    winners, losers = (lengths - 1 for lengths in data.preference_lengths())
    suspicious = np.flatnonzero((winners <= SHORT) & (losers >= LONG) & edges.are_decided)
    return [(edge, f"a winner of {winners[edge]} tokens over a loser of {losers[edge]}") for edge in suspicious.tolist()]


def _edges_with_margins(data: TokenizedData, edges: PreferenceEdges) -> list[NDArray[np.int64]]:
    """Return the numbers of the edges of each source that has margins."""
    if not edges.margins.any():
        return []
    numbers_by_tag = {tag: number for number, tag in enumerate(dict.fromkeys(data.sources))}
    source_of_row = np.array([numbers_by_tag[tag] for tag in data.sources])
    by_source = (np.flatnonzero(source_of_row[edges.comparisons] == number) for number in numbers_by_tag.values())
    return [numbers for numbers in by_source if edges.margins[numbers].any()]


SAMPLED = 2000
"""At most this number of comparisons are decoded to text."""
MARKDOWN = re.compile(
    r"^[ \t]*(?:[-*+•]|\d+[.)])\s+\S|^#{1,6}\s+\S|^[ \t]*```|\*\*[^*\n]+\*\*|__[^_\n]+__|`[^`\n]+`", re.MULTILINE
)
REFUSAL = re.compile(
    r"(?:i['’]?m|i am)\s+(?:very |so |really |truly )?(?:sorry|afraid|unable|not able)|sorry\b|apologies\b|i apologi[sz]e|my apologies"
    r"|i (?:cannot|can ?not|can['’]t|won['’]t|will not|do not|don['’]t) "
    r"(?:help|assist|provide|answer|do|comply|fulfill|create|write|give|know|think)"
    r"|unfortunately|as an ai|no comment",
    re.IGNORECASE,
)

RULES: Mapping[str, str] = {
    "longer": "the response of more tokens",
    "more_lines": "the response of more lines that are not blank",
    "more_markdown": "the response with more list items, headings, bold and code",
    "refuses": "the response that begins with an apology or a refusal, in English",
    "asks_back": "the response that ends with a question mark",
}
"""Rules that prefer one response without reading it."""
FEATURES: Mapping[str, Callable[[str], int]] = {
    "more_lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
    "more_markdown": lambda text: len(MARKDOWN.findall(text)),
    "refuses": lambda text: int(REFUSAL.match(text) is not None),
    "asks_back": lambda text: int(text.endswith(("?", "？", "؟"))),
}
"""The number that each rule on text prefers the larger of."""


def label_baselines(data: TokenizedData, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Any]]:
    """Count how often each of `RULES` agrees with the preferences that have a winner.

    `longer` is counted over all preferences. The others need text: they are counted over the comparisons of `sample_rows`.

    Returns:
        By rule: `wins`, `losses` and `ties`, numbers of preferences; `comparisons`, the number that `share` is based on; `share` of wins
        among wins and losses, and its Wilson 95 % interval `low`, `high`, prompts being drawn as a whole. These three are None where no
        preference differs.
    """
    edges = edges_of(data)
    winners, losers = (lengths[edges.are_decided] for lengths in data.preference_lengths())
    agreement = {"longer": _agreement(data, winners.astype(np.float64) - losers, edges.comparisons[edges.are_decided])}
    texts: list[str] = []
    decided: list[tuple[int, int, int]] = []
    for number in sample_rows(data, SAMPLED).tolist():
        row = data[number]
        begin = len(texts)
        decided += [(number, begin + edge.winner, begin + edge.loser) for edge in row.preferences if edge.probability > TIE]
        responses = (sequence[row.prompt_length :] for sequence in row.sequences)
        texts += [decoded(response, tokenizer, special_tokens=False).strip() for response in responses]
    comparisons, winner_texts, loser_texts = np.array(decided, np.int64).reshape(-1, 3).T
    for rule, feature in FEATURES.items():
        values = np.array([feature(text) for text in texts], np.float64)
        agreement[rule] = _agreement(data, values[winner_texts] - values[loser_texts], comparisons)
    return agreement


def sample_rows(data: TokenizedData, count: int) -> NDArray[np.int64]:
    """Return the numbers of at most `count` comparisons, drawn by the hashes of their texts: the same ones in any order of rows."""
    # by prompt alone, rows of a prompt would come together
    keys = mix(data.prompt_hashes, data.response_hashes[data.first_responses])
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _agreement(data: TokenizedData, differences: NDArray[np.float64], comparisons: NDArray[np.int64]) -> dict[str, Any]:
    """Return the counts of a rule from its number for the winner minus that for the loser, for each edge, and the edge's comparison."""
    wins, losses = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    differs = differences != 0
    trials = len(np.unique(comparisons[differs]))
    share, low, high = None, None, None
    if trials:
        share = wins / (wins + losses)
        ones, prompts = np.ones(wins + losses), data.prompt_hashes[comparisons[differs]]
        sample = Sample.of(ones, np.zeros(wins + losses, np.int64), prompts)
        low, high = wilson_interval(share, sample.effective_size(differences[differs] > 0))
    ties = len(differences) - wins - losses
    return {"wins": wins, "losses": losses, "ties": ties, "comparisons": trials, "share": share, "low": low, "high": high}
