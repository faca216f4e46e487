"""The directory of a run: what the run is made of, and its line-by-line records; `run_check` says who may train in it.

`run.json` marks a run directory and holds the id of the run. A directory without it belongs to someone else: nothing in it is touched.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from rmtrain.engine.checkpoint import Checkpoint, Checkpoints
from rmtrain.engine.run_check import (
    ENVIRONMENT,
    LOCK,
    check_output_dir,
    length_changes,
    lock_run,
    read_marker,
    run_path,
    unfinished_run,
)
from rmtrain.errors import DISK_FULL, CheckpointError, RmtrainError, TryAgain
from rmtrain.files import atomic_write, sync, write_text
from rmtrain.recipe.load import MARKER, RECIPE, dump_recipe, hook_files, load_recipe, with_absolute_paths
from rmtrain.recipe.schema import Recipe

logger = logging.getLogger("rmtrain")

RECORDS = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "nonfinite.jsonl")


class RunDirectory:
    """The files of one run, under one path.

    Args:
        path: relative when it is below the current directory; shown to people.
        run_id: written into each checkpoint of the run.
        continues: whether the run was started earlier.
        lock: keeps other processes out; None on ranks other than the main one.
    """

    def __init__(self, path: Path, run_id: str, continues: bool, lock: FileLock | None = None) -> None:
        self.path, self.run_id, self.continues, self.lock = path, run_id, continues, lock
        self.is_finished = False
        self._lock_file = None if lock is None else (path / LOCK).stat()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the lock: the main process keeps it when it sends the directory to the other ranks."""
        return type(self), (self.path, self.run_id, self.continues)

    @classmethod
    def open(cls, recipe: Recipe, environment: dict[str, Any], fresh: bool = False, resume: Path | None = None) -> Self:
        """Lock the directory of a run for this process, and write what the run is made of: resolved recipe, versions, hashes.

        An unfinished run of this recipe, or a finished one of another length, is continued, unless `fresh` renames it and starts another.

        Raises:
            RecipeError, CheckpointError: as `check_output_dir`.
            TryAgain: the disk is full or fails.
        """
        path = check_output_dir(recipe, fresh, resume)
        if fresh and (path / MARKER).exists():
            names = (path.with_name(f"{path.name}.old-{number}") for number in count(1))
            aside = path.rename(next(name for name in names if not name.exists()))
            logger.info("renamed the older run in %s to %s", path, aside)
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_run(path)
        try:
            run_id = unfinished_run(path, recipe, resume)  # again: another process may have trained here since the check
            directory = cls(path, run_id or uuid.uuid4().hex, continues=run_id is not None, lock=lock)
            directory._mark(finished=False)
            for name, code in hook_files(recipe).items():
                with disk_errors(path / name), atomic_write(path / name) as file:
                    file.write(code)
            directory._write(RECIPE, dump_recipe(with_absolute_paths(recipe)))
            directory._write(ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
            directory.checkpoints.directory.mkdir(exist_ok=True)
            directory.checkpoints.clean()
        except BaseException:
            lock.release()
            raise
        return directory

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            self.lock.release()

    def keep_lock(self) -> None:
        """Lock the directory again if the lock file was removed, as a clean-up of old files does.

        Raises TryAgain if it was replaced, or the whole run was removed.
        """
        if self._lock_file is None:
            return
        with disk_errors(self.path / LOCK):
            if not (self.path / MARKER).exists():
                raise TryAgain(f"{self.path / MARKER}: was removed while the run was in progress; run the same command again")
            if not (self.path / LOCK).exists():
                logger.warning("%s was removed while this run held it; it is locked again", self.path / LOCK)
                self.lock = lock_run(self.path)
                self._lock_file = (self.path / LOCK).stat()
            elif not os.path.samestat(self._lock_file, (self.path / LOCK).stat()):
                raise TryAgain(
                    f"{self.path / LOCK}: was replaced while this run held it, so that another process may work in {self.path}; "
                    "stop that one, and run the same command again"
                )

    def finish(self) -> None:
        """Mark the run as finished."""
        self.keep_lock()
        self._mark(finished=True)
        self.is_finished = True

    def fail(self, error: RmtrainError) -> None:
        """Note on the main process which error ended the run, until it is resumed. With TryAgain it was not the run that failed."""
        if self.lock is not None and not isinstance(error, TryAgain):
            self._mark(finished=self.is_finished, problem=error.problems[0])

    def sync(self) -> None:
        """Flush the records to the disk; raise TryAgain when it is full or fails, or the lock was replaced."""
        self.keep_lock()
        for file in self._records():
            with disk_errors(file):
                sync(file)

    def rewind(self, step: int, last_evaluated_step: int) -> None:
        """Cut the records back to what had happened after `step` steps, of which `last_evaluated_step` was evaluated last.

        A line that was half written when the process ended is cut off as well.
        """
        for file in self._records():
            with file.open("r+b") as stream:
                end = 0
                while (line := stream.readline()) and _is_before(line, step, last_evaluated_step):
                    end = stream.tell()
                stream.truncate(end)

    def _records(self) -> list[Path]:
        return [self.path / name for name in RECORDS if (self.path / name).exists()]

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.path / "checkpoints", self.run_id)

    @property
    def model(self) -> Path:
        """The directory of the exported model."""
        return self.path / "model"

    def _mark(self, finished: bool, **more: str) -> None:
        self._write(MARKER, json.dumps({"run_id": self.run_id, "finished": finished, **more}, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with disk_errors(self.path / name):
            write_text(self.path / name, text)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Raise TryAgain, naming the file, when the disk does not take what is written in this block."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise TryAgain(f"{file}: the disk is full; make room and run the same command again") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise TryAgain(f"{file}: could not be written: {reason}; run the same command again once the disk is writable") from error


def checkpoint_of_other_length(recipe: Recipe, resume: Path | None) -> tuple[list[str], Checkpoint | None]:
    """Return how the length of the run in `run.output_dir` changes with this recipe, and the checkpoint that it would be resumed from.

    Raises:
        CheckpointError: the run is finished and has no checkpoint left; or see `Checkpoints.newest` and `read`.
    """
    path = run_path(recipe.run.output_dir)
    changes = length_changes(load_recipe(path / RECIPE), recipe) if (path / RECIPE).exists() else []
    if not changes:
        return [], None
    run_id, finished = read_marker(path)
    checkpoints = Checkpoints(path / "checkpoints", run_id)
    found = checkpoints.newest() if resume is None else checkpoints.read(resume)
    if found is None and finished:
        raise CheckpointError(f"run.output_dir: the run in {path} is finished and has no checkpoint left; choose a new directory")
    return changes, found


def _is_before(line: bytes, step: int, last_evaluated_step: int) -> bool:
    """Return whether a line of a record is complete, and not of a later step or a later evaluation."""
    try:
        row = json.loads(line)
        own = int(row["step"])
    except (ValueError, KeyError, TypeError):
        return False
    is_evaluation = "rewards" in row or any(key.startswith("eval/") for key in row)
    return line.endswith(b"\n") and own <= (last_evaluated_step if is_evaluation else step)
