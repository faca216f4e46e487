"""Writes tokenized data: an Arrow file for each split, the rows that are dropped or gathered, and last the manifest."""

import gc
import json
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, tee
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeVar

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import SCHEMA, StoredRow, file_hash, record_batch
from rmtrain.data.comparison import (
    Adapted,
    Comparison,
    Dropped,
    TokenizedComparison,
    is_held_out,
    prompt_hash,
    response_hashes,
    rows_of,
)
from rmtrain.data.rows.adapt import RawBatch
from rmtrain.data.rows.loading import Progress, Reading, read_batches
from rmtrain.data.rows.select import Limits, Marks, Selection, content_key, is_limited, select
from rmtrain.data.text.tokenize import Encoder
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import RmtrainError
from rmtrain.recipe.schema import Data, Source

AHEAD = 2
"""Tasks that are given out for each process before the first of them is due."""
Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task], Result]

_work: Callable[[Any], Any]
_all_started: Barrier


@contextmanager
def in_order(
    make_work: Callable[[], Work[Task, Result]], processes: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """A function that maps tasks to results like `map`, with `processes` processes that live as long as the block.

    A few tasks are read ahead. Processes are spawned: the tokenizer's threads do not survive a fork.

    Args:
        make_work: makes the function for one task; called once in each process, and pickled for that.
        processes: 1: everything happens here.

    Raises:
        RmtrainError: a process was killed.
    """
    if processes == 1:
        work = make_work()
        with _collector_paused():
            yield lambda tasks: (_done(work, task) for task in tasks)
        return
    spawning = get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawning, _start, (make_work, spawning.Barrier(processes)))
    try:
        with _without_main():
            for started in [pool.submit(_meet) for _ in range(processes)]:
                started.result()
        yield lambda tasks: _results(pool, iter(tasks), AHEAD * processes)
    except BrokenProcessPool as error:
        raise RmtrainError(
            "a process of data.processes ended before its work was done, killed or out of memory; set fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A task makes a hundred thousand objects and hardly a cycle; to look for some over and over takes a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _done(work: Work[Task, Result], task: Task) -> Result:
    result = work(task)
    gc.collect(0)  # among what is new, once
    return result


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes started here do not run the main script again, which may be heavy, or have no guard against it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _results(pool: ProcessPoolExecutor, tasks: Iterator[Task], ahead: int) -> Iterator[Any]:
    given: deque[Future[Any]] = deque(pool.submit(_call, task) for task in islice(tasks, ahead))
    while given:
        result = given.popleft().result()
        given.extend(pool.submit(_call, task) for task in islice(tasks, 1))
        yield result


def _start(make_work: Callable[[], Any], all_started: Barrier) -> None:
    global _work, _all_started
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()
    _work, _all_started = make_work(), all_started


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this process was spawned"
    parent.join()
    os._exit(1)


def _meet() -> None:
    """Keep a process busy until there are all of them, so that the pool starts them all."""
    _all_started.wait()


def _call(task: Any) -> Any:
    return _done(_work, task)


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
    return Marks(contents, [groups.get(row.comparison.id, 0) for row in rows])


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
            share = task.rows.share if isinstance(task.rows, RawBatch) else None
            self.progress(Reading(task.source, read[task.split, task.source], share))

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
        for rows in read_batches(source, progress):
            yield RowTask(rows, source.title, split, source.holdout)
