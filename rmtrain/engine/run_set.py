"""Several runs together: the keys in which their recipes differ, their order, and the means of runs that differ only in the seed."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rmtrain.engine.run_records import RunRecord, find_runs, natural, read_run
from rmtrain.errors import RecipeError
from rmtrain.recipe.differences import OWN, differing_keys, short_names, short_values
from rmtrain.recipe.schema import LOWER_IS_BETTER

SEED = "run.seed"
METRICS = ("accuracy", "spearman", "auc", "loss", "seconds")
"""Numbers by which runs are compared, those that rank them first."""
LOWER = LOWER_IS_BETTER | {"seconds"}
SORTED_BY = ("path", "state", "step", *METRICS)


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of a metric over runs, its sample standard deviation (None: of one run), and their number."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Finished runs that differ only in `run.seed`, name and directory."""

    runs: Sequence[RunRecord]

    def mean(self, metric: str) -> Mean | None:
        """Return the mean of a metric over the runs that have it."""
        values = [value for run in self.runs if (value := run.metric(metric)) is not None]
        if not values:
            return None
        return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [run.of_run("seed") for run in self.runs]


@dataclass(frozen=True)
class RunSet:
    """Runs in the order in which they are shown."""

    runs: Sequence[RunRecord]

    @classmethod
    def read(cls, places: Sequence[Path], sort: str | None = None) -> "RunSet":
        """Read all runs at or below these places.

        Args:
            sort: one of `SORTED_BY` or a key of the recipe, whole or short; metrics put the best run first. None: as found.

        Raises:
            RecipeError: see `find_runs`; or `sort` is unknown.
        """
        found = cls([read_run(path) for path in find_runs(places)])
        return found if sort is None else found.sorted_by(sort)

    @cached_property
    def keys(self) -> dict[str, list[Any]]:
        """The keys in which the recipes differ, with the value of each run; None where it has none or no recipe."""
        known = [number for number, run in enumerate(self.runs) if run.recipe]
        columns: dict[str, list[Any]] = {}
        for key, values in differing_keys([self.runs[number].recipe for number in known]).items():
            columns[key] = [None] * len(self.runs)
            for number, value in zip(known, values, strict=True):
                columns[key][number] = value
        return columns

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """The same as short text, under short names."""
        names = short_names(list(self.keys))
        return {names[key]: short_values(values) for key, values in self.keys.items()}

    @cached_property
    def folder(self) -> Path:
        """The innermost directory that has all runs."""
        parents = [_whole(run.path).parent for run in self.runs]
        return next(folder for folder in (parents[0], *parents[0].parents) if all(folder in (p, *p.parents) for p in parents))

    def label(self, run: RunRecord) -> str:
        """Return the path of a run from `folder`."""
        return str(_whole(run.path).relative_to(self.folder))

    @cached_property
    def ranked_by(self) -> str | None:
        """The first of `METRICS` that an evaluation of any run has."""
        return next((metric for metric in METRICS[:-1] if any(run.metric(metric) is not None for run in self.runs)), None)

    @cached_property
    def best(self) -> RunRecord | None:
        """The best finished run by `ranked_by`."""
        metric = self.ranked_by
        if metric is None:
            return None
        finished = [run for run in self.runs if run.state == "finished" and run.metric(metric) is not None]
        return min(finished, key=lambda run: _rank(metric, run.metric(metric)), default=None)

    def sorted_by(self, sort: str) -> "RunSet":
        """Return the runs in another order; see `read`."""
        names = short_names(list(self.keys))
        key = next((key for key, name in names.items() if sort in (key, name)), None)
        if sort == "time":
            sort = "seconds"
        if key is not None:
            ranks: list[Any] = [_order(value) for value in self.keys[key]]
        elif sort in METRICS:
            ranks = [_rank(sort, run.metric(sort)) for run in self.runs]
        elif sort in SORTED_BY:
            ranks = [(0, -run.step if sort == "step" else natural(str(getattr(run, sort))), "") for run in self.runs]
        else:
            known = ", ".join((*SORTED_BY, *names.values()))
            raise RecipeError(f"--sort {sort}: expected one of {known}")
        order = sorted(range(len(self.runs)), key=lambda number: ranks[number])
        return RunSet([self.runs[number] for number in order])

    @cached_property
    def seeds(self) -> list[SeedGroup]:
        """Groups of finished runs that differ only in the seed, if there are any of several runs: those with their seed alone as well."""
        groups: dict[str, list[RunRecord]] = {}
        for run in self.runs:
            if run.recipe and run.state == "finished":
                groups.setdefault(recipe_without_seed(run.recipe), []).append(run)
        several = any(len(runs) > 1 for runs in groups.values())
        return [SeedGroup(runs) for runs in groups.values()] if several else []


def _whole(path: Path) -> Path:
    return Path(os.path.abspath(path))


def recipe_without_seed(recipe: Mapping[str, Any]) -> str:
    """Return what is equal for runs that differ only in their seed, name and directory."""
    rest = {name: dict(values) if isinstance(values, Mapping) else values for name, values in recipe.items()}
    for key in (SEED, *OWN):
        section, name = key.split(".")
        if isinstance(rest.get(section), dict):
            rest[section].pop(name, None)
    return json.dumps(rest, sort_keys=True)


def _rank(metric: str, value: float | None) -> tuple[int, float, str]:
    """Return a sort key with the best value first, and missing ones last."""
    if value is None:
        return 1, 0.0, ""
    return 0, value if metric in LOWER else -value, ""


def _order(value: Any) -> tuple[int, float, str]:
    """Return a sort key for values of a recipe: numbers, then text, then missing ones."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, json.dumps(value))
