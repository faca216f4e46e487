"""Two files of scores of the same rows, compared row by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.base import Benchmark, Scores
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.benchmarks.registry import BENCHMARKS
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, differences, read_scores, read_settings
from rmtrain.intervals import paired_bootstrap

Floats = NDArray[np.float64]
MAX_NAMED = 3


def compare(
    one: Path, other: Path, benchmark: Benchmark | None = None, allow_different: bool = False, seed: int = 0
) -> dict[str, Any]:
    """How the second file differs from the first: of a benchmark by its score, of pairs by their strict accuracy.

    Args:
        one, other: files of scores; their settings are read where they lie beside them.
        benchmark: whose; None: as the settings say.
        allow_different: compare whatever settings differ, and say which.
        seed: of the bootstrap.

    Returns:
        JSON-ready: `metric`, `one` and `other` with `path` and `value`, `difference` with `low`, `high` and `p`, the number of `units`
        and how many are `better`, `worse` and `equal` in the second, `differing` settings, `warnings`.

    Raises:
        DataError: settings or rows differ; one line says what.
    """
    settings = [read_settings(path) for path in (one, other)]
    differing, warnings = _settings_problems((one, other), settings)
    if differing and not allow_different:
        raise DataError(
            f"{one} and {other} do not compare, their settings differ: {'; '.join(differing)}; score both with the same, or give "
            "--allow-different-settings"
        )
    benchmark = benchmark or BENCHMARKS.get(str((settings[0] or {}).get("benchmark")))
    rows = [_read(path, benchmark) for path in (one, other)]
    aligned = _aligned((one, other), rows)
    values, numbers, strata, weights = _pair_values(*aligned) if benchmark is None else _benchmark_values(benchmark, *aligned)
    difference = paired_bootstrap(values[0], values[1], weights, strata, seed)
    change = np.sign(values[1] - values[0])
    return {
        "metric": "accuracy" if benchmark is None else f"{benchmark.name} score",
        "one": {"path": str(one), "value": numbers[0]},
        "other": {"path": str(other), "value": numbers[1]},
        "difference": numbers[1] - numbers[0],
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "seed": seed,
        "units": len(weights),
        "better": int(np.sum(change > 0)),
        "worse": int(np.sum(change < 0)),
        "equal": int(np.sum(change == 0)),
        "differing": differing,
        "warnings": warnings + [f"settings differ: {line}" for line in differing],
    }


def _settings_problems(paths: tuple[Path, Path], settings: Sequence[dict[str, Any] | None]) -> tuple[list[str], list[str]]:
    one, other = settings
    if one is None and other is None:
        return [], ["neither file has settings beside it: whether both were scored alike is not known"]
    if one is None or other is None:
        without = paths[0] if one is None else paths[1]
        return [f"{without} has none beside it"], []
    return differences(one, other), []


def _read(path: Path, benchmark: Benchmark | None) -> list[ScoredComparison]:
    if benchmark is None:
        return read_scores(path)
    found = read_output(benchmark, path)
    if isinstance(found, Scores):
        raise DataError(f"{path}: accuracies of subsets cannot be compared row by row; give a file of scores")
    return found


def _aligned(
    paths: tuple[Path, Path], rows: Sequence[Sequence[ScoredComparison]]
) -> tuple[list[ScoredComparison], list[ScoredComparison]]:
    """The rows of both in the order of the first; raises DataError where they are not the same rows."""
    one, other = ({(row.source, row.id): row for row in of_file} for of_file in rows)
    for found, missing, path in ((one, other, paths[1]), (other, one, paths[0])):
        lacking = [key for key in found if key not in missing]
        if lacking:
            named = ", ".join(f"{source}/{row_id}" for source, row_id in lacking[:MAX_NAMED])
            raise DataError(f"{path}: lacks {len(lacking):,} of the rows of the other file: {named}; score both on the same rows")
    for key, row in one.items():
        if row.preferences != other[key].preferences or len(row.rewards) != len(other[key].rewards):
            raise DataError(f"{paths[1]}: row {row.id!r} of {row.source!r} has other responses or preferences than in {paths[0]}")
    return list(one.values()), [other[key] for key in one]


def _pair_values(
    one: list[ScoredComparison], other: list[ScoredComparison]
) -> tuple[list[Floats], list[float], list[str], Floats]:
    """Of each comparison the share of its decided preferences that is right; it weighs as many as it has."""
    numbers = [summarize(rows)["accuracy"] for rows in (one, other)]
    kept = [index for index, row in enumerate(one) if any(edge.probability > 0.5 for edge in row.preferences)]
    if not kept:
        raise DataError("every preference is a tie (target probability 0.5): there is no accuracy to compare")
    right = [np.array([_right(rows[index]) for index in kept]) for rows in (one, other)]
    counts = np.array([sum(edge.probability > 0.5 for edge in one[index].preferences) for index in kept], np.float64)
    return [values / counts for values in right], numbers, [one[index].source for index in kept], counts / counts.sum()


def _right(row: ScoredComparison) -> float:
    return sum(row.rewards[edge.winner] > row.rewards[edge.loser] for edge in row.preferences if edge.probability > 0.5)


def _benchmark_values(
    benchmark: Benchmark, one: list[ScoredComparison], other: list[ScoredComparison]
) -> tuple[list[Floats], list[float], list[str], Floats]:
    numbers = [measure(benchmark, rows)["score"] for rows in (one, other)]
    units = [benchmark.units(rows) for rows in (one, other)]
    return [of_file.credits["official"] for of_file in units], numbers, list(units[0].subsets), units[0].weights_U
