"""Preferences that may be noise, by their numbers alone: margins of zero or far out, and winners that hardly say anything."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.edges import Edges

FAR_OUT = 10
"""Interquartile ranges above the third quartile from which on a margin is an outlier. Tukey calls three "far out", but margins with a
long tail reach those by the hundred."""
SHORT, LONG = 3, 60
"""A winner of at most so many tokens over a loser of at least so many is suspicious; prompt and end token not counted."""

Hint = tuple[int, str]
"""The number of an edge, and what is odd about it."""


def zero_margins(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Decided edges with margin 0 in a source that has other margins, too."""
    return [
        (edge, "its margin is 0")
        for numbers in _with_margins(data, edges)
        for edge in numbers[(edges.margins[numbers] == 0) & edges.are_decided[numbers]].tolist()
    ]


def margin_outliers(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Edges whose margin lies far above those of their source: more than ten interquartile ranges above the third quartile."""
    found = []
    for numbers in _with_margins(data, edges):
        margins = edges.margins[numbers]
        low, high = np.percentile(margins, (25, 75))
        limit = high + FAR_OUT * (high - low)
        if high > low:
            far = numbers[margins > limit].tolist()
            found += [(edge, f"its margin is {edges.margins[edge]:g}, half of them lie in {low:g} to {high:g}") for edge in far]
    return found


def short_winners(data: TokenizedData, edges: Edges) -> list[Hint]:
    """Decided edges whose winner is next to empty and whose loser is long."""
    winners, losers = (lengths - 1 for lengths in data.preference_lengths())
    suspicious = np.flatnonzero((winners <= SHORT) & (losers >= LONG) & edges.are_decided)
    return [(edge, f"a winner of {winners[edge]} tokens over a loser of {losers[edge]}") for edge in suspicious.tolist()]


def _with_margins(data: TokenizedData, edges: Edges) -> list[NDArray[np.int64]]:
    """Numbers of the edges of each source that has margins."""
    if not edges.margins.any():
        return []
    rows: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(data.sources):
        rows[source].append(number)
    by_source = (np.flatnonzero(np.isin(edges.comparisons, np.array(numbers))) for numbers in rows.values())
    return [numbers for numbers in by_source if edges.margins[numbers].any()]
