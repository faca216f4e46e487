"""What `rmtrain inspect` is asked to show, and which options go together."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Gate

Precision = Literal["auto", "float32", "bfloat16"]
Kind = Literal["compare", "scores", "benchmarks", "pairs"]
NOT_WITH: Mapping[Kind, tuple[str, ...]] = {
    "compare": ("target", "recipe", "overrides", "data", "data_dir", "output", "report", "scores", "fail_under", "max_length"),
    "scores": ("target", "recipe", "overrides", "data", "data_dir", "output", "max_length"),
    "benchmarks": ("overrides", "data", "report"),
    "pairs": ("data_dir", "max_length"),
}
"""For each kind, the options that it has no use for."""
WHAT = {
    "compare": "--compare, which computes from two files alone",
    "scores": "--scores, which computes from the file alone",
    "benchmarks": "--benchmark",
    "pairs": "an evaluation on pairs; set it in the recipe, as data.max_length=2048, or name a --benchmark",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The options of `rmtrain eval`, each under its name.

    target, overrides: the recipe, run or model, and what follows it.
    fail_under: gates as they were written.
    compare: two files of scores.
    """

    target: str | None = None
    overrides: tuple[str, ...] = ()
    recipe: Path | None = None
    data: str | None = None
    output: Path | None = None
    scores: Path | None = None
    report: Path | None = None
    fail_under: tuple[str, ...] = ()
    benchmark: str | None = None
    data_dir: Path | None = None
    compare: tuple[Path, Path] | None = None
    allow_different_settings: bool = False
    max_length: int | None = None
    precision: str = "auto"
    allow_template_change: bool = False

    @property
    def kind(self) -> Kind:
        """What is done."""
        if self.compare is not None:
            return "compare"
        if self.scores is not None:
            return "scores"
        return "pairs" if self.benchmark is None else "benchmarks"

    def check(self) -> None:
        """Raise RecipeError for options that do not go together, and for gates on pairs that are none."""
        given = [name for name in NOT_WITH[self.kind] if getattr(self, name)]
        names = {"target": "a model or recipe", "overrides": "an override"}
        if given:
            said = ", ".join(names.get(name, f"--{name.replace('_', '-')}") for name in given)
            raise RecipeError(f"{said}: not with {WHAT[self.kind]}")
        checked_precision(self.precision)
        if self.precision != "auto" and self.kind != "benchmarks":
            raise RecipeError("--precision: only with --benchmark; of pairs, set training.precision")
        if self.kind == "pairs":
            parse_gates(self.fail_under)


def checked_precision(precision: str) -> Precision:
    """`--precision`, if it is one; raises RecipeError."""
    if precision not in get_args(Precision):
        raise RecipeError(f"--precision {precision}: expected auto, float32 or bfloat16")
    return cast(Precision, precision)


def parse_gates(values: Sequence[str], names: Collection[str] = get_args(Gate)) -> dict[str, float]:
    """Parse gates such as `accuracy=0.7`; raises RecipeError for an unknown name, or where the value is not a number."""
    gates: dict[str, float] = {}
    for value in values:
        name, _, bound = value.partition("=")
        if name not in names:
            raise RecipeError(f"--fail-under {value}: expected one of {', '.join(names)}, such as {next(iter(names))}=0.7")
        try:
            gates[name] = float(bound)
        except ValueError:
            raise RecipeError(f"--fail-under {value}: expected a number after {name}=, such as {name}=0.7") from None
    return gates


WITH_ROWS = frozenset({"source", "split", "ids", "side_by_side"})
COMPANIONS = {
    "row": WITH_ROWS,
    "step": frozenset({"world_size", "limit"}),
    "dropped": frozenset({"find", "random", "seed", "source", "split", "limit"}),
    "longest": WITH_ROWS | {"find", "limit"},
    "random": WITH_ROWS | {"find", "dropped", "seed", "limit"},
    "find": WITH_ROWS | {"dropped", "longest", "random", "seed", "limit"},
}
"""For each way to choose, the options that go with it."""
NEEDS = {"seed": "random", "world_size": "step"}
LOWEST = {"step": 0, "seed": 0, "limit": 1, "world_size": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options of `rmtrain inspect`, each under its name. Without any, the first kept row of `train` is shown.

    row: number of a kept row, counted from 0 among those of `source`, or a row id such as `hh:17`.
    find: kept rows that contain this text, or, with `dropped`, dropped ones.
    dropped: rows dropped for this reason; `all`: for any.
    longest: rows with the longest sequence first.
    random: rows in random order, by `seed`; None: by a new one.
    step: the optimizer step of this number, counted from 0, as `world_size` processes compute it; None: 1.
    source: only rows of this source, by its tag.
    split: `train` or `eval`.
    limit: show so many; None: a few.
    ids: write each token's id.
    side_by_side: responses in columns; None: where the terminal is wide enough.
    """

    row: str | None = None
    find: str | None = None
    dropped: str | None = None
    longest: bool = False
    random: bool = False
    step: int | None = None
    source: str | None = None
    split: str = "train"
    limit: int | None = None
    seed: int | None = None
    world_size: int | None = None
    ids: bool = False
    side_by_side: bool | None = None

    def check(self) -> None:
        """Raise RecipeError with a line for everything that is wrong with the options."""
        problems = [*self._misfits(), *self._wrong_values()]
        if problems:
            raise RecipeError(*problems)

    @property
    def names_one(self) -> bool:
        """Whether one row is asked for by its place, rather than a choice of rows."""
        return self.find is None and not self.longest and not self.random and self.limit is None

    def _given(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def _misfits(self) -> Iterator[str]:
        given, told = self._given(), set[frozenset[str]]()
        for name in [name for name in COMPANIONS if name in given]:
            for other in given:
                pair = frozenset({name, other})
                if len(pair) == 2 and other not in COMPANIONS[name] and pair not in told:
                    told.add(pair)
                    companions = ", ".join(_option(each) for each in sorted(COMPANIONS[name]))
                    yield f"{_option(name)} does not go with {_option(other)}; it goes with {companions}"
        for name, needed in NEEDS.items():
            if name in given and needed not in given:
                yield f"{_option(name)} {getattr(self, name)}: it goes with {_option(needed)} only"

    def _wrong_values(self) -> Iterator[str]:
        if self.split not in ("train", "eval"):
            yield f"--split {self.split}: expected train or eval"
        if self.find == "":
            yield "--find: expected a text to find, got nothing"
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                yield f"{_option(name)} {value}: expected at least {lowest}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
