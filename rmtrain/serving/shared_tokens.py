"""Tokens that sequences of different requests have in common, so that a batch computes them once.

A rollout of RL asks for each response of a prompt by itself. Sorted, sequences that begin alike are neighbours.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rmtrain.data.comparison import Tokens, common_prefix_length

FEWEST = 16
"""Tokens at the beginning that are worth sharing: all conversations begin with the same few."""
WIDEST = 256
"""Sequences that share a prefix, at most."""
MOST_SENT = 16
"""Tokens of a batch before sharing, at most, as a multiple of those it may compute."""


def sort_key(sequence: Tokens) -> bytes:
    """Return bytes that sort as the tokens do."""
    return np.asarray(sequence, ">i4").tobytes()


class BatchTokens:
    """Counts the tokens of a batch while sequences are added.

    Args:
        most: tokens that the batch may compute. Its first sequence always fits.
        shares: tokens that a sequence begins with as another one does are computed once.
    """

    def __init__(self, most: int, shares: bool) -> None:
        self.most, self.shares = most, shares
        self.sent = self.computed = 0
        self._keys: list[bytes] = []
        self._sequences: list[Tokens] = []

    def add(self, sequence: Tokens) -> bool:
        """Add a sequence and return True; or return False if the batch would have too many tokens."""
        new = len(sequence)
        if self.shares:
            key = sort_key(sequence)
            place = bisect_left(self._keys, key)
            neighbours = self._sequences[max(0, place - 1) : place + 1]
            new -= max((common_prefix_length((sequence, other)) for other in neighbours), default=0)
        if self.sent and (self.computed + new > self.most or self.sent + len(sequence) > MOST_SENT * self.most):
            return False
        if self.shares:
            self._keys.insert(place, key)
            self._sequences.insert(place, sequence)
        self.sent += len(sequence)
        self.computed += new
        return True


def group_by_prefix(sequences: Sequence[Tokens], most: int) -> list[list[int]]:
    """Return groups of sequences, as their numbers, such that sharing the prefix of each group leaves the fewest tokens to compute.

    Groups are in the order of their first sequences, and so are the sequences in a group. With its prefix shared, a group of several
    sequences has at most `most` tokens.
    """
    order = sorted(range(len(sequences)), key=lambda number: sort_key(sequences[number]))
    common = [common_prefix_length((sequences[one], sequences[two])) for one, two in pairwise(order)]
    # saved[end]: the most tokens that groups of the first `end` sequences save, the last group beginning at begins[end].
    saved, begins = [0], [0]
    for end in range(1, len(order) + 1):
        best, begin = saved[end - 1], end - 1
        prefix, total = 0, len(sequences[order[end - 1]])
        for first in range(end - 2, max(-1, end - 1 - WIDEST), -1):
            prefix = common[first] if first == end - 2 else min(prefix, common[first])
            total += len(sequences[order[first]])
            saves = (end - first - 1) * prefix
            if prefix < FEWEST or total - saves > most:
                break
            if saved[first] + saves > best:
                best, begin = saved[first] + saves, first
        saved.append(best)
        begins.append(begin)
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return sorted(groups)
