"""The options of `rmtrain eval` and `rmtrain inspect`, and which of them go together. Checked before anything heavy is imported."""

from collections.abc import Collection, Mapping, Sequence
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
"""Options that each kind of evaluation cannot use."""
REASONS: Mapping[Kind, str] = {
    "compare": "cannot be combined with --compare, which needs only the two files",
    "scores": "cannot be combined with --scores, which needs only the file",
    "benchmarks": "cannot be combined with --benchmark",
    "pairs": "needs --benchmark; for pairs, set it in the recipe, as in data.max_length=2048",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The options of `rmtrain eval`, each under its name.

    target, overrides: recipe, run or model, and the overrides that follow it.
    fail_under: gates as typed, such as `accuracy=0.7`.
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
        """The kind of evaluation that these options mean."""
        if self.compare is not None:
            return "compare"
        if self.scores is not None:
            return "scores"
        return "pairs" if self.benchmark is None else "benchmarks"

    def check(self) -> None:
        """Raise RecipeError for options that cannot be combined, and for invalid values."""
        names = {"target": "a model or recipe", "overrides": "an override"}
        unused = [names.get(name, _option(name)) for name in NOT_WITH[self.kind] if getattr(self, name)]
        if unused:
            raise RecipeError(f"{', '.join(unused)}: {REASONS[self.kind]}")
        checked_precision(self.precision)
        if self.precision != "auto" and self.kind != "benchmarks":
            raise RecipeError("--precision: needs --benchmark; for pairs, set training.precision in the recipe")
        if self.kind == "pairs":
            parse_gates(self.fail_under)


def checked_precision(precision: str) -> Precision:
    """Return `--precision` if it is valid; raise RecipeError otherwise."""
    if precision not in get_args(Precision):
        raise RecipeError(f"--precision: expected auto, float32 or bfloat16, got {precision}")
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


NOT_TOGETHER: Mapping[str, tuple[str, ...]] = {
    "step": ("row", "find", "dropped", "longest", "random", "source", "split", "ids", "side_by_side"),
    "row": ("find", "dropped", "longest", "random", "limit"),
    "dropped": ("longest", "ids", "side_by_side"),
    "longest": ("random",),
}
"""Options of `rmtrain inspect` that cannot be combined, each pair once."""
NEEDS = {"seed": "random", "world_size": "step"}
LOWEST = {"step": 0, "seed": 0, "limit": 1, "world_size": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options of `rmtrain inspect`, each under its name. The default is to show the first kept row of `train`.

    row: number of a kept row, counted from 0 within `source`, or a row id such as `hh:17`.
    find: show kept rows that contain this text, or dropped ones together with `dropped`.
    dropped: show rows dropped for this reason; `all`: for any reason.
    longest: show the row with the longest sequence first.
    random: show rows in random order, by `seed`; None: by a new one.
    step: number of an optimizer step, counted from 0, on `world_size` processes; None: 1.
    source: show only rows of this source, by its tag.
    split: `train` or `eval`.
    limit: maximum number of rows to show; None: a few.
    ids: print the id of each token.
    side_by_side: show responses in columns; None: if the terminal is wide enough.
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

    @property
    def names_one(self) -> bool:
        """True if the options name one row, rather than select from many."""
        return self.find is None and not self.longest and not self.random and self.limit is None

    def check(self) -> None:
        """Raise RecipeError with one line for each problem: options that cannot be combined, and invalid values."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        problems = [
            f"{_option(name)}: cannot be combined with {_option(other)}; remove one of them"
            for name, others in NOT_TOGETHER.items()
            for other in others
            if name in given and other in given
        ]
        for name, needed in NEEDS.items():
            if name in given and needed not in given:
                problems.append(f"{_option(name)}: needs {_option(needed)}")
        if self.split not in ("train", "eval"):
            problems.append(f"--split: expected train or eval, got {self.split}")
        if self.find == "":
            problems.append("--find: expected a text, got an empty one")
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                problems.append(f"{_option(name)}: expected at least {lowest}, got {value}")
        if problems:
            raise RecipeError(*problems)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
