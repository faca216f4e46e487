"""The numbers next to every score: baselines, warnings, refusals."""

import math

import pytest

from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.benchmarks.rmb import RMB
from tests.evaluation.benchmarks.rows import best_of, many, pair, with_lengths

BON = "BoN_set/Helpfulness/Code/Documentation"


def test_trap_15_score_of_length_is_flagged() -> None:
    """A score that preferring the longer response also gives comes with a warning."""
    rows = many("Natural", 30, 10)
    longer = [with_lengths(row, (20, 10) if row.rewards[0] > row.rewards[1] else (10, 20)) for row in rows]
    flagged = measure(LLMBAR, longer)
    assert flagged["longer_wins"] == flagged["score"] == 0.75
    assert any("length" in line for line in flagged["warnings"])
    balanced = [with_lengths(row, (20, 10) if number % 2 else (10, 20)) for number, row in enumerate(rows)]
    assert not any("length" in line for line in measure(LLMBAR, balanced)["warnings"])
    assert measure(LLMBAR, rows)["longer_wins"] is None, "without lengths there is no baseline"


def test_score_of_shortness_is_flagged() -> None:
    """Preferring the shorter response is a baseline as well: in best-of-n it is not one minus the longer."""
    rows = [with_lengths(row, (10, 20)) for row in many("Natural", 30, 10)]
    flagged = measure(LLMBAR, rows)
    assert (flagged["longer_wins"], flagged["shorter_wins"]) == (0.0, 1.0)
    assert any("shorter" in line and "1.0000" in line for line in flagged["warnings"])
    best = measure(RMB, [with_lengths(best_of(BON, 2.0, 1.0, 0.0), lengths) for lengths in ((9, 5, 7), (5, 9, 7), (7, 9, 5))])
    assert (best["longer_wins"], best["shorter_wins"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_trap_06_ties_are_counted_and_flagged() -> None:
    numbers = measure(LLMBAR, many("Natural", 0, 0, 20))
    assert (numbers["ties"], numbers["score"], numbers["strict"], numbers["half_credit"]) == (20, 0.5, 0.0, 0.5)
    assert any("20 of 20" in line for line in numbers["warnings"])
    assert not any("ties" in line for line in measure(LLMBAR, many("Natural", 100, 100, 1))["warnings"])


def test_non_finite_reward_is_named() -> None:
    with pytest.raises(NumericError, match=r"^llmbar: 1 of 2 .*: 7;"):
        measure(LLMBAR, [pair("Natural", 1.0, 0.0), pair("Natural", math.nan, 0.0, "7")])
    with pytest.raises(DataError, match=r"^llmbar: "):
        measure(LLMBAR, [])


def test_rows_of_another_benchmark_are_refused() -> None:
    with pytest.raises(DataError, match=r"^rewardbench: .*Natural"):
        measure(REWARDBENCH, [pair("Natural", 1.0, 0.0)])
    with pytest.raises(DataError, match=r"^rm_bench: "):
        measure(RM_BENCH, [best_of("chat", 1.0, 0.0, 0.5)])
