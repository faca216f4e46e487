"""What `rmtrain eval` is asked to do, and which options go together."""

from collections.abc import Mapping
from dataclasses import dataclass
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
class EvalRequest:
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


def parse_gates(values: tuple[str, ...] | list[str]) -> dict[Gate, float]:
    """`accuracy=0.7` -> `{"accuracy": 0.7}`, checked by name and value like `evaluation.gates`; raises RecipeError."""
    gates: dict[Gate, float] = {}
    for value in values:
        name, _, bound = value.partition("=")
        if name not in get_args(Gate):
            raise RecipeError(f"--fail-under {value}: expected one of {', '.join(get_args(Gate))}, as accuracy=0.7")
        try:
            gates[cast(Gate, name)] = float(bound)
        except ValueError:
            raise RecipeError(f"--fail-under {value}: expected a number after {name}=, as {name}=0.7") from None
    return gates
