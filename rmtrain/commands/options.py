"""What goes into a verb and what comes out: options, each declared once as a field of a dataclass, and `CommandResult`.

Nothing heavy is imported here, so that options that cannot be combined are refused at once.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import typer
from rich.console import RenderableType
from rich.text import Text

from rmtrain.commands.completion import (
    complete_benchmarks,
    complete_configurations,
    complete_overrides,
    complete_recipes,
    complete_sources,
    one_of,
)
from rmtrain.errors import RecipeError
from rmtrain.recipe.key_aliases import SAME_VALUES
from rmtrain.recipe.schema import Gate, Precision

Kind = Literal["compare", "scores", "benchmarks", "pairs"]


def _our_name(dtype: str | None) -> str | None:
    """Return our name of a dtype that is given as `bf16` or the like."""
    return SAME_VALUES.get(dtype, dtype) if dtype else dtype


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE ... [a.b=v ...]",
        help="Recipe file, or several of which later ones win; then overrides of its keys, such as optimizer.lr=1e-5.",
        autocompletion=complete_overrides,
    ),
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", "--config", "-c", help="Recipe file, if it is not the first argument.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")]
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
TemplateOption = Annotated[
    bool,
    typer.Option("--allow-template-change", help="Allow a chat template that differs from the one the model was trained with."),
]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Number of processes to launch, one per GPU.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config",
        metavar="NAME|FILE",
        help="How processes share the work: a built-in name (ddp, fsdp2, deepspeed_zero2, ...) or a configuration file of accelerate.",
        autocompletion=complete_configurations,
    ),
]


def flat_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options` of a verb, a dataclass, by a parameter for each field that has a typer declaration."""
    signature = inspect.signature(verb)
    options = signature.parameters["options"].annotation
    hints = get_type_hints(options, include_extras=True)
    declared = {
        option.name: inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
            annotation=hints[option.name],
        )
        for option in fields(options)
        if get_origin(hints[option.name]) is Annotated
    }
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += declared.values() if parameter.name == "options" else [parameter.replace(kind=parameter.KEYWORD_ONLY)]

    @wraps(verb)
    def command(**values: Any) -> None:
        verb(options=options(**{name: values.pop(name) for name in declared}), **values)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


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


NOT_TOGETHER: Mapping[str, tuple[str, ...]] = {
    "step": ("row", "find", "dropped", "longest", "random", "source", "split", "ids", "side_by_side"),
    "row": ("find", "dropped", "longest", "random", "limit"),
    "dropped": ("longest", "ids", "side_by_side", "model"),
    "longest": ("random",),
    "model": ("step", "ids"),
}
"""Options of `rmtrain inspect` that cannot be combined, each pair once."""
NEEDS = {"seed": "random", "world_size": "step", "allow_template_change": "model"}
LOWEST = {"step": 0, "seed": 0, "limit": 1, "world_size": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """The options of `rmtrain inspect`. The default is to show the first kept row of `train`."""

    row: Annotated[str | None, typer.Option(help="Number or id of the row to show (default: the first kept row).")] = None
    find: Annotated[str | None, typer.Option(metavar="TEXT", help="Show rows that contain this text; case is ignored.")] = None
    dropped: Annotated[str | None, typer.Option(metavar="REASON|all", help="Show rows dropped for this or any reason.")] = None
    longest: Annotated[bool, typer.Option("--longest", help="Show the longest rows first.")] = False
    random: Annotated[bool, typer.Option("--random", help="Show rows in random order.")] = False
    step: Annotated[int | None, typer.Option(help="Show the contents and packing of this optimizer step, from 0.")] = None
    source: Annotated[
        str | None, typer.Option(metavar="TAG", help="Show only rows of this source.", autocompletion=complete_sources)
    ] = None
    split: Annotated[str, typer.Option(help="Split to show: train or eval.", autocompletion=one_of("train", "eval"))] = "train"
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of rows to show (default: 1; 3 with --find or --dropped; all with --step).")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed for --random (default: a new one, which is printed).")] = None
    world_size: Annotated[int | None, typer.Option(help="With --step: processes that share the step (default: 1).")] = None
    ids: Annotated[bool, typer.Option("--ids", help="Also show token ids.")] = False
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Also show the reward after each token, of this run, or directory or Hub id of a reward model."
        ),
    ] = None
    allow_template_change: TemplateOption = False
    side_by_side: Annotated[
        bool | None,
        typer.Option(
            "--side-by-side/--stacked",
            help="Show responses in columns or one below the other (default: by the width of the terminal).",
        ),
    ] = None

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


@dataclass(frozen=True, slots=True)
class InitOptions:
    """The options of `rmtrain init`."""

    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="File, folder or Hub dataset, with its configuration after a colon: owner/name:config."
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id or directory of the model to train (default: a small one).")
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Print a recipe that ships with rmtrain, and not one for DATA.", autocompletion=complete_recipes
        ),
    ] = None
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes that ship with rmtrain.")] = False
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the recipe to a new file (default: stdout).")
    ] = None

    def check(self) -> None:
        """Raise RecipeError unless one thing is asked for."""
        if sum((self.data is not None, self.recipe is not None, self.list_recipes)) != 1:
            raise RecipeError("expected a dataset, --recipe NAME or --list, and only one of them; see `rmtrain init --help`")
        unused = [
            _option(name)
            for name in ("model", "output")
            if getattr(self, name) and (self.list_recipes or (name == "model" and not self.data))
        ]
        if unused:
            raise RecipeError(
                f"{', '.join(unused)}: cannot be combined with {'--list' if self.list_recipes else '--recipe'}; remove it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of `rmtrain train`, `--dry-run` included."""

    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; an existing run is renamed, not deleted.")] = False
    resume: Annotated[Path | None, typer.Option(help="Checkpoint to resume from (default: the newest valid one).")] = None
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Allow only kernels that repeat bit for bit (training.deterministic=true)."),
    ] = False
    processes: ProcessesOption = None
    accelerate_config: ConfigOption = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help='Train once for each combination of values, such as "optimizer.lr=1e-5,3e-5 run.seed=1,2". Can be repeated.',
            autocompletion=complete_overrides,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the number of steps and a memory estimate, or the runs of --sweep, without training."
        ),
    ] = False
    gpu_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", min=1, help="With --dry-run: memory of a GPU to assume (default: this machine's)."),
    ] = None
    measure: Annotated[bool, typer.Option("--measure", help="With --dry-run: also time one step on this machine.")] = False

    def check(self) -> None:
        """Raise RecipeError for options that cannot be combined."""
        if self.dry_run and (self.fresh or self.resume is not None):
            raise RecipeError("--dry-run cannot be combined with --fresh or --resume")
        if not self.dry_run and (self.measure or self.gpu_memory is not None):
            raise RecipeError("--measure and --gpu-memory need --dry-run")
        alone = [name for name in ("fresh", "resume", "measure", "gpu_memory") if getattr(self, name)]
        if self.sweep and alone:
            raise RecipeError(f"{_option(alone[0])}: cannot be combined with --sweep; train that run by itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The options of `rmtrain audit`."""

    folds: Annotated[int, typer.Option(min=2, max=1000, help="Number of parts of the training prompts, and of runs.")] = 5
    effect: Annotated[
        bool,
        typer.Option("--effect", help="Also train with all labels, without the suspects, and with flipped ones, and compare."),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Directory of the audit (default: run.output_dir + -audit)."),
    ] = None
    processes: ProcessesOption = None
    accelerate_config: ConfigOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsOptions:
    """The options of `rmtrain runs`."""

    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR ...", help="Directories of runs, or directories to search for runs (default: runs)."),
    ] = None
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Sort by path, state, step, accuracy, loss, time, or a recipe key, such as lr."),
    ] = None
    compare: Annotated[
        bool, typer.Option("--compare", help="Test whether the best run is better than each other run on the same rows.")
    ] = False
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write an HTML report of all runs to this file.")] = (
        None
    )
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the runs as CSV on stdout instead of the tables.")] = False

    @property
    def places(self) -> list[Path]:
        """Where to look for runs."""
        return self.directories or [Path("runs")]


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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A result.

    report: for people.
    document: the same as JSON values.
    commands: next commands to run, one a line.
    finished: what is said where the report cannot be printed.
    """

    report: RenderableType
    document: dict[str, Any]
    commands: Text = field(default_factory=Text)
    finished: str = "the command has finished"
