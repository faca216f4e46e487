"""Tokenized comparisons on disk: written once as an Arrow file, then only memory-mapped.

A row stores the tokens that its sequences share once: `tokens` is the prefix, then the rest of each sequence in order, and `lengths` are
the lengths of the whole sequences. Example: sequences [1 2 3 9] and [1 2 4 5 9] are prefix_length 2, tokens [1 2 3 9 4 5 9], lengths [4 5].
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rmtrain.data.checks import Waterfall
from rmtrain.data.comparison import Preference, TokenizedComparison

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
    """Rows as they lie in the file."""
    comparisons = [row.comparison for row in rows]
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in comparisons],
        "source": [row.source for row in comparisons],
        "prefix_length": [row.prefix_length for row in comparisons],
        "prompt_length": [row.prompt_length for row in comparisons],
        "lengths": [[len(sequence) for sequence in row.sequences] for row in comparisons],
        "tokens": [_tokens(row) for row in comparisons],
        "prompt_hash": [row.prompt_hash for row in rows],
        "response_hashes": [row.response_hashes for row in rows],
    }
    for column, name in EDGE_COLUMNS.items():
        columns[column] = [[getattr(edge, name) for edge in row.preferences] for row in comparisons]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _tokens(row: TokenizedComparison) -> list[int]:
    tokens = list(row.sequences[0])
    for sequence in row.sequences[1:]:
        tokens.extend(sequence[row.prefix_length :])
    return tokens


class TokenizedData:
    """The comparisons of a split, memory-mapped. `data[i]` is a TokenizedComparison.

    Args:
        file: an Arrow file of `SCHEMA`.
        key: hash of everything that shaped the artifact.
        waterfall: what became of the rows of each source.

    Columns, one value for each comparison:
        response_counts int32: K.
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
        lengths = self._values("lengths", np.int32)
        self.response_counts = self._list_sizes("lengths")
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
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], index - int(self._starts[number])
        prefix = int(self.prefix_lengths[index])
        tokens, lengths = (_list_at(batch.column(name), row).tolist() for name in ("tokens", "lengths"))
        sequences, begin = [], prefix
        for length in lengths:
            end = begin + length - prefix
            sequences.append(tokens[:prefix] + tokens[begin:end])
            begin = end
        return TokenizedComparison(
            id=batch.column("id")[row].as_py(),
            source=batch.column("source")[row].as_py(),
            sequences=tuple(sequences),
            prefix_length=prefix,
            prompt_length=int(self.prompt_lengths[index]),
            preferences=_preferences(batch, row),
        )

    @cached_property
    def ids(self) -> list[str]:
        """Row ids."""
        return [row_id for batch in self._batches for row_id in batch.column("id").to_pylist()]

    @cached_property
    def sources(self) -> list[str]:
        """The source of each row, by its tag."""
        return [source for batch in self._batches for source in batch.column("source").to_pylist()]

    def _column(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(batch.column(name).to_numpy() for batch in self._batches)]).astype(dtype)

    def _values(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(batch.column(name).flatten().to_numpy() for batch in self._batches)])

    def _list_sizes(self, name: str) -> NDArray[np.int32]:
        return np.concatenate(
            [np.empty(0, np.int32), *(np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches)]
        )


def _list_at(column: pa.ListArray, row: int) -> NDArray[Any]:
    begin, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    values: NDArray[Any] = column.values[begin:end].to_numpy()
    return values


def _preferences(batch: pa.RecordBatch, row: int) -> tuple[Preference, ...]:
    columns = (_list_at(batch.column(column), row).tolist() for column in EDGE_COLUMNS)
    return tuple(Preference(*values) for values in zip(*columns, strict=True))


def file_hash(file: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
