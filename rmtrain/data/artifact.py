"""Tokenized comparisons on disk: written once as an Arrow file, then only memory-mapped.

A row stores the tokens that its sequences share once: `tokens` is the prefix, then the rest of each sequence in order, and `lengths` are
the lengths of the whole sequences. Example: sequences [1 2 3 9] and [1 2 4 5 9] are prefix_length 2, tokens [1 2 3 9 4 5 9], lengths [4 5].
Tokens that were removed from the beginning of a sequence are counted in `cut`, and in nothing else.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rmtrain.data.comparison import ADDED, Preference, Target, TokenizedComparison
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import TryAgain

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "prefix_length": pa.int32(),
        "prompt_length": pa.int32(),
        "lengths": pa.list_(pa.int32()),
        "cut": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.int32()),
        "prompt_hash": pa.uint64(),
        "response_hashes": pa.list_(pa.uint64()),
        "winners": pa.list_(pa.int32()),
        "losers": pa.list_(pa.int32()),
        "margins": pa.list_(pa.float64()),
        "probabilities": pa.list_(pa.float64()),
        "weights": pa.list_(pa.float64()),
        "target_responses": pa.list_(pa.int32()),
        "targets": pa.list_(pa.float64()),
        "target_weights": pa.list_(pa.float64()),
        "weight": pa.float64(),
    }
)
EDGE_COLUMNS = {"winners": "winner", "losers": "loser", "margins": "margin", "probabilities": "probability", "weights": "weight"}
TARGET_COLUMNS = {"target_responses": "response", "targets": "value", "target_weights": "weight"}


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A comparison with the hashes of its prompt and of each response as text."""

    comparison: TokenizedComparison
    prompt_hash: int
    response_hashes: Sequence[int]


def record_batch(rows: Sequence[StoredRow]) -> pa.RecordBatch:
    """Return rows, at least one, in the columns of `SCHEMA`."""
    comparisons = [row.comparison for row in rows]
    tokens = []
    for row in comparisons:
        parts = (row.sequences[0], *(sequence[row.prefix_length :] for sequence in row.sequences[1:]))
        tokens.append(np.concatenate([np.asarray(part, np.int32) for part in parts]))
    columns: dict[str, Sequence[Any]] = {
        "id": [row.id for row in comparisons],
        "source": [row.source for row in comparisons],
        "prefix_length": [row.prefix_length for row in comparisons],
        "prompt_length": [row.prompt_length for row in comparisons],
        "lengths": [[len(sequence) for sequence in row.sequences] for row in comparisons],
        "cut": [row.cut for row in comparisons],
        "tokens": tokens,
        "prompt_hash": [row.prompt_hash for row in rows],
        "response_hashes": [row.response_hashes for row in rows],
        "weight": [row.weight for row in comparisons],
    }
    for column, name in EDGE_COLUMNS.items():
        columns[column] = [[getattr(edge, name) for edge in row.preferences] for row in comparisons]
    for column, name in TARGET_COLUMNS.items():
        columns[column] = [[getattr(target, name) for target in row.targets] for row in comparisons]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


class TokenizedData:
    """The comparisons of a split, memory-mapped. `data[i]` is a TokenizedComparison.

    `file` is an Arrow file of `SCHEMA`, `key` the hash of everything that shaped the artifact.

    Columns, one value for each comparison:
        response_counts int32: K. preference_counts, target_counts int32: labels.
        first_responses int64: place of its first response in the columns of responses.
        prompt_lengths, prefix_lengths int32: in tokens.
        longest int32: tokens of the longest sequence.
        total_tokens int64: of all sequences together.
        unique_tokens int64: with the common prefix counted once.
        prompt_hashes uint64.
        weights float64: of the comparison; their mean over a source is 1, unless it has `raw_weights`.
    Columns, one value for each response, one comparison after the other:
        lengths int32: tokens of its sequence. response_hashes uint64.
    """

    def __init__(self, file: Path, key: str, waterfall: Waterfall) -> None:
        self.key, self.waterfall = key, waterfall
        self._file, self._status = file, file.stat()
        self._table: pa.Table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self._batches: list[pa.RecordBatch] = self._table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._opened: dict[int, dict[str, Any]] = {}
        self.response_counts = self._list_lengths("lengths")
        self.preference_counts = self._list_lengths("winners")
        self.target_counts = self._list_lengths("targets")
        self.first_responses = np.cumsum(self.response_counts, dtype=np.int64) - self.response_counts
        self.prompt_lengths = self.values("prompt_length")
        self.prefix_lengths = self.values("prefix_length")
        self.prompt_hashes = self.values("prompt_hash")
        self.response_hashes = self.values("response_hashes")
        self.lengths = self.values("lengths")
        wide = self.lengths.astype(np.int64)
        self.longest = np.maximum.reduceat(self.lengths, self.first_responses) if len(self) else self.lengths
        self.total_tokens = np.add.reduceat(wide, self.first_responses) if len(self) else wide
        self.unique_tokens = self.total_tokens - (self.response_counts.astype(np.int64) - 1) * self.prefix_lengths
        self.weights = self._normalized_weights()

    def _normalized_weights(self) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = self.values("weight").copy()
        for source, count in self.waterfall.sources.items():
            if count.weights:
                weights[self.is_of_source(source)] *= count.kept / count.weights
        return weights

    def is_of_source(self, source: str) -> NDArray[np.bool_]:
        """Return a mask of the comparisons of a source, by its tag."""
        mask: NDArray[np.bool_] = pc.equal(self._table.column("source"), source).to_numpy()
        return mask

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> TokenizedComparison:
        """Return a comparison. Its first sequence is a view of the file; the others are copies, prefix and rest joined."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        self._check_file()
        index %= len(self)
        number = int(self._starts.searchsorted(index, side="right")) - 1
        if number not in self._opened:
            self._opened[number] = _open_columns(self._batches[number])
        columns, row = self._opened[number], index - int(self._starts[number])

        prefix, tokens = int(columns["prefix_length"][row]), columns["tokens"][row]
        first, *others = columns["lengths"][row].tolist()
        sequences, begin = [tokens[:first]], first
        for length in others:
            end = begin + length - prefix
            sequences.append(np.concatenate([tokens[:prefix], tokens[begin:end]]))
            begin = end
        return TokenizedComparison(
            id=columns["id"][row].as_py(),
            source=columns["source"][row].as_py(),
            sequences=tuple(sequences),
            prefix_length=prefix,
            prompt_length=int(columns["prompt_length"][row]),
            preferences=tuple(map(Preference, *(columns[name][row].tolist() for name in EDGE_COLUMNS))),
            targets=tuple(map(Target, *(columns[name][row].tolist() for name in TARGET_COLUMNS))),
            weight=float(self.weights[index]),
            cut=tuple(columns["cut"][row].tolist()),
        )

    def _check_file(self) -> None:
        """Raise TryAgain if the file was cut or overwritten: its rows would be others. One that was removed or replaced is still mapped."""
        with suppress(FileNotFoundError):
            now = os.stat(self._file)
            if os.path.samestat(now, self._status) and (now.st_size, now.st_mtime_ns) != (
                self._status.st_size,
                self._status.st_mtime_ns,
            ):
                raise TryAgain(
                    f"{self._file}: was changed while it was read; remove {self._file.parent}, and run the same command again"
                )

    @cached_property
    def ids(self) -> "StringColumn":
        """Row ids."""
        return StringColumn(self._table.column("id"))

    @cached_property
    def sources(self) -> "StringColumn":
        """The source of each row, by its tag."""
        return StringColumn(self._table.column("source"))

    def are_added(self) -> NDArray[np.bool_]:
        """Return which comparisons are no rows of their source: copies, and those that `augment` made; see `place_of`."""
        if not any(count.added for count in self.waterfall.sources.values()):
            return np.zeros(len(self), bool)
        added: NDArray[np.bool_] = pc.match_substring_regex(self._table.column("id"), rf"\{ADDED}[^:]*$").to_numpy()
        return added

    def preference_lengths(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the tokens of the winner and of the loser of each preference without the prompt, one comparison after the other."""
        first, prompts = (np.repeat(column, self.preference_counts) for column in (self.first_responses, self.prompt_lengths))
        winners, losers = (self.lengths[first + self.values(side)] - prompts for side in ("winners", "losers"))
        return winners, losers

    def values(self, name: str) -> NDArray[Any]:
        """Return a column of `SCHEMA`; a column of lists as the values of all lists, one after the other."""
        column = self._table.column(name)
        values: NDArray[Any] = (pc.list_flatten(column) if pa.types.is_list(column.type) else column).to_numpy()
        return values

    def _list_lengths(self, name: str) -> NDArray[np.int32]:
        lengths: NDArray[np.int32] = pc.list_value_length(self._table.column(name)).to_numpy()
        return lengths


class _Lists:
    """A column of lists as arrays over the mapped file; `lists[i]` is the list of row i."""

    def __init__(self, column: pa.ListArray) -> None:
        self._values, self._bounds = column.values.to_numpy(), column.offsets.to_numpy()

    def __getitem__(self, row: int) -> NDArray[Any]:
        values: NDArray[Any] = self._values[self._bounds[row] : self._bounds[row + 1]]
        return values


def _open_columns(batch: pa.RecordBatch) -> dict[str, Any]:
    """Return the columns that make up a comparison, without copies; they are opened once, since that takes longer than reading a row."""
    lists = {name: _Lists(batch.column(name)) for name in ("lengths", "cut", "tokens", *EDGE_COLUMNS, *TARGET_COLUMNS)}
    numbers = {name: batch.column(name).to_numpy() for name in ("prefix_length", "prompt_length")}
    return {"id": batch.column("id"), "source": batch.column("source"), **numbers, **lists}


class StringColumn(Sequence[str]):
    """A column of texts that stays in the file: a list of ten million row ids would take a gigabyte of memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            texts: list[str] = self._column[index].to_pylist()
            return texts
        return str(self._column[int(index)].as_py())

    def __iter__(self) -> Iterator[str]:
        for batch in self._column.chunks:
            yield from batch.to_pylist()

    def index(self, value: Any, start: int = 0, stop: int = 2**63 - 1) -> int:
        """Return the first place of a text; raises ValueError if it is missing."""
        place = int(pc.index(self._column, value, start=start, end=min(stop, len(self))).as_py())
        if place < 0:
            raise ValueError(f"{value!r} is missing")
        return place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


TIE = 0.5
"""Target probability of a preference without a winner."""


@dataclass(frozen=True, slots=True)
class PreferenceEdges:
    """E preferences, one comparison after the other; every field has one value for each.

    comparisons int64: number of the comparison that states it.
    winners, losers int64: numbers of the responses within their comparison.
    winner_nodes, loser_nodes uint64: hash of each response with its prompt, both normalised: equal nodes are the same text up to case,
        spacing and Unicode form, in any row.
    margins, probabilities float64: see `Preference`.
    """

    comparisons: NDArray[np.int64]
    winners: NDArray[np.int64]
    losers: NDArray[np.int64]
    winner_nodes: NDArray[np.uint64]
    loser_nodes: NDArray[np.uint64]
    margins: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.comparisons)

    @property
    def are_decided(self) -> NDArray[np.bool_]:
        """Mask of the preferences that have a winner: their target probability is above that of a tie."""
        return self.probabilities > TIE


def edges_of(data: TokenizedData) -> PreferenceEdges:
    """Return the preferences of all comparisons."""
    comparisons = np.repeat(np.arange(len(data), dtype=np.int64), data.preference_counts)
    winners, losers = (data.values(side).astype(np.int64) for side in ("winners", "losers"))
    first, nodes = data.first_responses[comparisons], response_nodes(data)
    sides = (winners, losers, nodes[first + winners], nodes[first + losers])
    return PreferenceEdges(comparisons, *sides, data.values("margins"), data.values("probabilities"))


def response_nodes(data: TokenizedData) -> NDArray[np.uint64]:
    """Return the hash of each response with its prompt, uint64, one comparison after the other."""
    return mix(np.repeat(data.prompt_hashes, data.response_counts), data.response_hashes)


def mix(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """Return one 64-bit value from several uint64 values, in order (the multiplier is that of splitmix64)."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
