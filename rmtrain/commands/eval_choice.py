"""`rmtrain eval`, whatever it is asked for: pairs, benchmarks, scores alone, or a comparison of scores."""

from rich.console import Console

from rmtrain.commands.benchmarks import benchmark_scores, eval_benchmarks
from rmtrain.commands.evaluate import compare_command, eval_command
from rmtrain.commands.options import EvalOptions, checked_precision, parse_gates
from rmtrain.commands.result import CommandResult
from rmtrain.errors import RecipeError


def run(request: EvalOptions, console: Console) -> CommandResult:
    """Do what is asked; errors are those of the functions that do it."""
    if request.compare is not None:
        return compare_command(*request.compare, request.benchmark, request.allow_different_settings)
    if request.kind == "benchmarks":
        return eval_benchmarks(
            console,
            target=request.target,
            recipe_path=request.recipe,
            benchmarks=request.benchmark or "",
            data_dir=request.data_dir,
            output=request.output,
            gates=request.fail_under,
            max_length=request.max_length,
            precision=checked_precision(request.precision),
            allow_template_change=request.allow_template_change,
        )
    if request.scores is not None:
        outcome = benchmark_scores(request.scores, request.benchmark, request.fail_under)
        if outcome is not None and request.report is not None:
            raise RecipeError(f"--report: {request.scores} has scores of a benchmark; a report is of pairs")
        if outcome is not None:
            return outcome
    return eval_command(
        console,
        target=request.target,
        recipe_path=request.recipe,
        overrides=request.overrides,
        data=request.data,
        output=request.output,
        scores=request.scores,
        gates=parse_gates(request.fail_under),
        allow_template_change=request.allow_template_change,
        report=request.report,
    )
