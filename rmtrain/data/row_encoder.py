"""A batch of rows to what is stored of it: adapted, split, encoded and checked. This is what a worker process does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import StoredRow, record_batch
from rmtrain.data.batches import Adapted, RawBatch, adapt_batch
from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison, rows_of
from rmtrain.data.hashes import is_held_out, prompt_hash, response_hashes
from rmtrain.data.tokenize import Encoder
from rmtrain.recipe.schema import Data

SPLITS = ("train", "eval")


@dataclass(frozen=True, slots=True)
class RowTask:
    """Rows of a source to encode, the split they are for, and the share of their prompts that goes to `eval` instead."""

    rows: RawBatch | Sequence[Adapted]
    source: str
    split: str
    holdout: float | None


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """What some rows give one split.

    stored: their comparisons; None: there are none.
    kept: number of comparisons.
    gathered: `(row id, id of the comparison it is part of)` of rows that are part of another row's comparison.
    dropped: rows that are not used.
    """

    stored: pa.RecordBatch | None
    kept: int
    gathered: list[tuple[str, str]]
    dropped: list[Dropped]

    @property
    def read(self) -> int:
        """Rows of the source."""
        return self.kept + len(self.gathered) + len(self.dropped)


class RowEncoder:
    """Encodes tasks; one serves a whole process. What a task gives depends on nothing else.

    Args:
        tokenizer: one that `load_tokenizer` gave.
        data: the policies.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        self.encoder = Encoder(tokenizer, data)

    def __call__(self, task: RowTask) -> dict[str, EncodedRows]:
        """The rows of a task by the split they go to.

        Raises:
            DataError: as `adapt_batch` says, the chat template fails, or `overlong: error` and rows are too long.
        """
        rows = adapt_batch(task.rows) if isinstance(task.rows, RawBatch) else task.rows
        hashes = {row.id: prompt_hash(row) for row in rows if not isinstance(row, Dropped)}
        targets: dict[str, list[Adapted]] = {split: [] for split in SPLITS}
        for row in rows:
            held_out = row.id in hashes and is_held_out(hashes[row.id], task.holdout)
            targets["eval" if held_out else task.split].append(row)
        return {split: self._encode(members, hashes) for split, members in targets.items() if members}

    def _encode(self, rows: Sequence[Adapted], hashes: Mapping[str, int]) -> EncodedRows:
        texts = [row for row in rows if isinstance(row, Comparison)]
        tokens = [row for row in rows if isinstance(row, TokenizedComparison)]
        dropped = [row for row in rows if isinstance(row, Dropped)]
        stored: list[StoredRow] = []
        came: list[Comparison | TokenizedComparison] = [*texts, *tokens]
        for row, checked in zip(came, [*self.encoder.encode(texts), *self.encoder.check(tokens)], strict=True):
            dropped += checked.lost
            if checked.row is not None:
                responses = response_hashes(row)
                stored.append(StoredRow(checked.row, hashes[row.id], [responses[number] for number in checked.responses]))
        gathered = [(row_id, row.comparison.id) for row in stored for row_id in rows_of(row.comparison)[1:]]
        return EncodedRows(record_batch(stored) if stored else None, len(stored), gathered, dropped)
