"""Everything that is reported of a benchmark: official numbers, the same with ties as wrong and as half, tie counts, and intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.benchmarks.base import RULES, Benchmark, Rule, Scores, Units
from rmtrain.evaluation.benchmarks.rewardbench import SECTION_OF
from rmtrain.evaluation.metrics import MAX_TIE_SHARE, shorten
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval

NOTES = {
    "score": "by the benchmark's own rule, ties included",
    "strict": "a tie counts as wrong",
    "half_credit": "a tie counts half; of several best responses each counts one over their number",
    "low, high": "Wilson 95 % interval; weighted rows count as fewer (Kish's effective number), and credit between 0 and 1 as if it were "
    "all or nothing, which makes it wider",
    "longer_wins": "the score, ties counting half, of preferring the response with more tokens",
}


def measure(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Compute every number of a benchmark from scored rows, JSON-ready; `NOTES` defines each.

    Returns:
        `score` with `low`, `high`, `strict`, `half_credit`, `ties` among `decisions` and `n` rows; the same for each of `sections` and
        `subsets`, which name their `section`; `others` that its authors report; `longer_wins`; `missing` sections and `warnings`.

    Raises:
        DataError: nothing to measure, or rows of another benchmark.
        NumericError: a reward is not finite.
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

    everything = np.ones(len(units.subsets), np.bool_)
    section_of = dict(zip(units.subsets, units.sections, strict=True))
    official = scores["official"]
    sections = {
        name: _numbers({rule: scores[rule].sections.get(name) for rule in RULES}, units, np.array(units.sections) == name)
        for name in official.sections
    }
    subsets = {
        name: _numbers({rule: scores[rule].subsets.get(name) for rule in RULES}, units, np.array(units.subsets) == name)
        | {"section": section_of.get(name)}
        for name in official.subsets
    }
    numbers = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows": len(scored),
        **_numbers({rule: scores[rule].total for rule in RULES}, units, everything),
        "sections": sections,
        "subsets": subsets,
        "others": official.others,
        "longer_wins": _longer_wins(benchmark, scored),
    }
    missing = [section for section in benchmark.sections if section not in sections]
    return {**numbers, "missing": missing, "warnings": _missing_warning(missing) + _warnings(numbers), "notes": NOTES}


def measure_subsets(benchmark: Benchmark, scores: Scores) -> dict[str, Any]:
    """Return the numbers of `measure` from accuracies of RewardBench's subsets alone: without ties and intervals."""

    def bare(value: float | None) -> dict[str, Any]:
        return {"score": value} | dict.fromkeys(("low", "high", "strict", "half_credit", "ties", "decisions", "n"))

    missing = [section for section in benchmark.sections if section not in scores.sections]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows": None,
        **bare(scores.total),
        "sections": {name: bare(value) for name, value in scores.sections.items()},
        "subsets": {name: bare(value) | {"section": SECTION_OF[name]} for name, value in scores.subsets.items()},
        "others": scores.others,
        "longer_wins": None,
        "missing": missing,
        "warnings": _missing_warning(missing),
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


def _longer_wins(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> float | None:
    if not all(len(row.lengths) == len(row.rewards) for row in scored):
        return None
    by_length = [replace(row, rewards=tuple(map(float, row.lengths))) for row in scored]
    return benchmark.scores(by_length, "half_credit").total


def _missing_warning(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    return [
        f"no rows of {', '.join(missing)}: the score covers only the sections present and is not comparable with published results"
    ]


def _warnings(numbers: Mapping[str, Any]) -> list[str]:
    warnings = []
    ties, decisions = numbers["ties"], numbers["decisions"]
    if ties > MAX_TIE_SHARE * decisions:
        share = f"{100 * ties / decisions:.1f} %"
        warnings.append(f"{ties:,} of {decisions:,} decisions are ties ({share}): rewards may be computed in too low a precision")
    longer, low = numbers["longer_wins"], numbers["low"]
    if longer is not None and low is not None and longer >= low:
        warnings.append(
            f"not better than length: score {numbers['score']:.4f} [{low:.4f}, {numbers['high']:.4f}], while preferring the longer "
            f"response gives {longer:.4f}"
        )
    return warnings
