"""`rmtrain runs`: a table of runs. Nothing here loads torch; `runs_compare` does what needs it."""

from rmtrain.command_line.options import CommandResult, RunsOptions
from rmtrain.engine.run_set import RunSet
from rmtrain.files import expanded
from rmtrain.report.runs_view import runs_document, runs_report


def read_runs(options: RunsOptions) -> RunSet:
    """Read the runs that the options name, in their order; raises RecipeError where there are none."""
    return RunSet.read([expanded(place) for place in options.places], options.sort)


def list_runs(options: RunsOptions) -> CommandResult:
    """Return the runs as tables and as a document."""
    runs = read_runs(options)
    return CommandResult(runs_report(runs), runs_document(runs))
