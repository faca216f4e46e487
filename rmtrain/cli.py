"""The command line: each verb parses its options, calls one function of `commands/` and prints the result.

Heavy modules are imported inside the verbs: `--help` and errors in a recipe need neither torch nor transformers.
"""

import logging
import os
import re
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rmtrain.commands.options import EvalOptions, InspectOptions, checked_precision
from rmtrain.engine.rank import is_one_of_several, is_started_by_rmtrain, rank_number, watch_launcher
from rmtrain.engine.signals import raise_on_signal
from rmtrain.errors import RecipeError
from rmtrain.exits import exit_process, exit_with_error, fail_on_missed
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.report.console import json_text

if TYPE_CHECKING:
    from rmtrain.commands.result import CommandResult

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="RECIPE [a.b=v ...]", help="Recipe file, followed by overrides of its keys.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="Recipe file, if it is not the first argument.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")]
MaxLengthOption = Annotated[int | None, typer.Option(min=8, help="Maximum length in tokens (default: the model's limit).")]
PrecisionOption = Annotated[str, typer.Option(help="Precision of the model: auto, float32 or bfloat16.")]
TemplateOption = Annotated[bool, typer.Option(help="Allow a chat template that differs from the one the model was trained with.")]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Number of processes to launch, one per GPU.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config", metavar="NAME|FILE", help="Accelerate configuration: a built-in name (ddp, fsdp2, ...) or a file."
    ),
]
BENCHMARKS = "rewardbench, rewardbench2, rm_bench, judgebench, llmbar, rmb"
DataOption = Annotated[str | None, typer.Option("--data", help="File, directory or Hub dataset to evaluate on.")]

app = typer.Typer(
    help="Train, inspect and evaluate reward models from one YAML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
OVERRIDE = re.compile(r"^[A-Za-z_]\w*(\.[\w-]+)*=", re.ASCII)


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Train, inspect and evaluate reward models from one YAML recipe."""
    if show_version:
        print(f"rmtrain {version('rmtrain')}")


@app.command()
def preprocess(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    export: Annotated[Path | None, typer.Option(help="Also write the tokenized pairs to this directory, as Parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for the token lengths (default: next to the cached data).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokenize, check and cache the data. Reports the rows kept and dropped, lengths and findings."""
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    from rmtrain.commands.preprocess import preprocess as run

    with redirect_stdout(sys.stderr):
        outcome = run(loaded, console, export=export, plot=plot)
    finish(outcome, as_json)


@app.command()
def inspect(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    row: Annotated[str | None, typer.Option(help="Number or id of the row to show (default: the first kept row).")] = None,
    find: Annotated[str | None, typer.Option(metavar="TEXT", help="Show rows that contain this text; case is ignored.")] = None,
    dropped: Annotated[str | None, typer.Option(metavar="REASON|all", help="Show rows dropped for this reason.")] = None,
    longest: Annotated[bool, typer.Option("--longest", help="Show the longest rows first.")] = False,
    random: Annotated[bool, typer.Option("--random", help="Show rows in random order.")] = False,
    step: Annotated[int | None, typer.Option(help="Show the contents and packing of this optimizer step, from 0.")] = None,
    source: Annotated[str | None, typer.Option(metavar="TAG", help="Show only rows of this source.")] = None,
    split: Annotated[str, typer.Option(help="Split to show: train or eval.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows to show.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for --random (default: a new one, which is printed).")] = None,
    world_size: Annotated[int | None, typer.Option(help="Number of processes that share the --step (default: 1).")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Also show token ids.")] = False,
    side_by_side: Annotated[
        bool | None,
        typer.Option("--side-by-side/--stacked", help="Show responses in columns (default: if the terminal is wide enough)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show rows as the model sees them. Also shows dropped rows and the contents of an optimizer step."""
    query = InspectOptions(
        row=row,
        find=find,
        dropped=dropped,
        longest=longest,
        random=random,
        step=step,
        source=source,
        split=split,
        limit=limit,
        seed=seed,
        world_size=world_size,
        ids=ids,
        side_by_side=side_by_side,
    )
    query.check()
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    from rmtrain.commands.inspect import inspect as run

    with redirect_stdout(sys.stderr):
        outcome = run(loaded, console, query)
    finish(outcome, as_json)


@app.command()
def train(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from scratch; an existing run is renamed.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Checkpoint to resume from (default: the latest valid one).")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Same as training.deterministic=true.")] = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and memory estimate without training.")] = False,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=1, help="GPU memory to assume for --dry-run (default: this machine's).")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="With --dry-run: also time one training step here.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, evaluate and export a reward model. An interrupted run resumes from its last checkpoint."""
    if dry_run and (fresh or resume is not None):
        raise RecipeError("--dry-run cannot be combined with --fresh or --resume")
    if not dry_run and (measure or gpu_memory is not None):
        raise RecipeError("--measure and --gpu-memory need --dry-run")
    loaded = read_recipe([*(arguments or []), *(["training.deterministic=true"] if deterministic else [])], recipe)
    if dry_run:
        console = start_console()
        from rmtrain.commands.dry_run import DryRunOptions
        from rmtrain.commands.dry_run import dry_run as plan

        with redirect_stdout(sys.stderr):
            outcome = plan(loaded, console, DryRunOptions(processes, accelerate_config, gpu_memory, measure))
        finish(outcome, as_json)
        return
    start_processes(processes, accelerate_config)
    console = start_console()
    from rmtrain.commands.train import train as run

    with redirect_stdout(sys.stderr):
        outcome = run(loaded, console, fresh=fresh, resume=resume)
    finish(outcome, as_json)
    fail_on_missed(outcome.document["gates"], outcome.document["hub_problem"])


@app.command()
def export(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN|CHECKPOINT [hub.b=v ...]", help="Run directory or one of its checkpoints.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Directory for the export (default: in the run).")] = None,
    adapter: Annotated[bool, typer.Option("--adapter/--merged", help="Export the adapter alone, or merged weights.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: that of the run).")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload the export to the Hub; private unless hub.public=true.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export the model of a run or checkpoint. The export is reloaded, its rewards are compared, and --push uploads it."""
    target, overrides = split_arguments(arguments)
    if target is None:
        raise RecipeError("expected a run directory or a checkpoint; see `rmtrain export --help`")
    start_console()
    from rmtrain.commands.export import ExportOptions
    from rmtrain.commands.export import export as run

    with redirect_stdout(sys.stderr):
        outcome = run(ExportOptions(Path(target), overrides, output, "adapter" if adapter else "merged", dtype, push))
    finish(outcome, as_json)


@app.command(name="eval")
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE|MODEL [a.b=v ...]", help="Recipe, run directory or model, followed by overrides."),
    ] = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    output: Annotated[Path | None, typer.Option(help="Directory for scores.jsonl (default: next to the model).")] = None,
    scores: Annotated[Path | None, typer.Option(help="Compute the metrics from this scores.jsonl, without a model.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report to this HTML file.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="Exit with code 6 below this value, such as accuracy=0.7, rm_bench=0.6 or rewardbench.safety=0.8."),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="NAME,...", help=f"Benchmarks to run: {BENCHMARKS}.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the benchmarks' official files (default: the Hub).")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Test whether scores file B is better than scores file A.")
    ] = None,
    allow_different_settings: Annotated[bool, typer.Option(help="Let --compare run although settings differ.")] = False,
    max_length: MaxLengthOption = None,
    precision: PrecisionOption = "auto",
    allow_template_change: TemplateOption = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on pairs or benchmarks. Reports accuracy with its interval, ties, loss and baselines, per source."""
    target, overrides = split_arguments(arguments)
    request = EvalOptions(
        target=target,
        overrides=tuple(overrides),
        recipe=recipe,
        data=data,
        output=output,
        scores=scores,
        report=report,
        fail_under=tuple(fail_under or []),
        benchmark=benchmark,
        data_dir=data_dir,
        compare=compare,
        allow_different_settings=allow_different_settings,
        max_length=max_length,
        precision=precision,
        allow_template_change=allow_template_change,
    )
    request.check()
    start_processes(processes, accelerate_config)
    console = start_console()
    from rmtrain.commands.evaluate import run_eval

    with redirect_stdout(sys.stderr):
        outcome = run_eval(request, console)
    finish(outcome, as_json)
    fail_on_missed(outcome.document["gates"])


@app.command()
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or Hub id of a reward model.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines of conversations (also .gz), or - for stdin.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Output file, or - for stdout. A partial output is resumed.")],
    best_of: Annotated[bool, typer.Option("--best-of", help="Write only the best response of each line.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip lines that cannot be scored, and count them.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite an existing output.")] = False,
    cut: Annotated[bool, typer.Option("--cut", help="Cut the beginning of inputs that are too long.")] = False,
    max_length: MaxLengthOption = None,
    precision: PrecisionOption = "auto",
    allow_template_change: TemplateOption = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a file of conversations. A line has `messages`, or `prompt` and `response` or `responses`."""
    if output == "-" and as_json:
        raise RecipeError("--json and -o - both write to stdout; set -o to a file")
    computed = checked_precision(precision)
    start_processes(processes, accelerate_config)
    console = start_console()
    from rmtrain.commands.score import ScoreOptions
    from rmtrain.commands.score import score as run

    wanted = ScoreOptions(
        model=model,
        source=source,
        target=output,
        best_of=best_of,
        skip_bad=skip_bad,
        fresh=fresh,
        overlong="cut" if cut else "error",
        max_length=max_length,
        precision=computed,
        allow_template_change=allow_template_change,
    )
    finish(run(wanted, console), as_json, is_taken=output == "-")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the recipe, for editors."""
    from rmtrain.recipe.schema import json_schema as run

    print(run(), end="")


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """Split arguments into the one that is not an override, if any, and the overrides.

    Raises:
        RecipeError: more than one argument is not an override.
    """
    overrides = [argument for argument in arguments or [] if OVERRIDE.match(argument)]
    others = [argument for argument in arguments or [] if not OVERRIDE.match(argument)]
    if len(others) > 1:
        raise RecipeError(*(f"{extra}: expected an override such as optimizer.lr=1e-5" for extra in others[1:]))
    return (others[0] if others else None), overrides


def read_recipe(arguments: list[str] | None, option: Path | None) -> Recipe:
    """Load the recipe named as argument or by `--recipe`, with the overrides that follow it."""
    target, overrides = split_arguments(arguments)
    if (target is None) == (option is None):
        raise RecipeError("expected one recipe, as the first argument or as --recipe; see `rmtrain --help`")
    return load_recipe(str(option or target), overrides)


def start_processes(processes: int | None, config: str | None) -> None:
    """If several processes are requested, launch them with the same command line, wait, and exit as they do."""
    if (processes is None and config is None) or is_started_by_rmtrain():
        return
    from rmtrain.engine.launch import launch

    ended = launch(processes, config)
    if ended is not None:
        exit_process(ended.code, ended.lines)


class Notices(logging.Handler):
    """Print log records of rmtrain as lines that begin with `note:` or `warning:`."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        level = "warning" if record.levelno >= logging.WARNING else "note"
        self.console.print(f"{level}: {record.getMessage()}", highlight=False)


def start_console() -> Console:
    """Return the console for everything but the result, on stderr, and silence libraries.

    A library that prints all the same must not spoil the result either: verbs run with stdout redirected to stderr.
    """
    if is_one_of_several():
        watch_launcher()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    console = Console(stderr=True)
    logger = logging.getLogger("rmtrain")
    logger.handlers = [Notices(console)]
    logger.setLevel(logging.WARNING if rank_number() else logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return console


def finish(outcome: "CommandResult", as_json: bool, is_taken: bool = False) -> None:
    """Print the result on rank 0: the report on stdout, or with `--json` the document on stdout and the report on stderr.

    Args:
        outcome: the result.
        as_json: print the document.
        is_taken: stdout holds rewards, so that the report goes to stderr.
    """
    if rank_number():
        return
    console = Console(stderr=as_json or is_taken)
    console.print(outcome.report, crop=console.is_terminal)
    if outcome.commands:
        console.print()
        console.print(outcome.commands, soft_wrap=True)
    if as_json:
        print(json_text(outcome.document))


def main() -> None:
    """Run the command line."""
    raise_on_signal()
    try:
        app()
    except SystemExit as exiting:
        exit_process(exiting.code)
    except BaseException as error:
        exit_with_error(error)
