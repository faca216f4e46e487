"""Odd margins, and winners that are nearly empty."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.artifact import PreferenceEdges, TokenizedData

FAR_OUT = 10
"""A margin is an outlier above the third quartile plus this number of interquartile ranges. Tukey calls three "far out", but margins with a
long tail reach that by the hundred."""
SHORT, LONG = 3, 60
"""Most tokens of a winner, and fewest of its loser, that are suspicious; prompt and end token are not counted."""

Outlier = tuple[int, str]
"""The number of an edge, and the reason."""


def zero_margins(data: TokenizedData, edges: PreferenceEdges) -> list[Outlier]:
    """Return decided edges with margin 0 in sources that have other margins as well."""
    return [
        (edge, "its margin is 0")
        for numbers in _edges_with_margins(data, edges)
        for edge in numbers[(edges.margins[numbers] == 0) & edges.are_decided[numbers]].tolist()
    ]


def margin_outliers(data: TokenizedData, edges: PreferenceEdges) -> list[Outlier]:
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


def short_winners(data: TokenizedData, edges: PreferenceEdges) -> list[Outlier]:
    """Return decided edges with a nearly empty winner and a long loser."""
    winners, losers = (lengths - 1 for lengths in data.preference_lengths())
    suspicious = np.flatnonzero((winners <= SHORT) & (losers >= LONG) & edges.are_decided)
    return [(edge, f"a winner of {winners[edge]} tokens over a loser of {losers[edge]}") for edge in suspicious.tolist()]


def _edges_with_margins(data: TokenizedData, edges: PreferenceEdges) -> list[NDArray[np.int64]]:
    """Return the numbers of the edges of each source that has margins."""
    if not edges.margins.any():
        return []
    rows: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(data.sources):
        rows[source].append(number)
    by_source = (np.flatnonzero(np.isin(edges.comparisons, np.array(numbers))) for numbers in rows.values())
    return [numbers for numbers in by_source if edges.margins[numbers].any()]
