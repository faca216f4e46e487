"""Two files of scores of the same rows, compared row by row."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.base import Benchmark, Scores
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS, measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.metrics import scored_edges, summarize
from rmtrain.evaluation.scores_file import ScoredComparison, differences, read_scores, read_settings, unknown_prompts
from rmtrain.intervals import Floats, Integers, Sample, paired_bootstrap

MAX_NAMED = 3
Rows = Sequence[ScoredComparison]


def compare(
    one: Path, other: Path, benchmark: Benchmark | None = None, allow_different: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Compare the second file with the first: scores of a benchmark by its score, scores of pairs by their strict accuracy.

    The files are of `benchmark`, or else of what their settings name. Raises DataError where rows, or, unless allowed, settings differ.

    Returns:
        JSON-ready: `metric`, `one` and `other` with `path` and `value`, `difference` with `low`, `high` and `p`, the number of `units`
        (rows that count) and how many are `better`, `worse` and `equal` in the second, `differing` settings, `warnings`.
    """
    settings = [read_settings(path) for path in (one, other)]
    differing: list[str] = []
    warnings: list[str] = []
    if settings[0] is not None and settings[1] is not None:
        differing = differences(settings[0], settings[1])
    elif settings[0] is not None or settings[1] is not None:
        differing = [f"no settings file next to {one if settings[0] is None else other}"]
    else:
        warnings = ["neither file has a settings file next to it, so they may have been scored differently"]
    if differing and not allow_different:
        raise DataError(
            f"cannot compare {one} and {other}: settings differ: {'; '.join(differing)}; score both with the same settings, or pass "
            "--allow-different-settings"
        )

    benchmark = benchmark or BENCHMARKS.get(str((settings[0] or {}).get("benchmark")))
    files: list[Rows] = []
    for path in (one, other):
        output = read_scores(path) if benchmark is None else read_output(benchmark, path)
        if isinstance(output, Scores):
            raise DataError(f"{path}: accuracies of subsets cannot be compared row by row; pass a file of scores")
        files.append(output)
    rows = _aligned((one, other), files)
    if benchmark is None:
        metric, totals = "accuracy", [summarize(of_file)["accuracy"] for of_file in rows]
    else:
        metric, totals = f"{benchmark.name} score", [measure(benchmark, of_file)["score"] for of_file in rows]
    values, sample, row_U = paired_units(*rows, benchmark)
    difference = paired_bootstrap(values[0], values[1], sample, seed)
    change = np.sign(np.bincount(row_U, values[1] - values[0])[np.unique(row_U)])
    return {
        "metric": metric,
        "one": {"path": str(one), "value": totals[0]},
        "other": {"path": str(other), "value": totals[1]},
        "difference": totals[1] - totals[0],
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "seed": seed,
        "units": len(change),
        "better": int(np.sum(change > 0)),
        "worse": int(np.sum(change < 0)),
        "equal": int(np.sum(change == 0)),
        "differing": differing,
        "warnings": warnings + [f"settings differ: {line}" for line in differing] + unknown_prompts(rows[0]),
    }


def paired_units(one: Rows, other: Rows, benchmark: Benchmark | None = None) -> tuple[list[Floats], Sample, Integers]:
    """Return what each unit of aligned rows earns under either model, how the units were drawn, and the number of the row of each.

    A unit is a preference that has a winner, or what a benchmark counts. Raises DataError where no preference has a winner.
    """
    if benchmark is not None:
        units = [benchmark.units(rows) for rows in (one, other)]
        return [of_rows.credits["official"] for of_rows in units], units[0].sample(), np.arange(len(units[0].weights_U))
    edges = [scored_edges(rows) for rows in (one, other)]
    if not len(edges[0]):
        raise DataError("every preference is a tie (target probability 0.5): there is no accuracy to compare")
    return [np.asarray(of_rows.margin_E > 0, np.float64) for of_rows in edges], edges[0].sample(), edges[0].comparison_E


def _aligned(paths: tuple[Path, Path], rows: Sequence[Rows]) -> tuple[Rows, Rows]:
    """Return the rows of both files in the order of the first, which has the prompts that either names.

    Raises DataError where they are not the same rows.
    """
    one, other = ({(row.source, row.id): row for row in of_file} for of_file in rows)
    for present, compared, path in ((one, other, paths[1]), (other, one, paths[0])):
        lacking = [f"{source}/{row_id}" for source, row_id in present if (source, row_id) not in compared]
        if lacking:
            named = ", ".join(lacking[:MAX_NAMED])
            raise DataError(f"{path}: lacks {len(lacking):,} rows of the other file: {named}; score both on the same rows")
    for key, row in one.items():
        if row.preferences != other[key].preferences or len(row.rewards) != len(other[key].rewards):
            raise DataError(f"{paths[1]}: row {row.id!r} of {row.source!r} has other responses or preferences than in {paths[0]}")
    return [replace(row, prompt=row.prompt or other[key].prompt) for key, row in one.items()], [other[key] for key in one]
