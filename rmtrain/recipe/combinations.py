"""The values of `--sweep` become one recipe for each combination, with a directory and a name of its own."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rmtrain.errors import RecipeError
from rmtrain.recipe.differences import short_names, short_values
from rmtrain.recipe.load import MARKER
from rmtrain.recipe.output_dir import escape_braces
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.variables import escape_variables
from rmtrain.recipe.yaml import Place, parse_yaml, shorten

NEXT_KEY = re.compile(r"\s+(?=[A-Za-z_][\w-]*(?:\.[\w-]+)*=)", re.ASCII)
UNSAFE = re.compile(r"[^\w.-]+")
MAX_RUNS = 1000
MAX_LABEL = 120
"""Characters of the name of a directory."""


@dataclass(frozen=True, slots=True)
class SweptRun:
    """One combination of the swept values.

    values: the value of each swept key.
    overrides: all that the command line of this run sets: the values, its directory and its name.
    recipe: what that gives.
    """

    values: Mapping[str, Any]
    overrides: Sequence[str]
    recipe: Recipe

    @property
    def description(self) -> str:
        """The values as `optimizer.lr=3e-6 run.seed=1`."""
        return " ".join(f"{key}={text}" for key, text in zip(self.values, short_values(list(self.values.values())), strict=True))


def parse_sweep(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each key of `--sweep`, such as `optimizer.lr=3e-6,9e-6 run.seed=1,2`.

    Values are read as those of overrides; commas outside of quotes, brackets and braces separate them.

    Raises:
        RecipeError: one line for each problem.
    """
    swept: dict[str, list[Any]] = {}
    problems: list[str] = []
    for text in (part for given in texts for part in NEXT_KEY.split(given.strip())):
        key, equals, written = text.partition("=")
        here = f"--sweep {shorten(text)}"
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(f"{here}: expected a key, =, and values, such as optimizer.lr=1e-5,3e-5")
            continue
        document = parse_yaml(f"[{written}]", lambda _line, _column, here=here: Place(0, 0, 0, here))  # type: ignore[misc]
        values = document.data
        if document.problems or not isinstance(values, list):
            reason = document.problems[0].message if document.problems else "expected values separated by commas"
            problems.append(f"{here}: {reason}; put a value with commas or brackets in quotes")
        elif not values:
            problems.append(f"{here}: expected at least one value after =")
        elif len({json.dumps(value) for value in values}) < len(values):
            problems.append(f"{here}: a value is given twice; each may be given once")
        elif key in swept:
            problems.append(f"{here}: the key is given twice; list all its values in one place")
        else:
            swept[key] = values
    if (count := math.prod(map(len, swept.values()))) > MAX_RUNS:
        problems.append(f"--sweep: expected at most {MAX_RUNS:,} combinations, got {count:,}; sweep fewer values")
    if problems:
        raise RecipeError(*problems)
    return swept


def swept_runs(load: Callable[[Sequence[str]], Recipe], swept: Mapping[str, Sequence[Any]]) -> list[SweptRun]:
    """Return a run for each combination of values, the last key changing fastest.

    Runs that would share a directory get directories below it, named after the swept keys, and runs of one name get names of their own.

    Args:
        load: returns the recipe with further overrides.

    Raises:
        RecipeError: all mistakes of all combinations at once.
    """
    combinations = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
    overrides = [[f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in one.items()] for one in combinations]
    recipes: list[Recipe] = []
    problems: list[str] = []
    for texts in overrides:
        try:
            recipes.append(load(texts))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    labels = _labels(combinations)
    directories = [recipe.run.output_dir for recipe in recipes]
    if len(set(map(_real, directories))) < len(directories):
        directories = [f"{folder.rstrip('/') or '/'}/{label}" for folder, label in zip(directories, labels, strict=True)]
    names = [recipe.run.name for recipe in recipes]
    if len(set(names)) < len(names):
        names = [f"{name}-{label}" for name, label in zip(names, labels, strict=True)]
    runs = []
    for values, texts, recipe, directory, name in zip(combinations, overrides, recipes, directories, names, strict=True):
        runs.append(run_in(directory, name, values, texts, recipe))
    if problems := list(dict.fromkeys(_collisions(runs))):
        raise RecipeError(*problems)
    return runs


def run_in(directory: str, name: str, values: Mapping[str, Any], overrides: Sequence[str], recipe: Recipe) -> SweptRun:
    """Return the run of a recipe, loaded with these overrides, in another directory and under another name."""
    written = {"output_dir": escape_variables(escape_braces(directory)), "name": name}
    places = [f"run.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in written.items()]
    run = recipe.run.model_copy(update={"output_dir": directory, "name": name})
    return SweptRun(values, (*overrides, *places), recipe.model_copy(update={"run": run}))


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _labels(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each combination, of the characters of file names: `lr3e-6-seed1`. All are different."""
    keys = list(combinations[0])
    names = short_names(keys)
    columns = {key: short_values([values[key] for values in combinations]) for key in keys}
    labels: list[str] = []
    for number, values in enumerate(combinations):
        parts = []
        for key in keys:
            text = UNSAFE.sub("_", columns[key][number].replace("–", "null"))
            is_number = isinstance(values[key], int | float) and not isinstance(values[key], bool)
            parts.append(f"{UNSAFE.sub('_', names[key])}{'' if is_number else '-'}{text}")
        labels.append("-".join(parts)[:MAX_LABEL])
    if len(set(labels)) < len(labels):
        labels = [f"{number:03d}-{label}" for number, label in enumerate(labels, start=1)]
    return labels


def _collisions(runs: Sequence[SweptRun]) -> Iterator[str]:
    """Yield what would put one run into another, or upload one over another."""
    places = {_real(run.recipe.run.output_dir): run for run in runs}
    for place, run in places.items():
        for folder in map(str, Path(place).parents):
            if folder in places:
                yield f"run.output_dir: {run.recipe.run.output_dir} is within the directory of another run of the sweep"
            elif os.path.isfile(os.path.join(folder, MARKER)):
                yield f"run.output_dir: {folder} is the directory of a run; choose another one for the sweep"
    uploaded = [run.recipe.hub.id for run in runs if run.recipe.hub.push and run.recipe.hub.id is not None]
    if len(set(uploaded)) < len(uploaded):
        yield "hub.id: runs of the sweep would be uploaded over each other; leave it out to use run.name, or set hub.push: false"
