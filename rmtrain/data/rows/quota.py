"""At most so many of a kind, the first ones: `dedup` and `cap`, exact over any number of batches, in little memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class Quota:
    """Admits the first so many of each key. What it remembers are 12 bytes for each different key.

    Args:
        most: how many of each key.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._runs: list[_Run] = []  # each less than half of the one before it: few, and each key is seldom moved

    def admit(self, keys: Keys) -> NDArray[np.bool_]:
        """For each of some keys whether it is among the first. In order, as if they came one by one."""
        order = np.argsort(keys, kind="stable")
        different, begins, counts = np.unique(keys[order], return_index=True, return_counts=True)
        before = np.arange(len(keys)) - np.repeat(begins, counts) + np.repeat(self._seen(different), counts)
        admitted = np.empty(len(keys), np.bool_)
        admitted[order] = before < self.most
        self._remember(_Run(different, counts.astype(np.uint32)))
        return admitted

    def _seen(self, keys: Keys) -> NDArray[np.int64]:
        seen = np.zeros(len(keys), np.int64)
        for run in self._runs:
            seen += run.count(keys)
        return seen

    def _remember(self, run: "_Run") -> None:
        if not len(run.keys):
            return
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            run = run.merged(self._runs.pop())
        self._runs.append(run)


@dataclass(frozen=True, slots=True)
class _Run:
    """Different keys in order, with how many came of each."""

    keys: Keys
    counts: NDArray[np.uint32]

    def count(self, keys: Keys) -> NDArray[np.int64]:
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0).astype(np.int64)

    def merged(self, other: "_Run") -> "_Run":
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([self.counts, other.counts])).astype(np.uint32)
        return _Run(keys, counts)
