"""Tokens of pieces of text, computed once for each piece: kept one after the other, and put together without a loop in Python."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

REMEMBERED_CHARACTERS, COST_OF_A_PIECE = 2**23, 32
TOKEN = np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Token sequences one after the other: `tokens` int32, all of them, and `sizes` int64, how many each has."""

    tokens: NDArray[np.int32]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Self:
        """Lists of ids as they are."""
        sizes = np.fromiter(map(len, sequences), np.int64, len(sequences))
        return cls(np.fromiter(chain.from_iterable(sequences), TOKEN, int(sizes.sum())), sizes)

    def followed_by(self, other: Self) -> Self:
        """These sequences, then those."""
        return replace(self, tokens=np.concatenate((self.tokens, other.tokens)), sizes=np.concatenate((self.sizes, other.sizes)))

    def joined(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> Self:
        """Sequences put together: of the sequences at `numbers`, the first `counts[0]` become one, and so on; no count is zero."""
        begins, sizes = np.cumsum(self.sizes) - self.sizes, self.sizes[numbers]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins[numbers] - ends + sizes, sizes)
        totals = np.add.reduceat(sizes, np.cumsum(counts) - counts) if len(counts) else counts
        return replace(self, tokens=self.tokens[places], sizes=totals)

    def parts(self) -> list[NDArray[np.int32]]:
        """Each sequence."""
        ends = np.cumsum(self.sizes)
        return [self.tokens[begin:end] for begin, end in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True)]


class Numbers(dict[str, int]):
    """The number of each piece in the order in which they were first asked for; `new` are those asked for since it was emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        number = self[piece] = len(self)
        self.new.append(piece)
        return number


class Memo:
    """A function from pieces of text to tokens that is asked for each piece once, until so much is remembered that all is forgotten.

    Args:
        compute: gives the tokens of several pieces.
    """

    def __init__(self, compute: Callable[[list[str]], Ragged]) -> None:
        self.compute = compute
        self._forget()

    def _forget(self) -> None:
        self.numbers, self.known, self.size = Numbers(), Ragged.of([]), 0

    def joined(self, texts: Collection[list[str]]) -> Ragged:
        """The tokens of texts that are given in pieces, at least one each."""
        if self.size > REMEMBERED_CHARACTERS:
            self._forget()
        counts = np.fromiter(map(len, texts), np.int64, len(texts))
        pieces = map(self.numbers.__getitem__, chain.from_iterable(texts))
        numbers = np.fromiter(pieces, np.int64, int(counts.sum()))
        new, self.numbers.new = self.numbers.new, []
        if new:
            self.known = self.known.followed_by(self.compute(new))
            self.size += sum(map(len, new)) + COST_OF_A_PIECE * len(new)
        return self.known.joined(numbers, counts)
