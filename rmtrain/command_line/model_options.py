"""The options of the verbs that read a trained model: eval, score, serve and export."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from rmtrain.command_line.completion import complete_benchmarks, one_of
from rmtrain.command_line.options import RecipeOption, TemplateOption, option_name
from rmtrain.errors import RecipeError
from rmtrain.recipe.key_aliases import SAME_VALUES
from rmtrain.recipe.schema import Gate, Precision

Kind = Literal["compare", "scores", "benchmarks", "pairs"]


def _our_name(dtype: str | None) -> str | None:
    """Return our name of a dtype that is given as `bf16` or the like."""
    return SAME_VALUES.get(dtype, dtype) if dtype else dtype


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Run directory, or directory or Hub id of a reward model.")]
LengthOption = Annotated[int | None, typer.Option(min=8, help="Maximum length in tokens (default: the model's limit).")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        callback=_our_name,
        help="Precision of the model: auto, float32, bfloat16 or float16.",
        autocompletion=one_of(*get_args(Precision)),
    ),
]
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
    """The options of `rmtrain eval`.

    target, parts, overrides: recipe, run or model, further recipe files, and the overrides that follow.
    """

    target: str | None = None
    parts: Sequence[str] = ()
    overrides: Sequence[str] = ()
    recipe: RecipeOption = None
    data: Annotated[
        str | None,
        typer.Option(
            help="Pairs to evaluate on, in place of the recipe's: a file, directory, Hub dataset, or {path: FILE, KEY: VALUE}."
        ),
    ] = None
    output: Annotated[
        Path | None, typer.Option(help="Directory for scores.jsonl (default: in the run directory, or in that of the model).")
    ] = None
    scores: Annotated[
        Path | None, typer.Option(help="Compute the metrics from a file of scores, or from those of a run, without a model.")
    ] = None
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write an HTML report to this file.")] = None
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Exit with code 6 below this value (for loss, above it): accuracy=0.7, rm_bench=0.6, rewardbench.safety=0.8. "
            "Can be repeated.",
            autocompletion=one_of(*(f"{gate}=" for gate in get_args(Gate))),
        ),
    ] = None
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Benchmarks to evaluate on, such as rewardbench2,rm_bench; an unknown name lists them all.",
            autocompletion=complete_benchmarks,
        ),
    ] = None
    data_dir: Annotated[
        Path | None, typer.Option(help="With --benchmark: directory of its official files (default: the Hub).")
    ] = None
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Test whether the model of run or scores file B is better than that of A."),
    ] = None
    allow_different_settings: Annotated[
        bool, typer.Option("--allow-different-settings", help="With --compare: allow scores made with different settings.")
    ] = False
    max_length: Annotated[
        int | None, typer.Option(min=8, help="With --benchmark: maximum length in tokens (default: the model's limit).")
    ] = None
    precision: Annotated[
        str,
        typer.Option(
            callback=_our_name,
            help="With --benchmark: precision of the model, auto, float32, bfloat16 or float16.",
            autocompletion=one_of(*get_args(Precision)),
        ),
    ] = "auto"
    allow_template_change: TemplateOption = False

    @property
    def kind(self) -> Kind:
        """The kind of evaluation that these options mean."""
        if self.compare is not None:
            return "compare"
        if self.scores is not None:
            return "scores"
        return "pairs" if self.benchmark is None else "benchmarks"

    @property
    def needs_no_model(self) -> bool:
        """Return whether everything is computed from files of scores."""
        return self.kind in ("scores", "compare")

    def check(self) -> None:
        """Raise RecipeError for options that cannot be combined, and for invalid values."""
        names = {"target": "a model or recipe", "overrides": "an override"}
        unused = [names.get(name, option_name(name)) for name in NOT_WITH[self.kind] if getattr(self, name)]
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
        raise RecipeError(f"--precision: expected auto, float32, bfloat16 or float16, got {precision}")
    return cast(Precision, precision)


def parse_gates(values: Sequence[str] | None, names: Collection[str] = get_args(Gate)) -> dict[str, float]:
    """Parse gates such as `accuracy=0.7`; raises RecipeError for an unknown name, or where the value is not a number."""
    gates: dict[str, float] = {}
    for value in values or ():
        name, _, bound = value.partition("=")
        if name not in names:
            raise RecipeError(f"--fail-under {value}: expected one of {', '.join(names)}, such as {next(iter(names))}=0.7")
        try:
            gates[name] = float(bound)
        except ValueError:
            raise RecipeError(f"--fail-under {value}: expected a number after {name}=, such as {name}=0.7") from None
    return gates


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """The options of `rmtrain score`.

    max_tokens: largest batch, in tokens; None: that of `RewardScorer`.
    """

    model: ModelArgument
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines of conversations (also .gz), or - for stdin.")]
    target: Annotated[
        str, typer.Option("--output", "-o", help="Output file (default: stdout, as for -). A partial output is resumed.")
    ] = "-"
    best_of: Annotated[bool, typer.Option("--best-of", help="Write only the best of the responses of each line.")] = False
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count lines that cannot be scored (default: stop with exit code 3).")
    ] = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite an existing output.")] = False
    cut: Annotated[
        bool, typer.Option("--cut", help="Cut the beginning of inputs that are too long (default: such a line cannot be scored).")
    ] = False
    max_length: LengthOption = None
    precision: PrecisionOption = "auto"
    allow_template_change: TemplateOption = False
    max_tokens: int | None = None


SERVER_MODULES = ("starlette", "uvicorn", "prometheus_client")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of `rmtrain serve`.

    max_tokens: largest batch, in tokens; None: that of `RewardScorer`.
    """

    model: ModelArgument
    host: Annotated[
        str,
        typer.Option(help="Address to listen on (default: this machine alone); others need the variable RMTRAIN_SERVE_TOKEN."),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (default: 8000); 0 takes a free one.")] = 8000
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes that score, each with the model, one per GPU.")
    ] = None
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait (default: 8192); more are answered with 429.")] = 8192
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time for a request (default: 100); then it is answered with 504.")
    ] = 100.0
    max_tokens: Annotated[int | None, typer.Option(min=64, help="Tokens computed at once (default: 16384).")] = None
    cut: Annotated[
        bool, typer.Option("--cut", help="Cut the beginning of inputs that are too long (default: they are answered with 422).")
    ] = False
    max_length: LengthOption = None
    precision: PrecisionOption = "auto"
    allow_template_change: TemplateOption = False

    def check(self) -> None:
        """Raise RecipeError for invalid values, and where the packages of a server are not installed."""
        checked_precision(self.precision)
        lacking = [name for name in SERVER_MODULES if find_spec(name) is None]
        if lacking:
            problem = f"{', '.join(lacking)}: not installed"
            raise RecipeError(f"rmtrain serve: {problem}; install the extra serve (pip install 'rmtrain[serve]')")


DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of `rmtrain export`.

    target: a run directory, or a checkpoint in one.
    overrides: overrides of the run's recipe; only keys of `hub`.
    """

    target: Path = Path()
    overrides: Sequence[str] = ()
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for the export (default: a directory in the run).")
    ] = None
    adapter: Annotated[
        bool, typer.Option("--adapter/--merged", help="Export the LoRA adapter alone, or the weights with the adapter merged in.")
    ] = False
    dtype: Annotated[
        str | None,
        typer.Option(
            callback=_our_name,
            help="Type of the exported weights: float32, bfloat16 or float16 (default: that of the run).",
            autocompletion=one_of("float32", "bfloat16", "float16"),
        ),
    ] = None
    push: Annotated[bool, typer.Option("--push", help="Upload the export to the Hub; private unless hub.public=true.")] = False

    def check(self) -> None:
        """Raise RecipeError for options that cannot be combined, and for invalid values."""
        foreign = [override for override in self.overrides if not override.startswith("hub.")]
        if foreign:
            raise RecipeError(*(f"{override}: only keys of hub can be overridden; remove it" for override in foreign))
        if self.dtype not in (None, *DTYPES):
            raise RecipeError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}")
        if self.adapter and self.dtype is not None:
            raise RecipeError("--dtype: an adapter is always float32; leave out --dtype or --adapter")
        if self.adapter and self.push:
            raise RecipeError("--push: uploads merged weights with their adapter next to them; leave out --adapter")
