"""Who may train in a directory: places that no run may have, the run that is there, and which of its keys may change.

No torch here: `rmtrain runs` and `--sweep` ask this for many directories. Nothing is written but the file of a lock.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.files import expanded, try_lock, unwritable
from rmtrain.recipe.explain import show
from rmtrain.recipe.load import MARKER, RECIPE, hook_files, load_recipe, with_absolute_paths
from rmtrain.recipe.schema import Recipe

LOCK, ENVIRONMENT = ".lock", "environment.json"
LOOK_SECONDS = 0.1
"""A lock that is held longer is not that of `rmtrain runs`, which takes it to see whether a run holds it."""
STEP = re.compile(r"step-(\d{8,12})")
"""Name of a checkpoint."""
UNMARKED = re.compile(r"\.lock|\.run\.json\.\d+\.tmp")
"""The only files in the directory of a run that was killed before it had its marker."""
CHANGEABLE = (
    *("run.name", "run.output_dir", "data.cache_dir", "data.processes", "batching", "tracking", "hub"),
    *("checkpoints.every", "checkpoints.minutes", "checkpoints.keep", "checkpoints.load_best_at_end"),
    *("evaluation.every", "evaluation.on_start", "evaluation.samples", "evaluation.gates"),
    *("evaluation.benchmarks", "data.benchmarks", "data.edited_prompts"),
)
"""Keys that may change on resume: they affect neither the weights nor the metrics. A section stands for all its keys."""
LENGTH = ("training.epochs", "training.max_steps")
"""Keys that may change on resume where the learning rates of the steps that are done do not depend on them."""


def check_output_dir(recipe: Recipe, fresh: bool = False, resume: Path | None = None) -> Path:
    """Return the directory of a run, symbolic links resolved, if this recipe can be trained in it. Nothing is written.

    Args:
        fresh: whether a run that is in it will be renamed.
        resume: the checkpoint that will be resumed from, if one was chosen.

    Raises:
        RecipeError: no run may have this directory, or it is not writable.
        CheckpointError: it is a file, holds other files, or a run that is finished, in progress, or of another recipe.
    """
    path = run_path(recipe.run.output_dir)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"run.output_dir: {path} is a file; choose a new or empty directory")
    if problem := unwritable(path.resolve()):
        raise RecipeError(f"run.output_dir: {problem}; choose another directory")
    has_run = (path / MARKER).exists()
    if has_run:
        lock_run(path).release()  # reports a process that is training there
    if not (has_run and fresh):
        unfinished_run(path, recipe, resume)
    return path


def run_path(output_dir: str) -> Path:
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


def lock_run(path: Path) -> FileLock:
    """Lock a run directory for this process; raise CheckpointError when another process holds it."""
    lock = try_lock(path / LOCK)
    if lock is None:
        time.sleep(LOOK_SECONDS)
        lock = try_lock(path / LOCK)
    if lock is None:
        raise CheckpointError(f"run.output_dir: another process is training in {path}; wait for it or choose another directory")
    return lock


def unfinished_run(path: Path, recipe: Recipe, resume: Path | None) -> str | None:
    """Return the id of the run that this recipe would continue; None when the directory is missing or empty.

    Raises:
        CheckpointError: the directory holds other files, or its run is of another recipe, finished (unless this recipe has another
            length), or missing though `resume` is set.
    """
    if not path.is_dir() or all(UNMARKED.fullmatch(name) for name in os.listdir(path)):
        if resume is not None:
            raise CheckpointError(f"--resume {resume}: {path} has no run to resume; leave out --resume")
        return None
    run_id, finished = read_marker(path)
    older = load_recipe(path / RECIPE) if (path / RECIPE).exists() else recipe
    changes = recipe_changes(older, recipe)
    if finished and (changes or not length_changes(older, recipe)):
        raise CheckpointError(f"run.output_dir: the run in {path} is finished; choose a new directory, or rename it with --fresh")
    if changes:
        raise CheckpointError(
            *(f"{path}: the unfinished run has another recipe: {change}" for change in changes),
            "change these keys back to resume the run, choose another run.output_dir, or rename the run with --fresh",
        )
    return run_id


def is_done(recipe: Recipe) -> bool:
    """Return whether `run.output_dir` has the finished run of this recipe, of this length."""
    path = run_path(recipe.run.output_dir)
    if not (path / MARKER).is_file() or not read_marker(path)[1]:
        return False
    older = load_recipe(path / RECIPE) if (path / RECIPE).exists() else recipe
    return not recipe_changes(older, recipe) and not length_changes(older, recipe)


def read_marker(path: Path) -> tuple[str, bool]:
    """Return the id of the run in a directory, and whether it is finished; raise CheckpointError if there is none."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return str(marker["run_id"]), bool(marker["finished"])
    except FileNotFoundError:
        raise CheckpointError(f"run.output_dir: {path} contains other files; choose a new directory, or move them away") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER}: damaged; move {path} away, or start over with --fresh") from error


def length_changes(older: Recipe, recipe: Recipe) -> list[str]:
    """Describe each difference between two recipes in the number of epochs or steps."""
    return _differences(older, recipe, lambda key: key in LENGTH)


def recipe_changes(older: Recipe, recipe: Recipe) -> list[str]:
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
