"""Scores of several responses to the preferences among them."""

import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby, pairwise, product

from rmtrain.data.comparison import Preference
from rmtrain.data.rows.labels import DIGITS
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import RankedSource

Levels = list[list[int]]
"""Responses of equal scores together, the best first."""


def preferences(scores: Sequence[float], source: RankedSource, name: str) -> tuple[Preference, ...]:
    """The preferences that the source's policy makes of scores, those of the best responses first.

    Args:
        scores: of each response, finite.
        source: policy, smallest gap, most pairs, and whether margins are differences of scores.
        name: the row id, by which `max_pairs` draws.

    Raises:
        BadRow: `tie`: all scores are equal; `below_min_gap`: none differ enough; `bad_margin`: a difference is too large.
    """
    levels = _levels(scores, source.lower_is_better)
    if len(levels) == 1:
        raise BadRow("tie", f"all {len(scores)} responses have the score {scores[0]:g}")
    gaps = {pair: _gap(scores, *pair) for pair in _pairs(levels, source)}
    kept = [pair for pair, gap in gaps.items() if source.min_gap is None or gap >= source.min_gap]
    if not kept:
        raise BadRow(
            "below_min_gap", f"no difference of scores is at least {source.min_gap:g}, the largest is {max(gaps.values()):g}"
        )
    if source.margin_from_score and math.inf in gaps.values():
        raise BadRow("bad_margin", "the difference of two scores is too large")
    return tuple(
        Preference(winner, loser, gaps[winner, loser] if source.margin_from_score else 0.0)
        for winner, loser in _drawn(kept, source.max_pairs, name)
    )


def _levels(scores: Sequence[float], lower_is_better: bool) -> Levels:
    sign = 1.0 if lower_is_better else -1.0
    numbers = sorted(range(len(scores)), key=lambda number: sign * scores[number])
    return [list(level) for _, level in groupby(numbers, key=lambda number: scores[number])]


def _pairs(levels: Levels, source: RankedSource) -> Iterator[tuple[int, int]]:
    """Pairs of responses with different scores, the better one first; of the best, and of the worst, the one that is listed first."""
    if source.policy == "best_worst":
        yield levels[0][0], levels[-1][0]
    elif source.policy == "best_vs_rest":
        for level in levels[1:]:
            yield from product(levels[0][:1], level)
    elif source.policy == "adjacent":
        for better, worse in pairwise(levels):
            yield from product(better, worse)
    else:
        for place, better in enumerate(levels):
            for worse in levels[place + 1 :]:
                yield from product(better, worse)


def _gap(scores: Sequence[float], winner: int, loser: int) -> float:
    return round(abs(scores[winner] - scores[loser]), DIGITS)


def _drawn(pairs: list[tuple[int, int]], count: int | None, name: str) -> list[tuple[int, int]]:
    """At most `count` of the pairs, in their order: those whose hashes, with the name, are the smallest."""
    if count is None or len(pairs) <= count:
        return pairs
    hashes = {pair: blake2b(f"{name} {pair[0]} {pair[1]}".encode()).digest() for pair in pairs}
    drawn = set(sorted(pairs, key=hashes.__getitem__)[:count])
    return [pair for pair in pairs if pair in drawn]
