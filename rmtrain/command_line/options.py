"""What goes into a verb and what comes out: options, each declared once as a field of a dataclass, and `CommandResult`.

Here are those of the verbs that read a recipe; `model_options` has those of the verbs that read a trained model.

Nothing heavy is imported here, so that options that cannot be combined are refused at once.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer
from rich.console import RenderableType
from rich.text import Text

from rmtrain.command_line.completion import (
    complete_configurations,
    complete_overrides,
    complete_recipes,
    complete_sources,
    one_of,
)
from rmtrain.errors import RecipeError

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
            f"{option_name(name)}: cannot be combined with {option_name(other)}; remove one of them"
            for name, others in NOT_TOGETHER.items()
            for other in others
            if name in given and other in given
        ]
        for name, needed in NEEDS.items():
            if name in given and needed not in given:
                problems.append(f"{option_name(name)}: needs {option_name(needed)}")
        if self.split not in ("train", "eval"):
            problems.append(f"--split: expected train or eval, got {self.split}")
        if self.find == "":
            problems.append("--find: expected a text, got an empty one")
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                problems.append(f"{option_name(name)}: expected at least {lowest}, got {value}")
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
            option_name(name)
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
            raise RecipeError(f"{option_name(alone[0])}: cannot be combined with --sweep; train that run by itself")


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


def option_name(name: str) -> str:
    """Return the option of a field, such as `--max-length`."""
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
