"""A run as its directory describes it: state, steps, last metrics and recipe. Nothing is written, and nothing is a reason to fail.

The directory may be of an older version, of a run in progress, damaged, or made by a stranger: what cannot be read is a problem of the run.
No torch here.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from rmtrain.engine.run_check import ENVIRONMENT, LOCK, STEP
from rmtrain.errors import RecipeError, RmtrainError, missing
from rmtrain.evaluation.gates import check_gates
from rmtrain.files import is_locked, read_json
from rmtrain.recipe.load import MARKER, RECIPE
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml import read_yaml

METRICS = "metrics.jsonl"
MAX_METRICS_BYTES = 2**28
"""Bytes of `metrics.jsonl` that are read, from its end."""
LARGEST = 1e300
"""Numbers beyond it are no metrics; they would overflow in a mean."""

State = Literal["running", "interrupted", "finished", "failed", "damaged"]
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the files of a run say.

    state: `running` if a process holds its lock; `failed` if an error ended it; `damaged` if `run.json` cannot be read.
    step, steps: optimizer steps that are done, and those of the whole run; None: not known.
    recipe: the resolved recipe as JSON values; empty if it cannot be read.
    evaluation, training: the last line of each in `metrics.jsonl`, with its names after `eval/` and `train/`.
    gates_missed: gates of the recipe that the last evaluation of a finished run missed.
    problems: the error that ended the run, and what could not be read.
    """

    path: Path
    state: State
    step: int
    steps: int | None
    recipe: Mapping[str, Any]
    evaluation: Mapping[str, float]
    training: Mapping[str, float]
    gates_missed: Sequence[str]
    problems: Sequence[str]

    @property
    def name(self) -> str:
        """The name of the run, or of its directory."""
        return str(self.of_run("name") or self.path.name)

    def of_run(self, key: str) -> Any:
        """Return a key of the section `run` of the recipe; None if there is none."""
        section = self.recipe.get("run")
        return section.get(key) if isinstance(section, Mapping) else None

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of training, over all starts, until the last line of training metrics."""
        return self.training.get("runtime")

    def metric(self, name: str) -> float | None:
        """Return a number by which runs are compared: of the last evaluation, or `seconds`."""
        return self.seconds if name == "seconds" else self.evaluation.get(name)


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Return the directories of runs at or below these places, each once, in natural order. Runs within runs are not searched for.

    Raises:
        RecipeError: a place is missing, or has no run; one line for each.
    """
    found: dict[str, Path] = {}
    problems = []
    for place in places:
        runs = list(_runs_below(place)) if place.is_dir() else []
        if not place.is_dir():
            problems.append(missing(place) if not place.exists() else f"{place}: expected a directory of runs, got a file")
        elif not runs and not any((place / name).exists() for name in (RECIPE, METRICS)):
            problems.append(f"{place}: no run found; the directory of a run has a file {MARKER}")
        for run in runs or [place]:
            found.setdefault(os.path.realpath(run), run)
    if problems:
        raise RecipeError(*problems)
    return list(found.values())


def _runs_below(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        folders.sort(key=natural)
        if MARKER in files:
            folders.clear()
            yield Path(folder)


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a sort key by which `run-9` comes before `run-10`."""
    parts = re.split("([0-9]{1,18})", text)  # every second one is a number
    return [(bool(place % 2), int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def read_run(path: Path) -> RunRecord:
    """Read the directory of a run; see `RunRecord`."""
    if not path.is_dir():
        return RunRecord(path, "damaged", 0, None, {}, {}, {}, [], ["the directory does not exist"])
    problems: list[str] = []

    def attempt(name: str, read: Callable[[Path], Read]) -> Read | None:
        try:
            return read(path / name)
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except RmtrainError as error:
            problems.append(error.problems[0].removeprefix(f"{path / name}").lstrip(": "))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")
        return None

    marker = attempt(MARKER, _read_object) or {}
    recipe, valid = attempt(RECIPE, _read_recipe) or ({}, None)
    if recipe and valid is None:
        problems.append(f"{RECIPE} is of another version of rmtrain")
    environment = attempt(ENVIRONMENT, _read_object) or {}
    lines = (attempt(METRICS, _read_lines) if (path / METRICS).exists() else None) or []
    evaluation, training, last = _last_metrics(lines, problems)
    if isinstance(marker.get("problem"), str):
        problems.insert(0, marker["problem"])
    state = _state(path, marker)
    if state == "running":  # a line may be half written at this moment
        problems = [problem for problem in problems if problem != HALF_WRITTEN]
    missed: list[str] = []
    if state == "finished" and valid is not None:
        gates = check_gates(evaluation, valid.evaluation.gates)
        missed = [name for name, gate in gates.items() if not gate["passed"]]
    steps = environment.get("steps")
    steps = steps if type(steps) is int and 0 < steps < LARGEST else None
    step = max([last, *_saved_steps(path / "checkpoints")])
    return RunRecord(path, state, step, steps, recipe, evaluation, training, missed, problems)


def _state(path: Path, marker: Mapping[str, Any]) -> State:
    if is_locked(path / LOCK):
        return "running"
    if not isinstance(marker.get("finished"), bool):
        return "damaged"
    if marker["finished"]:
        return "finished"
    return "failed" if "problem" in marker else "interrupted"


def _read_object(file: Path) -> dict[str, Any]:
    return read_json(file, dict)


def _read_recipe(file: Path) -> tuple[dict[str, Any], Recipe | None]:
    """Return a resolved recipe as JSON values, with the defaults of this version, and the recipe; None if it is of another version."""
    _check_regular(file)
    document = read_yaml(file)
    if not isinstance(document.data, dict) or document.problems:
        raise ValueError(document.problems[0].message if document.problems else "expected sections such as run, data and model")
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError:
        return document.data, None
    return recipe.model_dump(mode="json"), recipe


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Return all lines of `metrics.jsonl` that can be read."""
    try:
        rows = map(_numbers, _read_lines(file))
        return [row for row in rows if row is not None]
    except (OSError, ValueError):
        return []


def _read_lines(file: Path) -> list[bytes]:
    """Return the lines of a file, the last one without its end only if that was not written."""
    _check_regular(file)
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - MAX_METRICS_BYTES))
        return stream.read(MAX_METRICS_BYTES).splitlines(keepends=True)


def _check_regular(file: Path) -> None:
    if not stat.S_ISREG(file.stat().st_mode):  # to open a named pipe can wait for ever
        raise ValueError("not a regular file")


HALF_WRITTEN = f"the last line of {METRICS} is incomplete"


def _last_metrics(lines: Sequence[bytes], problems: list[str]) -> tuple[dict[str, float], dict[str, float], int]:
    """Return the numbers of the last evaluation and of the last training line, and the last step; adds to `problems`."""
    found: dict[str, dict[str, float]] = {"eval/": {}, "train/": {}}
    step = 0
    if lines and not lines[-1].endswith(b"\n"):
        problems.append(HALF_WRITTEN)
        lines = lines[:-1]
    for line in reversed(lines):
        if found["train/"] and b'"eval/' not in line:
            continue  # nothing else is looked for, and of a run without evaluations this is every line
        row = _numbers(line)
        if row is None:
            unreadable = f"{METRICS} has lines that are not JSON objects with a step"
            problems.extend([unreadable] if unreadable not in problems else [])
            continue
        step = max(step, int(row["step"]))
        for prefix in found:
            found[prefix] = found[prefix] or {
                name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)
            }
        if all(found.values()):
            break
    return found["eval/"], found["train/"], step


def _numbers(line: bytes) -> dict[str, float] | None:
    """Return the finite numbers of a line of metrics; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**53:
        return None
    return {name: value for name, value in row.items() if type(value) in (int, float) and abs(value) < LARGEST}


def _saved_steps(folder: Path) -> list[int]:
    try:
        return [int(found[1]) for name in os.listdir(folder) if (found := STEP.fullmatch(name))]
    except OSError:
        return []
