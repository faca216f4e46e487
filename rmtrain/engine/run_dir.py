"""The directory of a run: who may train in it, what the run is made of, and its line-by-line records.

`run.json` marks a run directory and holds the id of the run. A directory without it belongs to someone else: nothing in it is touched.
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from rmtrain.engine.checkpoint import Checkpoint, Checkpoints
from rmtrain.errors import DISK_FULL, CheckpointError, RecipeError, TryAgain
from rmtrain.files import atomic_write, expanded, sync, try_lock, unwritable, write_text
from rmtrain.recipe.explain import show
from rmtrain.recipe.load import MARKER, RECIPE, dump_recipe, hook_files, load_recipe, with_absolute_paths
from rmtrain.recipe.schema import Recipe

logger = logging.getLogger("rmtrain")

LOCK, ENVIRONMENT = ".lock", "environment.json"
UNMARKED = re.compile(r"\.lock|\.run\.json\.\d+\.tmp")
"""The only files in the directory of a run that was killed before it had its marker."""
RECORDS = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "nonfinite.jsonl")
CHANGEABLE = (
    *("run.name", "run.output_dir", "data.cache_dir", "data.processes", "batching", "tracking", "hub"),
    *("checkpoints.every", "checkpoints.minutes", "checkpoints.keep", "checkpoints.load_best_at_end"),
    *("evaluation.every", "evaluation.on_start", "evaluation.samples", "evaluation.gates"),
)
"""Keys that may change on resume: they affect neither the weights nor the metrics. A section stands for all its keys."""
LENGTH = ("training.epochs", "training.max_steps")
"""Keys that may change on resume where the learning rates of the steps that are done do not depend on them."""


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
        lock = _lock(path)
        try:
            run_id = _unfinished_run(path, recipe, resume)  # again: another process may have trained here since the check
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
                self.lock = _lock(self.path)
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

    def _mark(self, finished: bool) -> None:
        self._write(MARKER, json.dumps({"run_id": self.run_id, "finished": finished}, indent=2) + "\n")

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


def check_output_dir(recipe: Recipe, fresh: bool = False, resume: Path | None = None) -> Path:
    """Return the directory of a run, symbolic links resolved, if this recipe can be trained in it. Nothing is written.

    Args:
        fresh: whether a run that is in it will be renamed.
        resume: the checkpoint that will be resumed from, if one was chosen.

    Raises:
        RecipeError: no run may have this directory, or it is not writable.
        CheckpointError: it is a file, holds other files, or a run that is finished, in progress, or of another recipe.
    """
    path = _resolve(recipe.run.output_dir)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"run.output_dir: {path} is a file; choose a new or empty directory")
    if problem := unwritable(path.resolve()):
        raise RecipeError(f"run.output_dir: {problem}; choose another directory")
    has_run = (path / MARKER).exists()
    if has_run:
        _lock(path).release()  # reports a process that is training there
    if not (has_run and fresh):
        _unfinished_run(path, recipe, resume)
    return path


def _resolve(output_dir: str) -> Path:
    """Return the path, relative to the current directory if it is below it; raise RecipeError for one that no run may have."""
    try:
        given = expanded(output_dir, "run.output_dir")
        path, here, home = given.resolve(), Path.cwd().resolve(), Path(os.path.expanduser("~")).resolve()
        path.exists()  # raises for a name that is too long
    except (OSError, ValueError) as error:
        raise RecipeError(f"run.output_dir: {show(output_dir)} is not a path of a directory: {error}") from error
    # A run may be called from its own directory: that has the marker of a run.
    is_around = path in (here, *here.parents) and not (path / MARKER).is_file()
    if path in (Path(path.anchor), home, *home.parents) or is_around:
        raise RecipeError(f"run.output_dir: refusing to use {path}; choose a dedicated directory such as runs/mine")
    if not given.is_absolute() and os.path.normpath(given).startswith(".."):
        raise RecipeError(f"run.output_dir: {output_dir} is outside the current directory; write {path} if you mean it")
    return path.relative_to(here) if here in path.parents else path


def _lock(path: Path) -> FileLock:
    """Lock a run directory for this process; raise CheckpointError when another process holds it."""
    lock = try_lock(path / LOCK)
    if lock is None:
        raise CheckpointError(f"run.output_dir: another process is training in {path}; wait for it or choose another directory")
    return lock


def _unfinished_run(path: Path, recipe: Recipe, resume: Path | None) -> str | None:
    """Return the id of the run that this recipe would continue; None when the directory is missing or empty.

    Raises:
        CheckpointError: the directory holds other files, or its run is of another recipe, finished (unless this recipe has another
            length), or missing though `resume` is set.
    """
    if not path.is_dir() or all(UNMARKED.fullmatch(name) for name in os.listdir(path)):
        if resume is not None:
            raise CheckpointError(f"--resume {resume}: {path} has no run to resume; leave out --resume")
        return None
    run_id, finished = _marker(path)
    older = load_recipe(path / RECIPE) if (path / RECIPE).exists() else recipe
    changes = _changes(older, recipe)
    if finished and (changes or not length_changes(older, recipe)):
        raise CheckpointError(f"run.output_dir: the run in {path} is finished; choose a new directory, or rename it with --fresh")
    if changes:
        raise CheckpointError(
            *(f"{path}: the unfinished run has another recipe: {change}" for change in changes),
            "change these keys back to resume the run, choose another run.output_dir, or rename the run with --fresh",
        )
    return run_id


def _marker(path: Path) -> tuple[str, bool]:
    """Return the id of the run in a directory, and whether it is finished; raise CheckpointError if there is none."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return str(marker["run_id"]), bool(marker["finished"])
    except FileNotFoundError:
        raise CheckpointError(f"run.output_dir: {path} contains other files; choose a new directory, or move them away") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER}: damaged; move {path} away, or start over with --fresh") from error


def checkpoint_of_other_length(recipe: Recipe, resume: Path | None) -> tuple[list[str], Checkpoint | None]:
    """Return how the length of the run in `run.output_dir` changes with this recipe, and the checkpoint that it would be resumed from.

    Raises:
        CheckpointError: the run is finished and has no checkpoint left; or see `Checkpoints.newest` and `read`.
    """
    path = _resolve(recipe.run.output_dir)
    changes = length_changes(load_recipe(path / RECIPE), recipe) if (path / RECIPE).exists() else []
    if not changes:
        return [], None
    run_id, finished = _marker(path)
    checkpoints = Checkpoints(path / "checkpoints", run_id)
    found = checkpoints.newest() if resume is None else checkpoints.read(resume)
    if found is None and finished:
        raise CheckpointError(f"run.output_dir: the run in {path} is finished and has no checkpoint left; choose a new directory")
    return changes, found


def length_changes(older: Recipe, recipe: Recipe) -> list[str]:
    """Describe each difference between two recipes in the number of epochs or steps."""
    return _differences(older, recipe, lambda key: key in LENGTH)


def _changes(older: Recipe, recipe: Recipe) -> list[str]:
    """Describe each difference between two recipes that makes them different runs."""
    # Where evaluations end the run, it depends on how often there are any.
    fixed = ("evaluation.every",) if recipe.evaluation.early_stopping is not None else ()
    may_change = [key for key in (*CHANGEABLE, *LENGTH) if key not in fixed]
    changes = _differences(older, recipe, lambda key: not any(key == name or key.startswith(f"{name}.") for name in may_change))
    if hook_files(older) != hook_files(recipe):
        changes.append(f"the code of {', '.join(hook_files(recipe)) or 'prepare'} changed")
    return changes


def _differences(older: Recipe, recipe: Recipe, matters: Callable[[str], bool]) -> list[str]:
    before, now = (dict(flat(with_absolute_paths(each).model_dump())) for each in (older, recipe))
    return [
        f"{key} was {show(before[key]) if key in before else 'unset'}, is {show(now[key]) if key in now else 'unset'}"
        for key in sorted(before.keys() | now.keys())
        if not _is_same(before.get(key), now.get(key)) and matters(key)
    ]


def _is_same(before: Any, now: Any) -> bool:
    """Return whether a value is unchanged. A file may have been moved: checkpoints know the data and the weights by their content."""
    if all(isinstance(value, str) and value.startswith("/") for value in (before, now)):
        return Path(before).name == Path(now).name
    return bool(before == now)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str | int | float | bool | None]]:
    """Yield `section.key` and value of everything in a recipe."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{prefix}.{number}")
    else:
        yield prefix, value


def _is_before(line: bytes, step: int, last_evaluated_step: int) -> bool:
    """Return whether a line of a record is complete, and not of a later step or a later evaluation."""
    try:
        row = json.loads(line)
        own = int(row["step"])
    except (ValueError, KeyError, TypeError):
        return False
    is_evaluation = "rewards" in row or any(key.startswith("eval/") for key in row)
    return line.endswith(b"\n") and own <= (last_evaluated_step if is_evaluation else step)
