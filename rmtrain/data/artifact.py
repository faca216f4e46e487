"""Tokenized comparisons on disk: written once as an Arrow file, then only memory-mapped.

A row stores the tokens that its sequences share once: `tokens` is the prefix, then the rest of each sequence in order, and `lengths` are
the lengths of the whole sequences. Example: sequences [1 2 3 9] and [1 2 4 5 9] are prefix_length 2, tokens [1 2 3 9 4 5 9], lengths [4 5].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import DataError

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "prefix_length": pa.int32(),
        "prompt_length": pa.int32(),
        "lengths": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.int32()),
        "prompt_hash": pa.uint64(),
        "response_hashes": pa.list_(pa.uint64()),
        "winners": pa.list_(pa.int32()),
        "losers": pa.list_(pa.int32()),
        "margins": pa.list_(pa.float64()),
        "probabilities": pa.list_(pa.float64()),
        "weights": pa.list_(pa.float64()),
    }
)
EDGE_COLUMNS = {"winners": "winner", "losers": "loser", "margins": "margin", "probabilities": "probability", "weights": "weight"}


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A comparison with the hashes of its text: one of its prompt and one of each response."""

    comparison: TokenizedComparison
    prompt_hash: int
    response_hashes: Sequence[int]


def record_batch(rows: Sequence[StoredRow]) -> pa.RecordBatch:
    """Return rows, at least one, in the columns of `SCHEMA`."""
    comparisons = [row.comparison for row in rows]
    edges = [edge for row in comparisons for edge in row.preferences]
    edge_counts = [len(row.preferences) for row in comparisons]
    response_counts = [len(row.sequences) for row in comparisons]
    lengths = [len(sequence) for row in comparisons for sequence in row.sequences]
    hashes = [value for row in rows for value in row.response_hashes]
    tokens = []
    for row in comparisons:
        first, *others = row.sequences
        parts = (first, *(sequence[row.prefix_length :] for sequence in others))
        tokens.append(np.concatenate([np.asarray(part, np.int32) for part in parts]))
    columns = {
        "id": pa.array([row.id for row in comparisons], pa.string()),
        "source": pa.array([row.source for row in comparisons], pa.string()),
        "prefix_length": pa.array(np.array([row.prefix_length for row in comparisons], np.int32)),
        "prompt_length": pa.array(np.array([row.prompt_length for row in comparisons], np.int32)),
        "lengths": _lists(np.array(lengths, np.int32), response_counts),
        "tokens": _lists(np.concatenate(tokens), list(map(len, tokens))),
        "prompt_hash": pa.array(np.array([row.prompt_hash for row in rows], np.uint64)),
        "response_hashes": _lists(np.array(hashes, np.uint64), response_counts),
    }
    for column, name in EDGE_COLUMNS.items():
        columns[column] = _lists(np.array([getattr(edge, name) for edge in edges], _value_type(column)), edge_counts)
    return pa.record_batch([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _lists(values: NDArray[Any], sizes: Sequence[int]) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.cumsum([0, *sizes], dtype=np.int32), values)


def _value_type(column: str) -> Any:
    """Return the numpy type of a column, of its values if it is a column of lists."""
    kind = SCHEMA.field(column).type
    return (kind.value_type if pa.types.is_list(kind) else kind).to_pandas_dtype()


class TokenizedData:
    """The comparisons of a split, memory-mapped. `data[i]` is a TokenizedComparison.

    Args:
        file: an Arrow file of `SCHEMA`.
        key: hash of everything that shaped the artifact.
        waterfall: counts of the rows of each source, kept and dropped.

    Columns, one value for each comparison:
        response_counts int32: K. preference_counts int32: edges.
        prompt_lengths, prefix_lengths int32: in tokens.
        longest int32: tokens of the longest sequence.
        total_tokens int64: of all sequences together.
        unique_tokens int64: with the common prefix counted once.
        prompt_hashes uint64.
    Columns, one value for each response, one comparison after the other:
        lengths int32: tokens of its sequence. response_hashes uint64.
    """

    def __init__(self, file: Path, key: str, waterfall: Waterfall) -> None:
        self.key, self.waterfall = key, waterfall
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._opened: dict[int, _Columns] = {}
        self.response_counts = self._list_sizes("lengths")
        self.preference_counts = self._list_sizes("winners")
        self.prompt_lengths = self.values("prompt_length")
        self.prefix_lengths = self.values("prefix_length")
        self.prompt_hashes = self.values("prompt_hash")
        self.response_hashes = self.values("response_hashes")
        self.lengths = self.values("lengths")
        wide = self.lengths.astype(np.int64)
        begins = np.cumsum(self.response_counts) - self.response_counts
        self.longest = np.maximum.reduceat(self.lengths, begins) if len(self) else self.lengths
        self.total_tokens = np.add.reduceat(wide, begins) if len(self) else wide
        self.unique_tokens = self.total_tokens - (self.response_counts.astype(np.int64) - 1) * self.prefix_lengths

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TokenizedComparison:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        number = int(self._starts.searchsorted(index, side="right")) - 1
        if number not in self._opened:
            self._opened[number] = _Columns.of(self._batches[number])
        return self._opened[number].comparison(index - int(self._starts[number]))

    @cached_property
    def ids(self) -> "StringColumn":
        """Row ids."""
        return StringColumn([batch.column("id") for batch in self._batches])

    @cached_property
    def sources(self) -> "StringColumn":
        """The source of each row, by its tag."""
        return StringColumn([batch.column("source") for batch in self._batches])

    def preference_lengths(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the tokens of the winner and of the loser of each preference without the prompt, one comparison after the other."""
        begins = np.repeat(np.cumsum(self.response_counts) - self.response_counts, self.preference_counts)
        prompts = np.repeat(self.prompt_lengths, self.preference_counts)
        winners, losers = (self.lengths[begins + self.values(side)] - prompts for side in ("winners", "losers"))
        return winners, losers

    def values(self, name: str) -> NDArray[Any]:
        """Return a column of `SCHEMA`; a column of lists as the values of all lists, one after the other."""
        columns = [batch.column(name) for batch in self._batches]
        arrays = [(column.flatten() if pa.types.is_list(column.type) else column).to_numpy() for column in columns]
        return np.concatenate([np.empty(0, _value_type(name)), *arrays])

    def _list_sizes(self, name: str) -> NDArray[np.int32]:
        sizes = [np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *sizes])


class StringColumn(Sequence[str]):
    """A column of texts that stays in the file: a list of ten million row ids would take a gigabyte of memory.

    Args:
        batches: the column, batch by batch.
    """

    def __init__(self, batches: Sequence[pa.StringArray]) -> None:
        self._column = pa.chunked_array(batches, pa.string())

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

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and pc.index(self._column, text).as_py() >= 0

    def index(self, value: Any, start: int = 0, stop: int = 2**63 - 1) -> int:
        """Return the first place of a text; raises ValueError if it is missing."""
        place = int(pc.index(self._column, value, start=start, end=min(stop, len(self))).as_py())
        if place < 0:
            raise ValueError(f"{value!r} is missing")
        return place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a record batch as arrays over the mapped file. `_ends` are the offsets where the list of each row ends, after a 0."""

    ids: pa.StringArray
    sources: pa.StringArray
    prefix_lengths: NDArray[np.int32]
    prompt_lengths: NDArray[np.int32]
    lengths: NDArray[np.int32]
    length_ends: NDArray[np.int32]
    tokens: NDArray[np.int32]
    token_ends: NDArray[np.int32]
    edges: tuple[NDArray[Any], ...]
    edge_ends: NDArray[np.int32]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_Columns":
        """Return the columns of a batch."""
        lists = {name: batch.column(name) for name in ("lengths", "tokens", *EDGE_COLUMNS)}
        return cls(
            ids=batch.column("id"),
            sources=batch.column("source"),
            prefix_lengths=batch.column("prefix_length").to_numpy(),
            prompt_lengths=batch.column("prompt_length").to_numpy(),
            lengths=lists["lengths"].values.to_numpy(),
            length_ends=lists["lengths"].offsets.to_numpy(),
            tokens=lists["tokens"].values.to_numpy(),
            token_ends=lists["tokens"].offsets.to_numpy(),
            edges=tuple(lists[name].values.to_numpy() for name in EDGE_COLUMNS),
            edge_ends=lists["winners"].offsets.to_numpy(),
        )

    def comparison(self, row: int) -> TokenizedComparison:
        """Return a row of the batch. Its first sequence is a view of the file; the others are copies, prefix and rest joined."""
        prefix = int(self.prefix_lengths[row])
        tokens = self.tokens[self.token_ends[row] : self.token_ends[row + 1]]
        first, *others = self.lengths[self.length_ends[row] : self.length_ends[row + 1]].tolist()
        sequences, begin = [tokens[:first]], first
        for length in others:
            end = begin + length - prefix
            sequences.append(np.concatenate([tokens[:prefix], tokens[begin:end]]))
            begin = end
        edges = slice(self.edge_ends[row], self.edge_ends[row + 1])
        return TokenizedComparison(
            id=self.ids[row].as_py(),
            source=self.sources[row].as_py(),
            sequences=tuple(sequences),
            prefix_length=prefix,
            prompt_length=int(self.prompt_lengths[row]),
            preferences=tuple(map(Preference, *(column[edges].tolist() for column in self.edges))),
        )


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
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    comparisons = np.repeat(np.arange(len(data), dtype=np.int64), data.preference_counts)
    winners, losers = (data.values(side).astype(np.int64) for side in ("winners", "losers"))
    nodes = response_nodes(data)
    first = begins[comparisons]
    return PreferenceEdges(
        comparisons,
        winners,
        losers,
        nodes[first + winners],
        nodes[first + losers],
        data.values("margins"),
        data.values("probabilities"),
    )


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


EXPORT_ROWS = 1000
COLUMNS_SCHEMA = pa.schema(
    {
        "input_ids_chosen": pa.list_(pa.int32()),
        "attention_mask_chosen": pa.list_(pa.int8()),
        "input_ids_rejected": pa.list_(pa.int32()),
        "attention_mask_rejected": pa.list_(pa.int8()),
        "margin": pa.float64(),
        "id": pa.string(),
    }
)


def export_columns(data: TokenizedData, file: Path) -> Path:
    """Write pairs as `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected`, `attention_mask_rejected`, `margin`, and `id`.

    Args:
        data: comparisons of two responses.
        file: the Parquet file to write; its folder is created if it is missing.

    Returns:
        The file.

    Raises:
        DataError: a comparison is more than a pair: it has more responses or preferences, or a preference with a weight.
    """
    weights = np.zeros(len(data))
    np.add.at(weights, np.repeat(np.arange(len(data)), data.preference_counts), data.values("weights"))
    larger = (data.response_counts > 2) | (data.preference_counts > 1) | (weights != 1)
    if larger.any():
        number = int(larger.argmax())
        responses = data.response_counts[number]
        size = f"{responses} responses" if responses > 2 else f"preferences with a total weight of {weights[number]:g}"
        raise DataError(
            f"{data.ids[number]}: {size}, but a chosen and a rejected column hold one pair; "
            "export pairs that are not grouped by prompt, ranked or weighted"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, COLUMNS_SCHEMA) as writer:
        for begin in range(0, len(data), EXPORT_ROWS):
            pairs = []
            for index in range(begin, min(begin + EXPORT_ROWS, len(data))):
                row = data[index]
                (edge,) = row.preferences
                chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
                masks = [1] * len(chosen), [1] * len(rejected)
                pairs.append((chosen, masks[0], rejected, masks[1], edge.margin, row.id))
            columns = zip(COLUMNS_SCHEMA, zip(*pairs, strict=True), strict=True)
            writer.write_batch(
                pa.record_batch([pa.array(values, field.type) for field, values in columns], schema=COLUMNS_SCHEMA)
            )
    return file
