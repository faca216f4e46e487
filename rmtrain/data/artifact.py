"""Tokenized comparisons on disk: written once as an Arrow file, then only memory-mapped.

A row stores the tokens that its sequences share once: `tokens` is the prefix, then the rest of each sequence in order, and `lengths` are
the lengths of the whole sequences. Example: sequences [1 2 3 9] and [1 2 4 5 9] are prefix_length 2, tokens [1 2 3 9 4 5 9], lengths [4 5].
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
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

HASH_BYTES = 2**20
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
    """A comparison and what is kept of its text: hashes of its prompt and of each response."""

    comparison: TokenizedComparison
    prompt_hash: int
    response_hashes: Sequence[int]


def record_batch(rows: Sequence[StoredRow]) -> pa.RecordBatch:
    """Rows as they lie in the file; at least one."""
    comparisons = [row.comparison for row in rows]
    edges = [edge for row in comparisons for edge in row.preferences]
    edge_counts = [len(row.preferences) for row in comparisons]
    hashes = [value for row in rows for value in row.response_hashes]
    response_counts = [len(row.sequences) for row in comparisons]
    lengths = [len(sequence) for row in comparisons for sequence in row.sequences]
    tokens = [_tokens(row) for row in comparisons]
    columns = {
        "id": pa.array([row.id for row in comparisons], pa.string()),
        "source": pa.array([row.source for row in comparisons], pa.string()),
        "prefix_length": pa.array(np.array([row.prefix_length for row in comparisons], np.int32)),
        "prompt_length": pa.array(np.array([row.prompt_length for row in comparisons], np.int32)),
        "lengths": _lists(np.array(lengths, np.int32), response_counts),
        "tokens": _lists(np.concatenate(tokens), [len(row) for row in tokens]),
        "prompt_hash": pa.array(np.array([row.prompt_hash for row in rows], np.uint64)),
        "response_hashes": _lists(np.array(hashes, np.uint64), response_counts),
    }
    for column, name in EDGE_COLUMNS.items():
        dtype = SCHEMA.field(column).type.value_type.to_pandas_dtype()
        columns[column] = _lists(np.array([getattr(edge, name) for edge in edges], dtype), edge_counts)
    return pa.record_batch([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _lists(values: NDArray[Any], sizes: Sequence[int]) -> pa.ListArray:
    """A column of lists: `values` cut into pieces of these sizes."""
    return pa.ListArray.from_arrays(np.cumsum([0, *sizes], dtype=np.int32), values)


def _tokens(row: TokenizedComparison) -> NDArray[np.int32]:
    first, *others = row.sequences
    return np.concatenate([np.asarray(first, np.int32), *(np.asarray(ids[row.prefix_length :], np.int32) for ids in others)])


class TokenizedData:
    """The comparisons of a split, memory-mapped. `data[i]` is a TokenizedComparison.

    Args:
        file: an Arrow file of `SCHEMA`.
        key: hash of everything that shaped the artifact.
        waterfall: what became of the rows of each source.

    Columns, one value for each comparison:
        response_counts int32: K. preference_counts int32: edges.
        prompt_lengths, prefix_lengths int32: in tokens.
        longest int32: tokens of the longest sequence.
        total_tokens int64: of all sequences together.
        unique_tokens int64: with the common prefix counted once.
        prompt_hashes uint64; response_hashes uint64, one for each response, one comparison after the other.
    """

    def __init__(self, file: Path, key: str, waterfall: Waterfall) -> None:
        self.key, self.waterfall = key, waterfall
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._opened: dict[int, _Columns] = {}
        lengths = self._values("lengths", np.int32)
        self.response_counts = self._list_sizes("lengths")
        self.preference_counts = self._list_sizes("winners")
        self.prompt_lengths = self._column("prompt_length", np.int32)
        self.prefix_lengths = self._column("prefix_length", np.int32)
        begins = np.cumsum(self.response_counts) - self.response_counts
        self.longest = np.maximum.reduceat(lengths, begins) if len(self) else lengths
        self.total_tokens = np.add.reduceat(lengths.astype(np.int64), begins) if len(self) else lengths.astype(np.int64)
        self.unique_tokens = self.total_tokens - (self.response_counts.astype(np.int64) - 1) * self.prefix_lengths
        self.prompt_hashes = self._column("prompt_hash", np.uint64)
        self.response_hashes = self._values("response_hashes", np.uint64)
        self.lengths = lengths

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
    def ids(self) -> "Texts":
        """Row ids."""
        return Texts([batch.column("id") for batch in self._batches])

    @cached_property
    def sources(self) -> "Texts":
        """The source of each row, by its tag."""
        return Texts([batch.column("source") for batch in self._batches])

    def preference_lengths(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokens of the winner and of the loser of each preference, prompt not counted, one comparison after the other."""
        begins = np.repeat(np.cumsum(self.response_counts) - self.response_counts, self.preference_counts)
        prompts = np.repeat(self.prompt_lengths, self.preference_counts)
        winners, losers = (self.lengths[begins + self._values(side, np.int32)] - prompts for side in ("winners", "losers"))
        return winners, losers

    def preference_weights(self) -> NDArray[np.float64]:
        """The weight of each preference, one comparison after the other."""
        return self._values("weights", np.float64)

    def edge_values(self, column: str) -> NDArray[Any]:
        """A column of `EDGE_COLUMNS`: a value for each preference, one comparison after the other."""
        return self._values(column, SCHEMA.field(column).type.value_type.to_pandas_dtype())

    def _column(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(batch.column(name).to_numpy() for batch in self._batches)]).astype(dtype)

    def _values(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(batch.column(name).flatten().to_numpy() for batch in self._batches)])

    def _list_sizes(self, name: str) -> NDArray[np.int32]:
        return np.concatenate(
            [np.empty(0, np.int32), *(np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches)]
        )


class Texts(Sequence[str]):
    """A column of texts that stays in the file: a list of a million row ids would hold memory that nobody needs.

    Args:
        pieces: the column, batch by batch.
    """

    def __init__(self, pieces: Sequence[pa.StringArray]) -> None:
        self._pieces = pieces
        self._starts = np.cumsum([0, *map(len, pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        piece = int(self._starts.searchsorted(index, side="right")) - 1
        return str(self._pieces[piece][index - int(self._starts[piece])].as_py())

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            yield from piece.to_pylist()

    def __contains__(self, text: object) -> bool:
        return any(pc.index(piece, text).as_py() >= 0 for piece in self._pieces) if isinstance(text, str) else False

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same texts."""
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(one == two for one, two in zip(self, other, strict=True))
        )

    def index(self, value: Any, start: int = 0, stop: int = sys.maxsize) -> int:
        """The first place of a text; raises ValueError where it is not."""
        for place, text in enumerate(islice(self, start, stop), start):
            if text == value:
                return place
        raise ValueError(f"{value!r} is not here")

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a record batch as arrays over the mapped file. `_ends` say where the list of each row ends; they begin with 0."""

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
        """The columns of a batch."""
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
        """A row of the batch. Its first sequence lies in the file as it is; the others are put together."""
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


def file_hash(file: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


TIE = 0.5
"""Target probability of a preference that is none."""


@dataclass(frozen=True, slots=True)
class Edges:
    """E preferences, one comparison after the other; every field has one value for each.

    comparisons int64: number of the comparison that states it.
    winners, losers int64: numbers of the responses within their comparison.
    winner_nodes, loser_nodes uint64: hash of each response with its prompt, both normalised: equal nodes are the same text as far as case,
        spacing and Unicode form go, in whatever row.
    margins, probabilities float64: as in `Preference`.
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
        """Which of them have a winner: a target probability above that of a tie."""
        return self.probabilities > TIE


def edges_of(data: TokenizedData) -> Edges:
    """The edges of all comparisons."""
    begins = np.cumsum(data.response_counts, dtype=np.int64) - data.response_counts
    comparisons = np.repeat(np.arange(len(data), dtype=np.int64), data.preference_counts)
    winners, losers = (data.edge_values(side).astype(np.int64) for side in ("winners", "losers"))
    nodes = mix(np.repeat(data.prompt_hashes, data.response_counts), data.response_hashes)
    first = begins[comparisons]
    return Edges(
        comparisons,
        winners,
        losers,
        nodes[first + winners],
        nodes[first + losers],
        data.edge_values("margins"),
        data.edge_values("probabilities"),
    )


def mix(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """One 64-bit value from several uint64 values, in order (the multiplier is that of splitmix64)."""
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
        file: the Parquet file to write; its folder is made where it is missing.

    Returns:
        The file.

    Raises:
        DataError: a comparison is more than a pair: it has more responses or preferences, or a preference that weighs more.
    """
    _refuse_more_than_pairs(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, COLUMNS_SCHEMA) as writer:
        for begin in range(0, len(data), EXPORT_ROWS):
            writer.write_batch(_batch(data, range(begin, min(begin + EXPORT_ROWS, len(data)))))
    return file


def _refuse_more_than_pairs(data: TokenizedData) -> None:
    larger = (data.response_counts > 2) | (data.preference_counts > 1)
    if not larger.any():
        larger = data.preference_weights() != 1
    if larger.any():
        number = int(larger.argmax())
        responses, weight = data.response_counts[number], sum(edge.weight for edge in data[number].preferences)
        found = f"{responses} responses" if responses > 2 else f"preferences that weigh {weight:g}"
        raise DataError(
            f"{data.ids[number]}: {found}; a chosen and a rejected column hold one pair, so export pairs, neither gathered nor ranked"
        )


def _batch(data: TokenizedData, indices: range) -> pa.RecordBatch:
    pairs = []
    for row in (data[index] for index in indices):
        edge = row.preferences[0]
        chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
        pairs.append(
            {
                "input_ids_chosen": chosen,
                "attention_mask_chosen": [1] * len(chosen),
                "input_ids_rejected": rejected,
                "attention_mask_rejected": [1] * len(rejected),
                "margin": edge.margin,
                "id": row.id,
            }
        )
    return pa.RecordBatch.from_pylist(pairs, schema=COLUMNS_SCHEMA)
