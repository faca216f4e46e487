"""The command line: parses, hands over to one function of `commands/`, prints, and turns errors into exit codes.

Heavy modules are imported inside the verbs: `--help` and a wrong recipe need neither torch nor transformers.
"""

import errno
import json
import logging
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console

from rmtrain.errors import GateMissed, RecipeError, RmtrainError, TryAgain
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Gate, Recipe

if TYPE_CHECKING:
    from rmtrain.commands.outcome import Outcome

app = typer.Typer(
    help="Train, inspect and evaluate reward models from one YAML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
OVERRIDE = re.compile(r"^[A-Za-z_]\w*(\.[\w-]+)*=", re.ASCII)

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="RECIPE [a.b=v ...]", help="A recipe, then overrides of its keys.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="The recipe, when it is not the first argument.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Evaluate on this file, directory or Hub dataset.")]


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

    finish(run(loaded, console, export=export, plot=plot), as_json)


@app.command()
def inspect(
    arguments: Arguments = None,
    recipe: RecipeOption = None,
    row: Annotated[str, typer.Option(help="Number of a kept row, or its id.")] = "0",
    split: Annotated[str, typer.Option(help="train or eval")] = "train",
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one comparison as the model sees it: tokens, shared prefix, and where the reward is read."""
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    from rmtrain.commands.inspect import inspect as run

    shown = Console(stderr=as_json)
    boundaries = shown.no_color or shown.color_system is None
    finish(run(loaded, console, row=row, split=split, show_ids=ids, boundaries=boundaries), as_json)


@app.command()
def train(arguments: Arguments = None, recipe: RecipeOption = None, as_json: JsonOption = False) -> None:
    """Train, evaluate and export a reward model."""
    loaded = read_recipe(arguments, recipe)
    console = start_console()
    from rmtrain.commands.train import train as run

    outcome = run(loaded, console)
    finish(outcome, as_json)
    fail_on_missed(outcome.document["gates"])


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
    fail_under: Annotated[list[str] | None, typer.Option(help="A gate such as accuracy=0.7; exit code 6 when missed.")] = None,
    allow_template_change: Annotated[
        bool, typer.Option(help="Score with another chat template than the model was trained on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a reward model on pairs: accuracy with interval, ties, loss, baselines, per source."""
    target, overrides = split_arguments(arguments)
    gates = parse_gates(fail_under or [])
    console = start_console()
    from rmtrain.commands.eval import eval_command as run

    outcome = run(
        console,
        target=target,
        recipe_path=recipe,
        overrides=overrides,
        data=data,
        output=output,
        scores=scores,
        gates=gates,
        allow_template_change=allow_template_change,
    )
    finish(outcome, as_json)
    fail_on_missed(outcome.document["gates"])


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


def parse_gates(values: list[str]) -> dict[Gate, float]:
    """`accuracy=0.7` -> `{"accuracy": 0.7}`, checked by name and value like `evaluation.gates`."""
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


def start_console() -> Console:
    """The console of everything that is not a result: stderr. Libraries keep quiet, notices of ours become lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    console = Console(stderr=True)

    class Notices(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {record.getMessage()}", highlight=False)

    logger = logging.getLogger("rmtrain")
    logger.handlers = [Notices()]
    logger.setLevel(logging.INFO)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return console


def finish(outcome: "Outcome", as_json: bool) -> None:
    """Print the result: for people on stdout, or there for machines and for people on stderr. Of several processes one prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console(stderr=as_json)
    console.print(outcome.report)
    if outcome.commands:
        console.print()
        console.print(outcome.commands, soft_wrap=True)
    if as_json:
        print(json.dumps(outcome.document, ensure_ascii=False, allow_nan=False))


def fail_on_missed(gates: dict[str, dict[str, Any]]) -> None:
    """Raise GateMissed with a line per gate that was missed, saying by how much."""
    missed = [_missed(name, **gate) for name, gate in gates.items() if not gate["passed"]]
    if missed:
        raise GateMissed(*missed)


def _missed(name: str, required: float, value: float | None, passed: bool) -> str:
    if value is None:
        return f"gate {name}: required {required}, but there was nothing to compute it from"
    return f"gate {name}: required {required}, got {value:.4f}, missed by {abs(value - required):.4f}"


def main() -> None:
    """Run the command line. The one place where an error becomes an exit code."""
    try:
        app()
    except RmtrainError as error:
        end(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        end(TryAgain(f"the disk is full: {error.filename or error.strerror}; free some space and run the same command again"))


def end(error: RmtrainError) -> None:
    """Say what is wrong, a line per problem, and exit with its code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(error.exit_code)
