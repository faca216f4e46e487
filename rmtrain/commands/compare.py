"""`rmtrain eval --compare`: whether one of two models is better on the same rows."""

from pathlib import Path

from rmtrain.commands.outcome import Outcome
from rmtrain.errors import RecipeError
from rmtrain.evaluation.benchmarks.catalogue import named
from rmtrain.evaluation.compare import compare
from rmtrain.report.benchmarks import difference_report


def compare_command(one: Path, other: Path, benchmarks: str | None, allow_different: bool) -> Outcome:
    """The difference of two files of scores; see `evaluation.compare.compare`.

    Args:
        one, other: the files.
        benchmarks: name of the one they are of; None: as the settings beside them say.
        allow_different: compare whatever settings differ.

    Raises:
        RecipeError: a file that is not there, or more than one benchmark.
        DataError: settings or rows differ.
    """
    missing = [path for path in (one, other) if not path.exists()]
    if missing:
        raise RecipeError(*(f"--compare: {path} is not there" for path in missing))
    chosen = named(benchmarks) if benchmarks else []
    if len(chosen) > 1:
        raise RecipeError("--compare is of one benchmark; name one in --benchmark")
    compared = compare(one, other, chosen[0] if chosen else None, allow_different)
    return Outcome(difference_report(compared), {**compared, "gates": {}})
