"""The command line: each verb parses its options, calls one function of `commands/` and prints the result.

An error ends the command in `exits`, and nowhere else. Heavy modules are imported inside the verbs: `--help` and errors in a recipe need
neither torch nor transformers.
"""

import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from rmtrain.command_line.completion import complete_keys, complete_overrides
from rmtrain.command_line.exits import exit_process, exit_with_error, fail_on_missed
from rmtrain.command_line.model_options import EvalOptions, ExportOptions, ScoreOptions, ServeOptions, checked_precision
from rmtrain.command_line.options import (
    Arguments,
    AuditOptions,
    CommandResult,
    ConfigOption,
    InitOptions,
    InspectOptions,
    JsonOption,
    ProcessesOption,
    RecipeOption,
    RunsOptions,
    TrainOptions,
    flat_options,
)
from rmtrain.command_line.verbs import Verb, Verbs
from rmtrain.engine.rank import (
    check_variables,
    is_one_of_several,
    is_started_by_rmtrain,
    raise_on_signal,
    rank_number,
    report_lost_pages,
    watch_launcher,
)
from rmtrain.errors import RecipeError, TryAgain
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe, json_schema
from rmtrain.report.console import json_text, one_line
from rmtrain.report.github import in_github, stop_commands
from rmtrain.report.terminal import TerminalConsole, protect_streams

app = typer.Typer(
    cls=Verbs,
    help="Train, inspect and evaluate reward models.\n\nA recipe is a YAML file that describes a run: data, model, optimizer and so on. "
    "Any of its keys can be overridden on the command line, as in optimizer.lr=1e-5.",
    epilog="rmtrain train recipes/quickstart.yaml optimizer.lr=1e-4",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
OVERRIDE = re.compile(r"^[A-Za-z_]\w*(\.[\w-]+)*=", re.ASCII)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    """Train, inspect and evaluate reward models from one YAML recipe."""
    if show_version:
        print(f"rmtrain {version('rmtrain')}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(RecipeError.exit_code)


@app.command(cls=Verb, epilog="rmtrain init pairs.csv -o recipe.yaml")
@flat_options
def init(*, options: InitOptions) -> None:
    """Look at a dataset and print a recipe for it, with a comment for each choice. What the rows do not say is asked, or marked CHECK."""
    options.check()
    if options.data is None:
        from rmtrain.commands.init_files import listing, shipped

        start_console(with_models=False)
        text = listing() if options.list_recipes else shipped(str(options.recipe), options.output)
    else:
        console = start_console()
        with quick_imports():
            from rmtrain.commands.init import init as run

        with redirect_stdout(sys.stderr):
            text = run(options, console)
    if options.output is None:
        print(text, end="")


@app.command(cls=Verb, epilog="rmtrain preprocess recipes/quickstart.yaml --export columns")
def preprocess(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the tokenized pairs to this directory, as Parquet files.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file for a plot of the token lengths (default: next to the cached data).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read, check and tokenize the data, and cache the result. Reports rows kept and dropped, token lengths and suspicious rows."""
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    with quick_imports():
        from rmtrain.commands.preprocess import preprocess as run

    finish(lambda: run(loaded, console, export=export, plot=plot), as_json)


@app.command(cls=Verb, epilog="rmtrain inspect recipes/quickstart.yaml --longest --limit 3")
@flat_options
def inspect(
    arguments: Arguments = None, recipe: RecipeOption = None, *, options: InspectOptions, as_json: JsonOption = False
) -> None:
    """Show rows as the model sees them. Also shows dropped rows and the contents of an optimizer step."""
    options.check()
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    with quick_imports():
        from rmtrain.commands.inspect import inspect as run

    finish(lambda: run(loaded, console, options), as_json)


@app.command(cls=Verb, epilog="rmtrain train recipes/quickstart.yaml optimizer.lr=1e-4 --dry-run")
@flat_options
def train(
    arguments: Arguments = None, recipe: RecipeOption = None, *, options: TrainOptions, as_json: JsonOption = False
) -> None:
    """Train, evaluate and export a reward model. Run the same command again to resume an interrupted run."""
    options.check()
    words = [*(arguments or []), *(["training.deterministic=true"] if options.deterministic else [])]
    if options.sweep:
        train_sweep(words, recipe, options, as_json)
        return
    loaded = read_recipe(words, recipe)
    if options.dry_run:
        console = start_console()
        with quick_imports():
            from rmtrain.commands.dry_run import dry_run

        finish(lambda: dry_run(loaded, console, options), as_json)
        return
    start_processes(options.processes, options.accelerate_config)
    console = start_console()
    with quick_imports():
        from rmtrain.commands.train import train as run

    outcome = finish(lambda: run(loaded, console, fresh=options.fresh, resume=options.resume), as_json)
    fail_on_missed(outcome.document["gates"], outcome.document["hub_problem"])


@app.command(cls=Verb, epilog="rmtrain audit recipes/quickstart.yaml --folds 5 --effect")
@flat_options
def audit(
    arguments: Arguments = None, recipe: RecipeOption = None, *, options: AuditOptions, as_json: JsonOption = False
) -> None:
    """List the training rows whose labels are probably wrong. Each is scored by a model that was trained on the other prompts.

    Run the same command again to resume an interrupted audit.
    """
    words = arguments or []
    if is_one_of_several():
        raise RecipeError("audit: a launcher started this process; use --processes, which launches each run of the audit")
    loaded = read_recipe(words, recipe)
    console = start_console(with_models=False)
    with quick_imports():
        from rmtrain.commands.audit import LabelRuns
        from rmtrain.commands.audit import audit as run

    handed_on = check_launch(options.processes, options.accelerate_config)
    given = [*words, *([] if recipe is None else ["--recipe", str(recipe)])]
    runs = LabelRuns(loaded, lambda texts: read_recipe([*words, *texts], recipe), given, handed_on, console)
    finish(lambda: run(runs, options), as_json)


@app.command(cls=Verb, epilog="rmtrain export runs/quickstart --output model hub.id=owner/name")
@flat_options
def export(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CHECKPOINT [hub.b=v ...]",
            help="Run directory or one of its checkpoints, then overrides of hub keys, such as hub.id=owner/name.",
        ),
    ],
    *,
    options: ExportOptions,
    as_json: JsonOption = False,
) -> None:
    """Export the model of a run or checkpoint. The export is reloaded and must give the same rewards; --push uploads it."""
    targets, overrides = split_arguments(arguments)
    if len(targets) != 1:
        raise RecipeError("expected one run directory or checkpoint; see `rmtrain export --help`")
    start_console()
    with quick_imports():
        from rmtrain.commands.export import export as run

    finish(lambda: run(replace(options, target=Path(targets[0]), overrides=overrides)), as_json)


@app.command(name="eval", cls=Verb, epilog="rmtrain eval runs/quickstart --data pairs.jsonl --fail-under accuracy=0.7")
@flat_options
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE ...|RUN|MODEL [a.b=v ...]",
            help="Recipe (for the model of its run; of several files later ones win), run directory, or directory or Hub id of a model; "
            "then overrides of recipe keys.",
            autocompletion=complete_overrides,
        ),
    ] = None,
    *,
    options: EvalOptions,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on pairs or benchmarks. Reports accuracy with its interval, ties, loss and baselines, per source."""
    targets, overrides = split_arguments(arguments)
    options = replace(options, target=next(iter(targets), None), parts=targets[1:], overrides=overrides)
    options.check()
    start_processes(processes, accelerate_config)
    if options.needs_no_model:
        start_console(with_models=False)
        with quick_imports():
            from rmtrain.commands.evaluate_scores import run_scores

        outcome = finish(lambda: run_scores(options), as_json)
    else:
        console = start_console()
        with quick_imports():
            from rmtrain.commands.evaluate import run_eval

        outcome = finish(lambda: run_eval(options, console), as_json)
    fail_on_missed(outcome.document["gates"])


@app.command(cls=Verb, epilog="rmtrain score runs/quickstart responses.jsonl --output rewards.jsonl")
@flat_options
def score(
    *,
    options: ScoreOptions,
    processes: ProcessesOption = None,
    accelerate_config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a file of conversations. Each line is a JSON object with `messages`, or with `prompt` and `response` or `responses`."""
    if options.target == "-" and as_json:
        raise RecipeError("--json and the rewards both go to stdout; set -o to a file")
    checked_precision(options.precision)
    start_processes(processes, accelerate_config)
    console = start_console()
    with quick_imports():
        from rmtrain.commands.score import score as run

    print_result(run(options, console), as_json, is_taken=options.target == "-")


@app.command(cls=Verb, epilog="rmtrain serve runs/quickstart --port 8000")
@flat_options
def serve(*, options: ServeOptions, as_json: JsonOption = False) -> None:
    """Serve rewards over HTTP: POST /score, /get_reward (OpenRLHF, slime) or /classify (verl, vLLM); GET /health, /metrics."""
    options.check()
    start_processes(options.processes, None)
    start_console()
    with quick_imports():
        from rmtrain.commands.serve import serve as run

    run(options, lambda outcome: print_result(outcome, as_json))


@app.command(cls=Verb, epilog="rmtrain runs runs/hh --sort accuracy --compare")
@flat_options
def runs(*, options: RunsOptions, as_json: JsonOption = False) -> None:
    """List runs: the keys in which their recipes differ, their state, accuracy, loss and time, and means over seeds."""
    if options.as_csv and as_json:
        raise RecipeError("--csv and --json both print to stdout; leave one out")
    start_console(with_models=False)
    if options.compare or options.report is not None:
        with quick_imports():
            from rmtrain.commands.runs_compare import compare_runs as run
    else:
        from rmtrain.commands.runs import list_runs as run
    with redirect_stdout(sys.stderr):
        outcome = run(options)
    if options.as_csv:
        from rmtrain.report.runs_view import runs_csv

        print(runs_csv(outcome.document), end="")
    else:
        print_result(outcome, as_json)


@app.command(cls=Verb, epilog="rmtrain schema optimizer.lr")
def schema(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="Key or section to explain, such as optimizer.lr.", autocompletion=complete_keys),
    ] = None,
) -> None:
    """Print the JSON Schema of the recipe, for editors; or explain a key in the terminal."""
    if key is None:
        print(json_schema(), end="")
        return
    from rmtrain.command_line.key_help import explain_key

    console = TerminalConsole()
    console.print(explain_key(key), crop=console.is_terminal)


def split_arguments(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Split arguments into what they name, such as recipe files, and overrides.

    Raises RecipeError if one of several files does not exist: it may be a mistyped override.
    """
    overrides = [argument for argument in arguments or [] if OVERRIDE.match(argument)]
    names = [argument for argument in arguments or [] if not OVERRIDE.match(argument)]
    if len(names) > 1 and not all(map(os.path.exists, names)):
        wrong = [name for name in names[1:] if not os.path.exists(name)] or names[:1]
        raise RecipeError(*(f"{name}: expected an override such as optimizer.lr=1e-5, or a file that exists" for name in wrong))
    return names, overrides


def read_recipe(arguments: list[str] | None, option: Path | None) -> Recipe:
    """Load the recipe named by arguments, of which later files win, or by `--recipe`, with the overrides."""
    files, overrides = split_arguments(arguments)
    if bool(files) == (option is not None):
        raise RecipeError("expected a recipe, either as argument or as --recipe; see `rmtrain --help`")
    return load_recipe(files if option is None else option, overrides)


def train_sweep(words: list[str], option: Path | None, options: TrainOptions, as_json: bool) -> None:
    """Train the runs of `--sweep`, or list them; all are checked before the first one starts."""
    from rmtrain.recipe.combinations import parse_sweep, swept_runs

    if is_one_of_several():
        raise RecipeError("--sweep: a launcher started this process; use --processes, which launches each run of the sweep")
    swept = swept_runs(lambda texts: read_recipe([*words, *texts], option), parse_sweep(options.sweep or ()))
    console = start_console(with_models=False)
    from rmtrain.commands.sweep import list_sweep, plan_sweep, raise_worst, sweep

    planned = plan_sweep(swept)
    if options.dry_run:
        finish(lambda: list_sweep(planned), as_json)
        return
    handed_on = check_launch(options.processes, options.accelerate_config)
    recipe = [] if option is None else ["--recipe", str(option)]
    outcome = finish(lambda: sweep(planned, [*words, *recipe], handed_on, console), as_json)
    raise_worst(outcome.document["failures"])


def check_launch(processes: int | None, config: str | None) -> list[str]:
    """Return the options that launch several processes; raises RecipeError for what this machine cannot launch."""
    if processes is None and config is None:
        return []
    from rmtrain.engine.launch import read

    job = read(processes, config)
    if job is not None:
        job.check()
    given = {"--processes": processes, "--accelerate-config": config}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def start_processes(processes: int | None, config: str | None) -> None:
    """If several processes are requested, launch them with the same command line, wait, and exit as they do."""
    if (processes is None and config is None) or is_started_by_rmtrain():
        return
    from rmtrain.engine.launch import launch

    ended = launch(processes, config)
    if ended is not None:
        exit_process(ended.code, ended.lines)


class Notices(logging.Handler):
    """Prints log records of rmtrain as lines that begin with `note:` or `warning:`."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "note"
        self.console.print(f"{level}: {one_line(record.getMessage())}", soft_wrap=not self.console.is_terminal)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without collecting garbage, which takes a quarter of the time: each full collection looks at all that was imported before.

    Later collections also pass over what was imported.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start_console(with_models: bool = True) -> Console:
    """Return the console for everything but the result, on stderr, and silence the libraries that load data and models."""
    if is_one_of_several():
        watch_launcher()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    console = TerminalConsole(stderr=True)
    logger = logging.getLogger("rmtrain")
    logger.handlers = [Notices(console)]
    logger.setLevel(logging.WARNING if rank_number() else logging.INFO)
    if with_models:
        silence_libraries(logger.handlers)
    return console


def silence_libraries(handlers: list[logging.Handler]) -> None:
    """Import the libraries that load data and models, and leave of their output only errors, and what datasets logs to `handlers`."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    with quick_imports():
        import datasets
        import transformers

    logging.getLogger("datasets").handlers = handlers  # such as that a cached version is used, in one line
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def finish(verb: Callable[[], CommandResult], as_json: bool) -> CommandResult:
    """Run a verb and print its result; what a library prints meanwhile must not spoil that, and goes to stderr."""
    with redirect_stdout(sys.stderr):
        outcome = verb()
    print_result(outcome, as_json)
    return outcome


def print_result(outcome: CommandResult, as_json: bool, is_taken: bool = False) -> None:
    """Print the result on rank 0: the report on stdout, or with `--json` the document there and the report on stderr.

    `is_taken`: stdout holds rewards, so that the report goes to stderr.
    """
    if rank_number():
        return
    console = TerminalConsole(stderr=as_json or is_taken)
    try:
        console.print(outcome.report, crop=console.is_terminal)
        if outcome.commands:
            console.print()
            console.print(outcome.commands, soft_wrap=True)
        if as_json:
            print(json_text(outcome.document, sys.stdout.encoding), flush=True)
    except OSError as error:
        raise TryAgain(f"{error.filename}: the report cannot be printed: {error.strerror}; {outcome.finished}") from error
    if not in_github():
        return
    from rmtrain.report.step_summary import write_summary

    try:
        write_summary(outcome.report, outcome.document)
    except OSError as error:
        print(f"warning: the summary of the step cannot be written: {error.filename}: {error.strerror}", file=sys.stderr)


def complete_line() -> NoReturn:
    """Answer the shell after Tab, without a word of an error in the line that somebody is typing; the shell then offers files."""
    with suppress(Exception, KeyboardInterrupt):
        app(standalone_mode=False, prog_name="rmtrain")
    sys.exit(1)


def main() -> None:
    """Run the command line."""
    if os.environ.get("_RMTRAIN_COMPLETE"):
        complete_line()
    raise_on_signal()
    protect_streams()
    report_lost_pages()
    try:
        try:
            check_variables()
            if not is_one_of_several():
                stop_commands()
            code = app(standalone_mode=False, prog_name="rmtrain")
        finally:
            sys.stdout.flush()  # here, where an error can still be reported
        exit_process(code)
    except SystemExit as exiting:
        exit_process(exiting.code)
    except BaseException as error:
        exit_with_error(error)
