"""Comparisons in memory, as scoring takes them: what a file of conversations or a benchmark becomes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmtrain.batching.loader import Comparisons
from rmtrain.batching.plan import Lengths
from rmtrain.data.comparison import TokenizedComparison


class Scorable(Comparisons, Lengths, Protocol):
    """Comparisons that can be cut into micro-batches and scored."""

    @property
    def ids(self) -> Sequence[str]: ...


class Rows:
    """Tokenized comparisons with their lengths; see `TokenizedData` for the columns.

    Args:
        comparisons: at least one.
    """

    def __init__(self, comparisons: Sequence[TokenizedComparison]) -> None:
        self._comparisons = comparisons
        lengths = [[len(sequence) for sequence in row.sequences] for row in comparisons]
        self.response_counts: NDArray[np.int32] = np.array([len(row) for row in lengths], np.int32)
        self.longest: NDArray[np.int32] = np.array([max(row) for row in lengths], np.int32)
        self.total_tokens: NDArray[np.int64] = np.array([sum(row) for row in lengths], np.int64)
        prefixes = np.array([row.prefix_length for row in comparisons], np.int64)
        self.unique_tokens: NDArray[np.int64] = self.total_tokens - (self.response_counts - 1) * prefixes
        self.ids: Sequence[str] = [row.id for row in comparisons]

    def __len__(self) -> int:
        return len(self._comparisons)

    def __getitem__(self, index: int, /) -> TokenizedComparison:
        return self._comparisons[index]

    def for_probing(self) -> list[TokenizedComparison]:
        """The shortest, middle and longest comparison."""
        by_length = np.argsort(self.longest, kind="stable")
        return [self[int(by_length[place])] for place in sorted({0, len(self) // 2, len(self) - 1})]
