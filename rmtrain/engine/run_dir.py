"""The directory of a run: whose it is, whether it goes on or begins, and its line-by-line records.

`run.json` marks it and names the run. A directory without it is not ours, and nothing in it is touched.
"""

import errno
import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from rmtrain.engine.checkpoint import Checkpoints
from rmtrain.errors import DISK_FULL, CheckpointError, RecipeError, TryAgain
from rmtrain.recipe.explain import show
from rmtrain.recipe.load import dump_recipe, hook_files, load_recipe
from rmtrain.recipe.schema import Recipe

logger = logging.getLogger("rmtrain")

MARKER, LOCK, RECIPE, ENVIRONMENT = "run.json", ".lock", "recipe.yaml", "environment.json"
BEGINNINGS = frozenset({LOCK, f".{MARKER}.new"})
"""All there is in the directory of a run that was killed before it had its marker."""
RECORDS = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "nonfinite.jsonl")
HARMLESS = (
    *("run.name", "run.output_dir", "data.cache_dir", "data.processes", "batching", "tracking", "hub"),
    *("checkpoints.every", "checkpoints.minutes", "checkpoints.keep", "checkpoints.load_best_at_end"),
    *("evaluation.every", "evaluation.samples", "evaluation.gates"),
)
"""Keys that change neither the weights nor what they are measured on; a section stands for all its keys."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunDirectory:
    """Everything one run writes, under one path.

    Args:
        path: the directory; relative where it lies below the current one, as people are shown it.
        run_id: of the run, written into each of its checkpoints.
        continues: whether the run began before.
    """

    def __init__(self, path: Path, run_id: str, continues: bool) -> None:
        self.path, self.run_id, self.continues = path, run_id, continues
        self.is_finished = False
        self._lock: IO[str] | None = None

    @classmethod
    def claim(cls, recipe: Recipe, fresh: bool = False) -> Self:
        """The directory of a run that is about to begin, or to go on. Only `fresh` changes anything: it moves an older run aside.

        Raises:
            RecipeError: a directory that no run should have, or that cannot be written.
            CheckpointError: it is a file, holds other files, or a run that is under way, is finished, or has another recipe.
        """
        path = _safe(recipe.run.output_dir)
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"run.output_dir: {path} is a file; name a directory that is new or empty")
        _check_writable(path.resolve())
        if not path.is_dir() or set(os.listdir(path)) <= BEGINNINGS:
            return cls(path, uuid.uuid4().hex, continues=False)
        if (path / MARKER).exists():
            _lock(path).close()
        if fresh and (path / MARKER).exists():
            _move_aside(path)
            return cls(path, uuid.uuid4().hex, continues=False)
        run_id = _unfinished(path)
        _refuse_changes(path, recipe)
        return cls(path, run_id, continues=True)

    def open(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Take the directory for this process until it ends, and write what the run is made of: resolved recipe, versions, hashes.

        Raises:
            CheckpointError: another process trains in it, or did so meanwhile.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self._begin(recipe, environment)
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        if self.continues != (self.path / MARKER).exists() or (self.continues and _unfinished(self.path) != self.run_id):
            raise CheckpointError(f"run.output_dir: another process has meanwhile been at work in {self.path}; begin again")
        self._mark(finished=False)
        for name, code in hook_files(recipe).items():
            self._write(name, code.decode())
        self._write(RECIPE, dump_recipe(recipe))
        for name, code in hook_files(recipe).items():
            (self.path / name).write_bytes(code)
        self._write(ENVIRONMENT, json.dumps(environment, indent=2))
        self.checkpoints.directory.mkdir(exist_ok=True)
        self.checkpoints.clean()

    def close(self) -> None:
        """Let other processes have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def finish(self) -> None:
        """Mark the run as finished."""
        self._mark(finished=True)
        self.is_finished = True

    def sync(self) -> None:
        """Put the records on the disk; raises TryAgain when it does not take them."""
        for name in RECORDS:
            if (self.path / name).exists():
                with writing(self.path / name), (self.path / name).open("rb") as file:
                    os.fsync(file.fileno())

    def rewind(self, step: int, evaluated: bool) -> None:
        """Cut the records back to the first `step` steps; a line that was half written goes, too.

        Args:
            step: steps that are done.
            evaluated: whether lines of an evaluation after the last of them stay.
        """
        for name in RECORDS:
            file = self.path / name
            if file.exists():
                with file.open("r+b") as stream:
                    end = 0
                    while (line := stream.readline()) and _is_before(line, step, evaluated):
                        end = stream.tell()
                    stream.truncate(end)

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", self.run_id)

    @property
    def model(self) -> Path:
        """Where the exported model goes."""
        return self.path / "model"

    def _mark(self, finished: bool) -> None:
        self._write(MARKER, json.dumps({"run_id": self.run_id, "finished": finished}, indent=2))

    def _write(self, name: str, text: str) -> None:
        """A file that is there whole or as it was before, whenever the machine stops; raises TryAgain when it cannot be written."""
        aside = self.path / f".{name}.new"
        with writing(self.path / name):
            with aside.open("w", encoding="utf-8") as file:
                file.write(text if text.endswith("\n") else text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.path / name)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raise TryAgain, in a line that names the file, where the disk does not take what is written."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise TryAgain(f"{file}: the disk is full; make room and run the same command again") from error
        why = os.strerror(error.errno) if error.errno else str(error)
        raise TryAgain(f"{file}: cannot be written: {why}; run the same command again when it can") from error


def _safe(output_dir: str) -> Path:
    """The path of a run directory, symbolic links resolved, relative to the current directory where it lies below it.

    Raises:
        RecipeError: no path at all, the root, the home or current directory or one above it, or one that leads out of it by `..`.
    """
    try:
        given = Path(output_dir).expanduser()
        path, here, home = given.resolve(), Path.cwd().resolve(), Path.home().resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"run.output_dir: {show(output_dir)} is no path of a directory: {error}") from error
    if path in (Path(path.anchor), home, here) or path in (*here.parents, *home.parents):
        raise RecipeError(f"run.output_dir: {path} is no directory of a run; name one of its own, such as runs/mine")
    if not given.is_absolute() and os.path.normpath(given).startswith(".."):
        raise RecipeError(f"run.output_dir: {output_dir} leads out of the current directory; write {path} if you mean it")
    return path.relative_to(here) if path.is_relative_to(here) else path


def _check_writable(path: Path) -> None:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"run.output_dir: {there} cannot be written to; name another directory")


def _lock(path: Path) -> IO[str]:
    """Take the directory for this process; raises CheckpointError when another one has it."""
    file = (path / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CheckpointError(f"run.output_dir: another process is training in {path}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks; nothing keeps a second process from training there", path)
    return file


def _unfinished(path: Path) -> str:
    """The id of the run in a directory.

    Raises:
        CheckpointError: there is none, so that the files there are somebody else's; or it is finished.
    """
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        run_id, finished = str(marker["run_id"]), bool(marker["finished"])
    except FileNotFoundError:
        raise CheckpointError(f"run.output_dir: {path} holds other files; name a new directory, or move them away") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER}: damaged; move {path} away, or start over with --fresh") from error
    if finished:
        raise CheckpointError(
            f"run.output_dir: the run in {path} is finished; name a new directory, or move it aside with --fresh"
        )
    return run_id


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(aside)
    logger.info("the run that was in %s is now in %s", path, aside)


def _refuse_changes(path: Path, recipe: Recipe) -> None:
    """Raise CheckpointError with each key that would make it another run."""
    if not (path / RECIPE).exists():
        return
    older = load_recipe(path / RECIPE)
    before, now = dict(flat(older.model_dump())), dict(flat(recipe.model_dump()))
    changed = [
        f"{key} was {_shown(before, key)}, is {_shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
    ]
    if hook_files(older) != hook_files(recipe):
        changed.append(f"the code of {', '.join(hook_files(recipe)) or 'prepare'} was other code")
    if changed:
        raise CheckpointError(
            *(f"the unfinished run in {path} has another recipe: {line}" for line in changed),
            "change these back to resume it, name another run.output_dir, or move it aside with --fresh",
        )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return show(values[key]) if key in values else "not there"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str | int | float | bool | None]]:
    """`section.key` and value of everything in a recipe."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{prefix}.{number}")
    else:
        yield prefix, value


def _is_before(line: bytes, step: int, evaluated: bool) -> bool:
    """Whether a line of a record is whole and of the first `step` steps."""
    try:
        row = json.loads(line)
        own = int(row["step"])
    except (ValueError, KeyError, TypeError):
        return False
    of_evaluation = "rewards" in row or any(key.startswith("eval/") for key in row)
    return line.endswith(b"\n") and (own < step or (own == step and (evaluated or not of_evaluation)))
