"""What stands beside every score: baselines, warnings, refusals."""

import math
from pathlib import Path

import pytest

from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.scores_file import write_scores
from tests.evaluation.benchmarks.rows import best_of, many, pair, with_lengths


def test_trap_15_a_score_that_length_alone_gives_is_flagged() -> None:
    rows = many("Natural", 30, 10)
    longer = [with_lengths(row, (20, 10) if row.rewards[0] > row.rewards[1] else (10, 20)) for row in rows]
    flagged = measure(LLMBAR, longer)
    assert flagged["longer_wins"] == flagged["score"] == 0.75
    assert any("not better than length" in line for line in flagged["warnings"])
    balanced = [with_lengths(row, (20, 10) if number % 2 else (10, 20)) for number, row in enumerate(rows)]
    assert not any("length" in line for line in measure(LLMBAR, balanced)["warnings"])
    assert measure(LLMBAR, rows)["longer_wins"] is None, "without lengths there is no baseline"


def test_trap_6_ties_are_counted_and_flagged() -> None:
    numbers = measure(LLMBAR, many("Natural", 0, 0, 20))
    assert (numbers["ties"], numbers["score"], numbers["strict"], numbers["half_credit"]) == (20, 0.0, 0.0, 0.5)
    assert any("20 of 20 decisions are ties (100.0 %)" in line for line in numbers["warnings"])
    assert not any("ties" in line for line in measure(LLMBAR, many("Natural", 100, 100, 1))["warnings"])


def test_a_reward_that_is_not_finite_is_named() -> None:
    with pytest.raises(NumericError, match="1 of 2 rows have a reward that is not finite: 7"):
        measure(LLMBAR, [pair("Natural", 1.0, 0.0), pair("Natural", math.nan, 0.0, "7")])
    with pytest.raises(DataError, match="got none"):
        measure(LLMBAR, [])


def test_rows_of_another_benchmark_are_refused() -> None:
    with pytest.raises(DataError, match="rewardbench: the rows are not its own"):
        measure(REWARDBENCH, [pair("Natural", 1.0, 0.0)])
    with pytest.raises(DataError, match="rm_bench: the rows are not its own"):
        measure(RM_BENCH, [best_of("chat", 1.0, 0.0, 0.5)])


def test_our_own_file_gives_the_same_numbers(tmp_path: Path) -> None:
    rows = [with_lengths(row, (5, 7)) for row in [*many("Natural", 3, 2, 1), *many("Manual", 1, 1)]]
    write_scores(tmp_path / "scores.jsonl", rows)
    assert read_output(LLMBAR, tmp_path / "scores.jsonl") == rows
    assert measure(LLMBAR, rows)["n"] == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[1, 2]", "expected a JSON object a line"),
        ('{"a": 1}', "expected scores; its keys are a"),
        ('{"a": [1]', "not JSON"),
        ('[{"a": 1}]', "has no format of scores of its own"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_output(LLMBAR, tmp_path / "x.json")
