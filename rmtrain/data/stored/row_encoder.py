"""A batch of rows to what is stored of it: adapted, split, encoded and checked. This is what a worker process does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rmtrain.data.comparison import Comparison, Dropped, TokenizedComparison, rows_of
from rmtrain.data.hashes import is_held_out, prompt_hash, response_hashes
from rmtrain.data.rows.batches import Adapted, RawBatch
from rmtrain.data.rows.limits import Marks, content_key, is_limited
from rmtrain.data.rows.select import Selection, select
from rmtrain.data.stored.artifact import StoredRow, record_batch
from rmtrain.data.text.tokenize import Encoder
from rmtrain.recipe.schema import Data

SPLITS = ("train", "eval")


@dataclass(frozen=True, slots=True)
class RowTask:
    """Rows of a source to encode, the split they are for, and the share of their prompts that goes to `eval` instead.

    Of rows that are adapted already, the recipe's selection is made; of others, `select` makes it.
    """

    rows: RawBatch | Sequence[Adapted]
    source: str
    split: str
    holdout: float | None
    share: float | None = None
    """How far the source was read when they were; None: not known."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """What some rows give one split.

    stored: their comparisons; None: there are none.
    kept: number of comparisons.
    gathered: `(row id, id of the comparison it is part of)` of rows that are part of another row's comparison.
    dropped: rows that are not used.
    marks: what `dedup` and `cap` know the comparisons by; None: they have nothing to do.
    left_out: how many responses are not in comparisons that stay, by reason.
    """

    stored: pa.RecordBatch | None
    kept: int
    gathered: list[tuple[str, str]]
    dropped: list[Dropped]
    marks: Marks | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Rows of the source."""
        return self.kept + len(self.gathered) + len(self.dropped)

    def without(self, refused: Sequence[Dropped]) -> "EncodedRows":
        """The same rows, of which some comparisons, with all their rows, are dropped."""
        if not refused or self.stored is None:
            return self
        problems = {row.id: row for row in refused}
        kept = [row_id not in problems for row_id in self.stored.column("id").to_pylist()]
        parts = [replace(problems[whole], id=row_id) for row_id, whole in self.gathered if whole in problems]
        return EncodedRows(
            stored=self.stored.filter(pa.array(kept)) if any(kept) else None,
            kept=sum(kept),
            gathered=[pair for pair in self.gathered if pair[1] not in problems],
            dropped=[*self.dropped, *refused, *parts],
            left_out=self.left_out,
        )


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
            DataError: as `select` says, the chat template fails, or `overlong: error` and rows are too long.
        """
        selection = select(task.rows) if isinstance(task.rows, RawBatch) else Selection(list(task.rows))
        rows = selection.rows
        hashes = {row.id: prompt_hash(row) for row in rows if not isinstance(row, Dropped)}
        targets: dict[str, list[Adapted]] = {split: [] for split in SPLITS}
        for row in rows:
            held_out = row.id in hashes and is_held_out(hashes[row.id], task.holdout)
            targets["eval" if held_out else task.split].append(row)
        encoded = {split: self._encode(members, hashes) for split, members in targets.items() if members}
        if not isinstance(task.rows, RawBatch) or not is_limited(task.rows.source):
            return {split: part for split, (part, _) in encoded.items()}
        return {split: replace(part, marks=_marks(rows, selection.groups)) for split, (part, rows) in encoded.items()}

    def _encode(self, rows: Sequence[Adapted], hashes: Mapping[str, int]) -> tuple[EncodedRows, list[StoredRow]]:
        texts = [row for row in rows if isinstance(row, Comparison)]
        tokens = [row for row in rows if isinstance(row, TokenizedComparison)]
        dropped = [row for row in rows if isinstance(row, Dropped)]
        stored, left_out = list[StoredRow](), Counter[str]()
        came: list[Comparison | TokenizedComparison] = [*texts, *tokens]
        for row, checked in zip(came, [*self.encoder.encode(texts), *self.encoder.check(tokens)], strict=True):
            dropped += checked.lost
            if checked.row is not None:
                left_out.update(checked.left_out)
                left_out.update(row.left_out if isinstance(row, Comparison) else ())
                responses = response_hashes(row)
                stored.append(StoredRow(checked.row, hashes[row.id], [responses[number] for number in checked.responses]))
        gathered = [(row_id, row.comparison.id) for row in stored for row_id in rows_of(row.comparison)[1:]]
        batch = record_batch(stored) if stored else None
        return EncodedRows(batch, len(stored), gathered, dropped, left_out=left_out), stored


def _marks(rows: Sequence[StoredRow], groups: Mapping[str, int]) -> Marks:
    contents = [content_key(row.prompt_hash, row.response_hashes, row.comparison.preferences) for row in rows]
    return Marks(np.array(contents, np.uint64), np.array([groups.get(row.comparison.id, 0) for row in rows], np.uint64))
