"""The benchmarks by name, and every number that is reported of one: official, with ties as wrong and as half, tie counts, intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError, NumericError, RecipeError
from rmtrain.evaluation.benchmarks.base import RULES, Benchmark, Rule, Scores, Units
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, REWARDBENCH2
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.benchmarks.rmb import RMB
from rmtrain.evaluation.metrics import MAX_TIE_SHARE, shorten
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (REWARDBENCH, REWARDBENCH2, RM_BENCH, JUDGEBENCH, LLMBAR, RMB)
}
NOTES = {
    "score": "by the benchmark's own rule, ties included",
    "strict": "a tie counts as wrong",
    "half_credit": "a tie counts half; of several best responses each counts one over their number",
    "low, high": "Wilson 95 % interval; weighted rows count as fewer (Kish's effective number), and credit between 0 and 1 as if it were "
    "all or nothing, which makes it wider",
    "longer_wins": "the score, ties counting half, of preferring the response with more tokens",
}


def named(names: str) -> list[Benchmark]:
    """Return the benchmarks of a comma-separated list, each once, in its order; raises RecipeError for an unknown name."""
    wanted = list(dict.fromkeys(name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown or not wanted:
        raise RecipeError(f"--benchmark {', '.join(unknown) or names}: expected one or more of {','.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in wanted]


def only(names: str, option: str) -> Benchmark:
    """Return the one benchmark of a list; raises RecipeError for several or for an unknown name."""
    chosen = named(names)
    if len(chosen) > 1:
        raise RecipeError(f"{option}: expected scores of one benchmark, got {len(chosen)}; name one in --benchmark")
    return chosen[0]


def measure(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Compute every number of a benchmark from scored rows, JSON-ready; `NOTES` defines each.

    Returns:
        `score` with `low`, `high`, `strict`, `half_credit`, `ties` among `decisions` and `n` rows; the same for each of `sections` and
        `subsets`, which name their `section`; `others` that its authors report; `longer_wins`; `missing` sections and `warnings`.

    Raises:
        DataError: nothing to measure, or rows of another benchmark. NumericError: a reward is not finite.
    """
    if not scored:
        raise DataError(f"{benchmark.name}: expected at least one scored row, got none")
    bad = [row.id for row in scored if not all(map(math.isfinite, row.rewards))]
    if bad:
        raise NumericError(
            f"{benchmark.name}: {len(bad):,} of {len(scored):,} rows have a reward that is not finite: {shorten(bad)}; "
            "score in float32"
        )
    try:
        units = benchmark.units(scored)
        scores = {rule: benchmark.scores(scored, rule) for rule in RULES}
    except (KeyError, ValueError, IndexError) as error:  # from looking up a subset, or from the shape of the rewards
        raise DataError(f"{benchmark.name}: these are not its rows: {type(error).__name__}: {error}") from error

    official, section_U, subset_U = scores["official"], np.array(units.sections), np.array(units.subsets)
    sections = {
        name: _numbers({rule: scores[rule].sections.get(name) for rule in RULES}, units, section_U == name)
        for name in official.sections
    }
    subsets = {
        name: _numbers({rule: scores[rule].subsets.get(name) for rule in RULES}, units, subset_U == name)
        for name in official.subsets
    }
    total = _numbers({rule: scores[rule].total for rule in RULES}, units, np.ones(len(subset_U), np.bool_))
    longer_wins = None
    if all(len(row.lengths) == len(row.rewards) for row in scored):
        by_length = [replace(row, rewards=tuple(map(float, row.lengths))) for row in scored]
        longer_wins = benchmark.scores(by_length, "half_credit").total
    return _document(benchmark, len(scored), total, sections, subsets, official.others, longer_wins)


def measure_subsets(benchmark: Benchmark, scores: Scores) -> dict[str, Any]:
    """Return the numbers of `measure` from accuracies of RewardBench's subsets alone: without ties and intervals."""

    def bare(value: float | None) -> dict[str, Any]:
        return {"score": value} | dict.fromkeys(("low", "high", "strict", "half_credit", "ties", "decisions", "n"))

    sections, subsets = ({name: bare(value) for name, value in part.items()} for part in (scores.sections, scores.subsets))
    return _document(benchmark, None, bare(scores.total), sections, subsets, scores.others, None)


def _document(
    benchmark: Benchmark,
    rows: int | None,
    total: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    subsets: dict[str, dict[str, Any]],
    others: dict[str, float],
    longer_wins: float | None,
) -> dict[str, Any]:
    missing = [section for section in benchmark.sections if section not in sections]
    warnings = []
    if missing:
        warnings.append(
            f"no rows of {', '.join(missing)}: the score covers only the sections present and is not comparable with published results"
        )
    ties, decisions = total["ties"], total["decisions"]
    if ties is not None and ties > MAX_TIE_SHARE * decisions:
        share = f"{100 * ties / decisions:.1f} %"
        warnings.append(f"{ties:,} of {decisions:,} decisions are ties ({share}): rewards may be computed in too low a precision")
    low = total["low"]
    if longer_wins is not None and low is not None and longer_wins >= low:
        warnings.append(
            f"not better than length: score {total['score']:.4f} [{low:.4f}, {total['high']:.4f}], while preferring the longer "
            f"response gives {longer_wins:.4f}"
        )
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows": rows,
        **total,
        "sections": sections,
        "subsets": {name: numbers | {"section": benchmark.section(name)} for name, numbers in subsets.items()},
        "others": others,
        "longer_wins": longer_wins,
        "missing": missing,
        "warnings": warnings,
        "notes": NOTES,
    }


def _numbers(values: Mapping[Rule, float | None], units: Units, members: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the numbers of some units, given their score by each rule."""
    score, weights = values["official"], units.weights_U[members]
    low = high = None
    if score is not None and len(weights):
        # Kish's effective number of rows; a score of RewardBench 2 can reach 1.01.
        effective = max(1, round(float(weights.sum() ** 2 / (weights**2).sum())))
        low, high = wilson_interval(min(score, 1.0), effective)
    return {
        "score": score,
        "low": low,
        "high": high,
        "strict": values["strict"],
        "half_credit": values["half_credit"],
        "ties": int(units.ties_U[members].sum()),
        "decisions": int(units.decisions_U[members].sum()),
        "n": int(units.rows_U[members].sum()),
    }
