"""All that is reported of a benchmark: its official numbers, the same with ties as wrong and by half, ties, and intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.benchmarks.base import RULES, Benchmark, Rule, Scores, Units
from rmtrain.evaluation.benchmarks.rewardbench import SECTION_OF
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval

MAX_NAMED = 10
MAX_TIE_SHARE = 0.01
NOTES = {
    "score": "by the benchmark's own rule, ties included",
    "strict": "a tie counts as wrong",
    "half_credit": "a tie counts half; of several best responses each counts one over their number",
    "low, high": "Wilson 95 % interval; weighted rows count as fewer (Kish's effective number), and credit between 0 and 1 as if it were "
    "all or nothing, which makes it wider",
    "longer_wins": "the score, ties by half, of preferring the response with more tokens",
}


def measure(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Every number of a benchmark from scored rows, JSON-ready; `NOTES` says how each is counted.

    Returns:
        `score` with `low`, `high`, `strict`, `half_credit`, `ties` among `decisions` and `n` rows; the same for each of `sections` and
        `subsets`, which name their `section`; `others` that its authors report; `longer_wins`; `missing` sections and `warnings`.

    Raises:
        DataError: nothing to measure, or rows of which the benchmark knows nothing.
        NumericError: a reward is not finite.
    """
    _check(benchmark, scored)
    try:
        units = benchmark.units(scored)
        by_rule = {rule: benchmark.scores(scored, rule) for rule in RULES}
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{benchmark.name}: the rows are not its own: {type(error).__name__}: {error}") from error
    found = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows": len(scored),
        **_numbers({rule: scores.total for rule, scores in by_rule.items()}, units, np.ones(len(units.ids), np.bool_)),
        "sections": _groups({rule: scores.sections for rule, scores in by_rule.items()}, units, units.sections),
        "subsets": _with_sections(
            _groups({rule: scores.subsets for rule, scores in by_rule.items()}, units, units.subsets), units
        ),
        "others": by_rule["official"].others,
        "longer_wins": _longer_wins(benchmark, scored),
    }
    missing = [section for section in benchmark.sections if section not in found["sections"]]
    return {**found, "missing": missing, "warnings": _warnings(found, missing), "notes": NOTES}


def measure_subsets(benchmark: Benchmark, scores: Scores) -> dict[str, Any]:
    """What `measure` gives, from accuracies of RewardBench's subsets alone: no ties, no intervals."""
    missing = [section for section in benchmark.sections if section not in scores.sections]
    found = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows": None,
        **_bare(scores.total),
        "sections": {name: _bare(value) for name, value in scores.sections.items()},
        "subsets": {name: _bare(value) | {"section": SECTION_OF[name]} for name, value in scores.subsets.items()},
        "others": scores.others,
        "longer_wins": None,
    }
    return {**found, "missing": missing, "warnings": _absent(missing), "notes": NOTES}


def _bare(value: float | None) -> dict[str, Any]:
    return {"score": value} | dict.fromkeys(("low", "high", "strict", "half_credit", "ties", "decisions", "n"))


def _groups(values: Mapping[Rule, Mapping[str, float]], units: Units, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    groups = np.array(names)
    return {
        name: _numbers({rule: values[rule].get(name) for rule in RULES}, units, groups == name) for name in values["official"]
    }


def _with_sections(subsets: dict[str, dict[str, Any]], units: Units) -> dict[str, dict[str, Any]]:
    section_of = dict(zip(units.subsets, units.sections, strict=True))
    return {name: numbers | {"section": section_of.get(name)} for name, numbers in subsets.items()}


def _numbers(values: Mapping[Rule, float | None], units: Units, members: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = _interval(values["official"], units.weights_U[members])
    return {
        "score": values["official"],
        "low": low,
        "high": high,
        "strict": values["strict"],
        "half_credit": values["half_credit"],
        "ties": int(units.ties_U[members].sum()),
        "decisions": int(units.decisions_U[members].sum()),
        "n": int(units.rows_U[members].sum()),
    }


def _interval(value: float | None, weights: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if value is None or not len(weights):
        return None, None
    effective = weights.sum() ** 2 / (weights**2).sum()
    return wilson_interval(min(value, 1.0), max(1, round(float(effective))))


def _longer_wins(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> float | None:
    if not all(len(row.lengths) == len(row.rewards) for row in scored):
        return None
    by_length = [replace(row, rewards=tuple(map(float, row.lengths))) for row in scored]
    return benchmark.scores(by_length, "half_credit").total


def _check(benchmark: Benchmark, scored: Sequence[ScoredComparison]) -> None:
    if not scored:
        raise DataError(f"{benchmark.name}: expected at least one scored row, got none")
    bad = [row.id for row in scored if not all(map(math.isfinite, row.rewards))]
    if bad:
        named = ", ".join(bad[:MAX_NAMED]) + (", ..." if len(bad) > MAX_NAMED else "")
        raise NumericError(f"{benchmark.name}: {len(bad):,} of {len(scored):,} rows have a reward that is not finite: {named}")


def _absent(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    return [f"no rows of {', '.join(missing)}: the score is the mean of what is there, and compares with no published one"]


def _warnings(found: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    warnings = _absent(missing)
    ties, decisions = found["ties"], found["decisions"]
    if ties > MAX_TIE_SHARE * decisions:
        warnings.append(
            f"{ties:,} of {decisions:,} decisions are ties ({100 * ties / decisions:.1f} %): rewards may be computed in too low a "
            "precision"
        )
    longer, low = found["longer_wins"], found["low"]
    if longer is not None and low is not None and longer >= low:
        warnings.append(
            f"not better than length: score {found['score']:.4f} [{low:.4f}, {found['high']:.4f}], and preferring the longer response "
            f"gives {longer:.4f}"
        )
    return warnings
