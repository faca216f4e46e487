"""Writes tokenized data, with several processes: an Arrow file for each split, the rows dropped or gathered, and last the manifest."""

import gc
import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, tee
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from rmtrain.data.artifact import SCHEMA, StoredRow, record_batch
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
from rmtrain.data.encoded_rows import EncodedRows, RowTask
from rmtrain.data.resampling import Note, note_of, resample, with_notes
from rmtrain.data.rows.loading import Progress, Reading, read_batches
from rmtrain.data.rows.select import Limits, RawBatch, Selection, content_key, is_limited, select, with_place
from rmtrain.data.text.encoder import Encoder, LengthPolicy
from rmtrain.data.text.renderer import template_variables
from rmtrain.data.waterfall import Waterfall
from rmtrain.errors import RmtrainError
from rmtrain.files import sha256_file
from rmtrain.recipe.schema import Data, Source, TextSource

SPLITS = ("train", "eval")
MANIFEST, DROPPED, GATHERED = "manifest.json", "dropped.jsonl", "gathered.jsonl"


class RowEncoder:
    """Encodes tasks, in any process. The result of a task depends on nothing but the task and the policies of `data`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
        self.encoder = Encoder(tokenizer, LengthPolicy.of(data), data.allow_rewritten)
        self.variables = template_variables(str(tokenizer.chat_template)) - set(data.chat_template_kwargs)

    def __call__(self, task: RowTask) -> dict[str, EncodedRows]:
        """Return the rows of a task by the split they go to.

        Raises:
            DataError: see `select`; or the chat template fails, or `overlong: error` and rows are too long.
        """
        selection = select(task.rows) if isinstance(task.rows, RawBatch) else Selection(list(task.rows))
        groups = selection.groups if isinstance(task.rows, RawBatch) and is_limited(task.source) else None
        hashes = {row.id: prompt_hash(row) for row in selection.rows if not isinstance(row, Dropped)}
        members: dict[str, list[Adapted]] = {split: [] for split in SPLITS}
        for row in selection.rows:
            held_out = row.id in hashes and is_held_out(hashes[row.id], task.source.holdout, task.source.fold)
            members["eval" if held_out else task.split].append(row)
        return {
            split: self._encode(rows, hashes, groups, selection.places, task, split) for split, rows in members.items() if rows
        }

    def _encode(
        self,
        rows: Sequence[Adapted],
        hashes: Mapping[str, int],
        groups: Mapping[str, int] | None,
        places: Mapping[str, str],
        task: RowTask,
        split: str,
    ) -> EncodedRows:
        source = task.source
        unset = self.variables - {*source.variables, *source.columns} if isinstance(source, TextSource) else set()
        is_resampled = split == "train" and not task.are_made and bool(source.resampling_keys)
        texts = [row for row in rows if isinstance(row, Comparison)]
        tokens = [row for row in rows if isinstance(row, TokenizedComparison)]
        dropped = [row for row in rows if isinstance(row, Dropped)]
        stored, notes, left_out, winners = list[StoredRow](), list[Note](), Counter[str](), Counter[str]()
        fillable = Counter(name for row in texts for name in row.columns if name in unset)
        comparisons: list[Comparison | TokenizedComparison] = [*texts, *tokens]
        encoded = self.encoder.encode(texts, drop_overlong=task.are_made)
        for row, checked in zip(comparisons, [*encoded, *self.encoder.check(tokens)], strict=True):
            dropped += [with_place(lost, places) for lost in checked.lost]
            if checked.row is not None:
                left_out.update(checked.left_out)
                if isinstance(row, Comparison):
                    left_out.update(row.left_out)
                    winners.update(row.winners)
                responses = response_hashes(row)
                stored.append(StoredRow(checked.row, hashes[row.id], [responses[number] for number in checked.responses]))
                if is_resampled:
                    notes.append(note_of(row, stored[-1], checked.responses, source))
        marks = None
        if groups is not None:
            contents = [content_key(row.prompt_hash, row.response_hashes, row.comparison) for row in stored]
            marks = [(content, groups.get(row.comparison.id, 0)) for content, row in zip(contents, stored, strict=True)]
        gathered = [(row_id, row.comparison.id) for row in stored for row_id in rows_of(row.comparison)[1:]]
        batch = record_batch(stored) if stored else None
        if batch is not None and is_resampled:
            batch = with_notes(batch, notes)
        return EncodedRows(batch, gathered, dropped, marks, left_out, winners, fillable)


def build_artifact(
    directory: Path, data: Data, tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write the artifact of all sources of a recipe to an empty directory, with `facts` as further entries of its manifest.

    Its bytes depend neither on the time nor on the number of processes.
    """
    sources: dict[str, Sequence[Source]] = {"train": data.train, "eval": data.eval}
    waterfalls = {split: Waterfall() for split in SPLITS}
    with ExitStack() as files, in_order(partial(RowEncoder, tokenizer, data), data.processes) as encode:
        arrows = {split: files.enter_context(pa.ipc.new_file(str(directory / f"{split}.arrow"), SCHEMA)) for split in SPLITS}
        lists = {name: files.enter_context((directory / name).open("w", encoding="utf-8")) for name in (DROPPED, GATHERED)}
        for split, source, rows in resample(_encoded(sources, encode, progress), encode, directory, data, progress):
            is_normalized = source.weight is not None and not source.raw_weights
            weights = pc.sum(rows.stored.column("weight")).as_py() if is_normalized and rows.stored is not None else 0.0
            counts = (rows.left_out, rows.winners, rows.unset, rows.added, weights)
            waterfalls[split].of(source.title).add(rows.kept, len(rows.gathered), rows.dropped, *counts)
            where = {"split": split, "source": source.title}
            for row in rows.dropped:
                record = {**where, "id": row.id, "reason": row.reason, "detail": row.detail}
                lists[DROPPED].write(json.dumps(record) + "\n")
            for row_id, comparison_id in rows.gathered:
                lists[GATHERED].write(json.dumps({**where, "id": row_id, "comparison": comparison_id}) + "\n")
            if rows.stored is not None:
                arrows[split].write_batch(rows.stored)
    for split in SPLITS:
        for source in sources[split]:
            waterfalls[split].of(source.title)  # also a source without rows
    sha256 = {split: sha256_file(directory / f"{split}.arrow") for split in SPLITS}
    splits = {split: {"sha256": sha256[split], "waterfall": waterfalls[split].to_json()} for split in SPLITS}
    (directory / MANIFEST).write_text(json.dumps({**facts, "splits": splits}, indent=2) + "\n", encoding="utf-8")


def _encoded(
    sources: Mapping[str, Sequence[Source]],
    encode: Callable[[Iterable[RowTask]], Iterator[dict[str, EncodedRows]]],
    progress: Progress,
) -> Iterator[tuple[str, Source, EncodedRows]]:
    """Yield the rows of each task and split, without those that `dedup` and `cap` drop."""
    limits: dict[tuple[str, str], Limits] = {}
    read: dict[tuple[str, str], int] = defaultdict(int)
    tasks, submitted = tee(
        RowTask(rows, source, split) for split in SPLITS for source in sources[split] for rows in read_batches(source, progress)
    )
    for task, encoded in zip(tasks, encode(submitted), strict=True):
        place = task.split, task.source.title
        for split, rows in encoded.items():
            read[place] += rows.kept + len(rows.gathered) + len(rows.dropped)
            if rows.marks is not None and rows.stored is not None:
                # Here and not in the encoder: an earlier row may have been encoded by another process.
                limit = limits.setdefault(place, Limits(task.source))
                ids = rows.stored.column("id").to_pylist()
                problems = [limit.problem(split, *mark) for mark in rows.marks]
                refused = {row_id: problem for row_id, problem in zip(ids, problems, strict=True) if problem}
                rows = rows.without(refused, task.source.title)
            yield split, task.source, rows
        progress(Reading(task.source.title, read[place], task.rows.share if isinstance(task.rows, RawBatch) else None))


AHEAD = 2
"""Number of tasks for each process that are submitted before the first result is due."""
Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task], Result]

_work: Callable[[Any], Any]


@contextmanager
def in_order(
    make_work: Callable[[], Work[Task, Result]], processes: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """Yield a function that maps tasks to results like `map`, with processes that live as long as the block.

    `make_work` makes the function for one task. It is pickled, and called once in each process; with `processes` of 1, only in this one.

    Raises:
        RmtrainError: a process was killed.
    """
    if processes == 1:
        work, was_enabled = make_work(), gc.isenabled()
        gc.disable()
        try:
            yield lambda tasks: (_run(work, task) for task in tasks)
        finally:
            if was_enabled:
                gc.enable()
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (make_work,))  # tokenizers' threads do not survive a fork

    def submit(task: Task) -> Future[Result]:
        # The pool starts its processes here, and each would run the main script again, which may be heavy or unguarded: hide it.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return pool.submit(_call, task)
        finally:
            sys.modules["__main__"] = main

    def apply(tasks: Iterable[Task]) -> Iterator[Result]:
        tasks = iter(tasks)
        submitted = deque(map(submit, islice(tasks, AHEAD * processes)))
        while submitted:
            result = submitted.popleft().result()
            submitted.extend(map(submit, islice(tasks, 1)))
            yield result

    try:
        yield apply
    except BrokenProcessPool as error:
        raise RmtrainError(
            "data.processes: a process was killed or ran out of memory before its work was done; set fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(make_work: Callable[[], Any]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    # Signals of a terminal or scheduler reach all processes of a job; the parent stops the others.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.disable()
    _work = make_work()


def _exit_with_parent() -> None:
    """Wait for the parent's death: the pool's queues do not report it, and a process would wait for its next task forever."""
    parent = parent_process()
    assert parent is not None, "this process was spawned"
    parent.join()
    os._exit(1)


def _call(task: Any) -> Any:
    return _run(_work, task)


def _run(work: Work[Task, Result], task: Task) -> Result:
    # A task makes a hundred thousand objects and hardly a cycle: collecting once after it instead of all the time saves a sixth.
    result = work(task)
    gc.collect(0)
    return result
