"""Writes tokenized data: an Arrow file for each split, the rows that are dropped or gathered, and last the manifest."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import tee
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from rmtrain.data.raw.meter import Meter
from rmtrain.data.rows.batches import RawBatch
from rmtrain.data.rows.limits import Limits
from rmtrain.data.rows.loading import read_batches
from rmtrain.data.rows.reading import Progress, Reading
from rmtrain.data.stored.artifact import SCHEMA, file_hash
from rmtrain.data.stored.row_encoder import SPLITS, EncodedRows, RowTask
from rmtrain.data.waterfall import Waterfall
from rmtrain.recipe.schema import Source

Encode = Callable[[Iterable[RowTask]], Iterator[dict[str, EncodedRows]]]
MANIFEST, DROPPED, GATHERED = "manifest.json", "dropped.jsonl", "gathered.jsonl"


class Builder:
    """Writes the artifact of one key. Its bytes depend on the sources and on nothing else: not on time, nor on processes.

    Args:
        directory: an empty directory.
        progress: told of every batch.
    """

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.directory, self.progress = directory, progress
        self.waterfalls = {split: Waterfall() for split in SPLITS}
        self.writers: dict[str, Any] = {}
        self.lists: dict[str, IO[str]] = {}
        self.limits: dict[tuple[str, str], Limits] = {}

    def build(self, train: Sequence[Source], evaluation: Sequence[Source], encode: Encode, facts: dict[str, Any]) -> None:
        """Write everything.

        Args:
            train: the sources to train on.
            evaluation: those to evaluate on.
            encode: what a `RowEncoder` does, over a stream of tasks, in their order.
            facts: what else the manifest shall hold.
        """
        with ExitStack() as files:
            for split in SPLITS:
                self.writers[split] = files.enter_context(pa.ipc.new_file(str(self._file(split)), SCHEMA))
            for name in (DROPPED, GATHERED):
                self.lists[name] = files.enter_context((self.directory / name).open("w", encoding="utf-8"))
            sources = [(source, split) for split, members in zip(SPLITS, (train, evaluation), strict=True) for source in members]
            self._write_all(_tasks(sources, self.progress), encode)
            for source, split in sources:
                self.waterfalls[split].of(source.title)  # those without rows, too
        splits = {
            split: {"sha256": file_hash(self._file(split)), "waterfall": self.waterfalls[split].to_json()} for split in SPLITS
        }
        manifest = json.dumps({**facts, "splits": splits}, indent=2)
        (self.directory / MANIFEST).write_text(manifest + "\n", encoding="utf-8")

    def _file(self, split: str) -> Path:
        return self.directory / f"{split}.arrow"

    def _write_all(self, tasks: Iterator[RowTask], encode: Encode) -> None:
        read: Counter[tuple[str, str]] = Counter()
        tasks, given_out = tee(tasks)
        for task, encoded in zip(tasks, encode(given_out), strict=True):
            for split, rows in encoded.items():
                self._write(split, task.source, self._within_limits(task, split, rows))
                read[task.split, task.source] += rows.read
            self.progress(Reading(task.source, read[task.split, task.source], task.share))

    def _within_limits(self, task: RowTask, split: str, rows: EncodedRows) -> EncodedRows:
        """What `dedup` and `cap` leave of some rows. All rows of a source come by here in order, whoever encoded them."""
        if rows.marks is None or rows.stored is None or not isinstance(task.rows, RawBatch):
            return rows
        limits = self.limits.setdefault((task.split, task.source), Limits(task.rows.source))
        return rows.without(limits.refused(split, rows.stored.column("id").to_pylist(), rows.marks))

    def _write(self, split: str, source: str, rows: EncodedRows) -> None:
        self.waterfalls[split].of(source).add(rows.kept, len(rows.gathered), rows.dropped, rows.left_out)
        where = {"split": split, "source": source}
        for row in rows.dropped:
            self._list(DROPPED, {**where, "id": row.id, "reason": row.reason, "detail": row.detail})
        for row_id, comparison_id in rows.gathered:
            self._list(GATHERED, {**where, "id": row_id, "comparison": comparison_id})
        if rows.stored is not None:
            self.writers[split].write_batch(rows.stored)

    def _list(self, name: str, record: dict[str, str]) -> None:
        self.lists[name].write(json.dumps(record) + "\n")


def _tasks(sources: Iterable[tuple[Source, str]], progress: Progress) -> Iterator[RowTask]:
    for source, split in sources:
        meter, read = Meter(), 0
        for rows in read_batches(source, meter, partial(_tell, source, meter, progress)):
            share = None
            if isinstance(rows, RawBatch):
                read += len(rows.rows)
                share = max(meter.share or 0.0, read / source.limit) if source.limit else meter.share
            yield RowTask(rows, source.title, split, source.holdout, share)


def _tell(source: Source, meter: Meter, progress: Progress, rows: int) -> None:
    progress(Reading(source.title, rows, meter.share, "gathering"))
