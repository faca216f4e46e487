"""The benchmarks by name, and every number that is reported of one: official, with ties as wrong and as half, tie counts, intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rmtrain.data.checks.benchmark_prompts import PromptSource, prompt_file
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.benchmarks.base import RULES, Benchmark, Rule, Scores, Units
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.m_rewardbench import M_REWARDBENCH
from rmtrain.evaluation.benchmarks.ppe import PPE_CORRECTNESS, PPE_PREFERENCE
from rmtrain.evaluation.benchmarks.published import prompt_source
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH, REWARDBENCH2
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.benchmarks.rmb import RMB
from rmtrain.evaluation.metrics import MAX_TIE_SHARE, check_rewards
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.files import expanded
from rmtrain.intervals import wilson_interval
from rmtrain.recipe.schema import UntrainedPrompts

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        REWARDBENCH,
        REWARDBENCH2,
        RM_BENCH,
        JUDGEBENCH,
        LLMBAR,
        RMB,
        PPE_PREFERENCE,
        PPE_CORRECTNESS,
        M_REWARDBENCH,
    )
}
NOTES = {
    "score": "by the benchmark's own rule, ties included",
    "strict": "a tie counts as wrong",
    "half_credit": "a tie counts half; of several best responses each counts one over their number",
    "low, high": "Wilson 95 % interval; the effective number of rows follows from how much prompts differ within a subset, since rows of "
    "one prompt are not independent",
    "longer_wins, shorter_wins": "the score, ties counting half, of preferring the response with more or with fewer tokens",
}


def named(names: str) -> list[Benchmark]:
    """Return the benchmarks of a comma-separated list, each once, in its order; raises RecipeError for an unknown name."""
    wanted = list(dict.fromkeys(name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown or not wanted:
        raise RecipeError(f"--benchmark {', '.join(unknown)[:80] or names}: expected one or more of {','.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in wanted]


def prompt_sources(benchmarks: Sequence[UntrainedPrompts]) -> list[PromptSource]:
    """Return the benchmarks of `data.benchmarks`; raises DataError where the files of one are missing."""
    paths = [None if each.path is None else expanded(each.path) for each in benchmarks]
    return [
        prompt_file(str(path)) if each.name is None else prompt_source(BENCHMARKS[each.name], path)
        for each, path in zip(benchmarks, paths, strict=True)
    ]


def only(names: str, option: str) -> Benchmark:
    """Return the one benchmark of a list; raises RecipeError for several or for an unknown name."""
    chosen = named(names)
    if len(chosen) > 1:
        raise RecipeError(f"{option}: expected scores of one benchmark, got {len(chosen)}; name one in --benchmark")
    return chosen[0]


def measure(benchmark: Benchmark, scored: Sequence[ScoredComparison] | Scores) -> dict[str, Any]:
    """Compute every number of a benchmark, JSON-ready; `NOTES` defines each. From `Scores` alone there are no ties and no intervals.

    Returns:
        `score` with `low`, `high`, `strict`, `half_credit`, `ties` among `decisions` and `n` rows; the same for each of `sections` and
        `subsets`, which name their `section`; `others` that its authors report; which numbers are `ours`; `longer_wins` and
        `shorter_wins`; `missing` sections and `warnings`.

    Raises:
        DataError: nothing to measure, or rows of another benchmark. NumericError: a reward is not finite.
    """
    units = rows = None
    by_length: dict[str, float | None] = {"longer": None, "shorter": None}
    if isinstance(scored, Scores):
        by_rule: dict[Rule, Scores] = {"official": scored}
    else:
        check_rewards(scored, f"{benchmark.name}: ")
        rows = len(scored)
        try:
            units = benchmark.units(scored)
            by_rule = {rule: benchmark.scores(scored, rule) for rule in RULES}
        except (KeyError, ValueError, IndexError) as error:  # from looking up a subset, or from the shape of the rewards
            raise DataError(f"{benchmark.name}: these are not its rows: {type(error).__name__}: {error}") from error
        if not len(units.rows_U):  # such as one prompt of a pair
            raise DataError(f"{benchmark.name}: none of {rows} rows counts alone; pass all rows of the benchmark")
        if all(len(row.lengths) == len(row.rewards) for row in scored):
            for name, sign in (("longer", 1.0), ("shorter", -1.0)):
                preferring = [replace(row, rewards=tuple(sign * length for length in row.lengths)) for row in scored]
                by_length[name] = benchmark.scores(preferring, "half_credit").total

    official = by_rule["official"]
    total = _numbers({rule: scores.total for rule, scores in by_rule.items()}, units)
    sections = {
        name: _numbers({rule: scores.sections.get(name) for rule, scores in by_rule.items()}, units, section=name)
        for name in official.sections
    }
    subsets = {
        name: _numbers({rule: scores.subsets.get(name) for rule, scores in by_rule.items()}, units, subset=name)
        | {"section": benchmark.section(name)}
        for name in official.subsets
    }
    missing = [section for section in benchmark.sections if section not in sections]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "ours": benchmark.ours or None,
        "rows": rows,
        **total,
        "sections": sections,
        "subsets": subsets,
        "others": official.others,
        **{f"{name}_wins": baseline for name, baseline in by_length.items()},
        "missing": missing,
        "warnings": _warnings(total, missing, by_length),
        "notes": NOTES,
    }


def _numbers(
    values: Mapping[Rule, float | None], units: Units | None, section: str | None = None, subset: str | None = None
) -> dict[str, Any]:
    """Return the numbers of a section, of a subset or of everything, given its score by each rule."""
    score = values["official"]
    numbers = {
        "score": score,
        "low": None,
        "high": None,
        "strict": values.get("strict"),
        "half_credit": values.get("half_credit"),
    }
    if units is None:
        return numbers | dict.fromkeys(("ties", "decisions", "n"))
    pairs = zip(units.sections, units.subsets, strict=True)
    members = np.array([section in (None, one) and subset in (None, other) for one, other in pairs])
    if score is not None and members.any():
        effective = units.sample(members).effective_size(units.credits["official"][members])
        numbers["low"], numbers["high"] = wilson_interval(min(score, 1.0), effective)  # a score of RewardBench 2 can reach 1.01
    counts = {"ties": units.ties_U, "decisions": units.decisions_U, "n": units.rows_U}
    return numbers | {name: int(values_U[members].sum()) for name, values_U in counts.items()}


def _warnings(total: Mapping[str, Any], missing: Sequence[str], by_length: Mapping[str, float | None]) -> list[str]:
    warnings = []
    if missing:
        warnings.append(
            f"no rows of {', '.join(missing)}: the score covers only the sections present and is not comparable with published results"
        )
    ties, decisions, low = total["ties"], total["decisions"], total["low"]
    if ties is not None and ties > MAX_TIE_SHARE * decisions:
        share = f"{100 * ties / decisions:.1f} %"
        warnings.append(f"{ties:,} of {decisions:,} decisions are ties ({share}): rewards may be computed in too low a precision")
    rule, baseline = max(by_length.items(), key=lambda item: -1.0 if item[1] is None else item[1])
    if baseline is not None and low is not None and baseline >= low:
        warnings.append(
            f"not better than length: score {total['score']:.4f} [{low:.4f}, {total['high']:.4f}], while preferring the {rule} "
            f"response alone gives {baseline:.4f}"
        )
    return warnings
