"""The command line: parses, hands over to one function of `commands/`, prints, and turns errors into exit codes.

Heavy modules are imported inside the verbs: `--help` and a wrong recipe need neither torch nor transformers.
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

from rmtrain import exits
from rmtrain.commands.options import EvalOptions, checked_precision
from rmtrain.errors import RecipeError
from rmtrain.exits import fail_on_missed
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.report.console import json_text

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="RECIPE [a.b=v ...]", help="A recipe, then overrides of its keys.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="The recipe, when it is not the first argument.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")]
MaxLengthOption = Annotated[int | None, typer.Option(min=8, help="Longest sequence in tokens; else what the model holds.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
TemplateOption = Annotated[bool, typer.Option(help="Score with another chat template than the model was trained on.")]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Start so many processes of this machine, one for each GPU.")]
ConfigOption = Annotated[
    str | None, typer.Option("--accelerate-config", metavar="NAME|FILE", help="How they share the work, such as ddp or fsdp2.")
]
BENCHMARKS = "rewardbench, rewardbench2, rm_bench, judgebench, llmbar, rmb"
DataOption = Annotated[str | None, typer.Option("--data", help="Evaluate on this file, directory or Hub dataset.")]


if TYPE_CHECKING:
    from rmtrain.commands.result import CommandResult

app = typer.Typer(
    help="Train, inspect and evaluate reward models from one YAML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
OVERRIDE = re.compile(r"^[A-Za-z_]\w*(\.[\w-]+)*=", re.ASCII)


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train, inspect and evaluate reward models from one YAML recipe."""
    if show_version:
        print(f"rmtrain {version('rmtrain')}")


@app.command()
def preprocess(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the tokenized pairs as columns input_ids_chosen, ... here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where the PNG of token lengths goes; else beside the tokenized data.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read, check and tokenize the data, report what was kept, and cache the result."""
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
    row: Annotated[str | None, typer.Option(help="Number of a kept row, or its id; else the first.")] = None,
    find: Annotated[str | None, typer.Option(metavar="TEXT", help="Kept rows with this text, whatever its case.")] = None,
    dropped: Annotated[str | None, typer.Option(metavar="REASON", help="Rows dropped for this reason; all: for any.")] = None,
    longest: Annotated[bool, typer.Option("--longest", help="The longest rows first.")] = False,
    random: Annotated[bool, typer.Option("--random", help="Rows in random order.")] = False,
    step: Annotated[
        int | None, typer.Option(help="What this optimizer step holds, counted from 0, and how it is packed.")
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="TAG", help="Only rows of this source.")] = None,
    split: Annotated[str, typer.Option(help="train or eval")] = "train",
    limit: Annotated[int | None, typer.Option(help="Show so many rows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of --random; else a new one, which is printed.")] = None,
    world_size: Annotated[int | None, typer.Option(help="Processes that share the --step; else 1.")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    side_by_side: Annotated[
        bool | None,
        typer.Option("--side-by-side/--stacked", help="Responses in columns; else where the terminal is wide enough."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show comparisons as the model sees them, rows that were dropped, or what an optimizer step holds."""
    from rmtrain.commands.options import InspectOptions

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
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an older run in run.output_dir aside and begin anew.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Checkpoint to go on from; else the newest that is undamaged.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same recipe, same weights, bit for bit: training.deterministic=true.")
    ] = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a run would do, and whether it fits; start none.")] = False,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=1, help="Of each GPU that a --dry-run is about; else of this machine.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Let a --dry-run compute a step here, and say how long.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, evaluate and export a reward model; an interrupted run goes on from its last checkpoint."""
    if dry_run and (fresh or resume is not None):
        raise RecipeError("--dry-run begins nothing and goes on with nothing; leave out --fresh and --resume")
    if not dry_run and (measure or gpu_memory is not None):
        raise RecipeError("--measure and --gpu-memory are for a --dry-run; add it or leave them out")
    loaded = read_recipe([*(arguments or []), *(["training.deterministic=true"] if deterministic else [])], recipe)
    if dry_run:
        console = start_console()
        from rmtrain.commands.dry_run import Request
        from rmtrain.commands.dry_run import dry_run as plan

        with redirect_stdout(sys.stderr):
            outcome = plan(loaded, console, Request(processes, accelerate_config, gpu_memory, measure))
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
        list[str], typer.Argument(metavar="RUN|CHECKPOINT [hub.b=v ...]", help="A run or one of its checkpoints.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Directory of the export; else in the run.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter/--merged", help="The adapter alone, or merged weights beside it.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; else that of the run.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload it, private unless hub.public=true.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a run's model, or any of its checkpoints, reload it and compare rewards, and upload it if asked."""
    target, overrides = split_arguments(arguments)
    if target is None:
        raise RecipeError("expected a run or a checkpoint; see `rmtrain export --help`")
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
        typer.Argument(metavar="RECIPE|MODEL [a.b=v ...]", help="A recipe, run directory or model, then overrides."),
    ] = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    output: Annotated[Path | None, typer.Option(help="Directory of scores.jsonl; else beside the model.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Compute the numbers from this scores.jsonl alone.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as one HTML file here.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="A gate such as accuracy=0.7, rm_bench=0.6 or rewardbench.safety=0.8; exit code 6 when missed."),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="NAME,...", help=f"Of {BENCHMARKS}.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the benchmarks' official files; else from the Hub.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Two files of scores: is the second model better?")
    ] = None,
    allow_different_settings: Annotated[bool, typer.Option(help="Let --compare go on where settings differ.")] = False,
    max_length: MaxLengthOption = None,
    precision: PrecisionOption = "auto",
    allow_template_change: TemplateOption = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a reward model on pairs, or on public benchmarks: accuracy with interval, ties, loss, baselines, per source."""
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
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines of conversations, .gz or not; - for stdin.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Where the rewards go; - for stdout. Gone on with if it was begun.")
    ],
    best_of: Annotated[bool, typer.Option("--best-of", help="Write the best response of each line, rather than all.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that cannot be scored, and count them.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite what the output holds.")] = False,
    cut: Annotated[bool, typer.Option("--cut", help="Cut the beginning of what is too long, rather than stop.")] = False,
    max_length: MaxLengthOption = None,
    precision: PrecisionOption = "auto",
    allow_template_change: TemplateOption = False,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score conversations, or the responses to prompts: lines of `messages`, or of `prompt` and `response` or `responses`."""
    if output == "-" and as_json:
        raise RecipeError("--json writes to stdout, and so does -o -; name a file")
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
    """Print the JSON Schema of a recipe, for editors."""
    from rmtrain.commands.schema import schema as run

    print(run(), end="")


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The first argument that is no override, and the overrides.

    Raises:
        RecipeError: more than one argument is no override.
    """
    overrides = [argument for argument in arguments or [] if OVERRIDE.match(argument)]
    others = [argument for argument in arguments or [] if not OVERRIDE.match(argument)]
    if len(others) > 1:
        raise RecipeError(*(f"{extra}: expected an override such as optimizer.lr=1e-5" for extra in others[1:]))
    return (others[0] if others else None), overrides


def read_recipe(arguments: list[str] | None, option: Path | None) -> Recipe:
    """The recipe named as argument or by `--recipe`, with the overrides that follow it."""
    target, overrides = split_arguments(arguments)
    if (target is None) == (option is None):
        raise RecipeError("expected one recipe, as the first argument or as --recipe; see `rmtrain --help`")
    return load_recipe(str(option or target), overrides)


def start_processes(processes: int | None, config: str | None) -> None:
    """Where several processes are asked for, be their launcher, and end as they do; else return."""
    if processes is None and config is None:
        return
    from rmtrain.engine.launch import launch

    code = launch(processes, config)
    if code is not None:
        exits.leave(code)


def start_console() -> Console:
    """The console of everything that is not a result: stderr. Libraries keep quiet, notices of ours become lines.

    What a library prints all the same is no result either: verbs run with stdout redirected there.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    console = Console(stderr=True)
    exits.watch_others()

    class Notices(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {record.getMessage()}", highlight=False)

    logger = logging.getLogger("rmtrain")
    logger.handlers = [Notices()]
    logger.setLevel(logging.WARNING if exits.is_other_rank() else logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return console


def finish(outcome: "CommandResult", as_json: bool, is_taken: bool = False) -> None:
    """Print the result: for people on stdout, or there for machines and for people on stderr, as where stdout is taken by rewards.

    Of several processes one prints.
    """
    if exits.is_other_rank():
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
    exits.take_signals()
    try:
        app()
    except SystemExit as exiting:
        exits.leave(exiting.code)
    except BaseException as error:
        exits.end(error)
