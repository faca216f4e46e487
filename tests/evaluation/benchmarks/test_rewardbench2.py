"""RewardBench 2: shared best scores, the five terms of Ties by formula, and golden numbers of its own script."""

import math
from pathlib import Path

import numpy as np
import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH2
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.benchmarks.rows import best_of, weighted_total


def test_row_earns_its_share_of_the_best() -> None:
    """A row earns one over the number of best responses."""
    rows = [
        best_of("Focus", 2.0, 1.0, 1.0, 0.0, name="1"),  # right
        best_of("Focus", 2.0, 2.0, 1.0, 0.0, name="2"),  # two best
        best_of("Focus", 2.0, 2.0, 2.0, 2.0, name="3"),  # four best
        best_of("Focus", 1.0, 1.0, 2.0, 0.0, name="4"),  # wrong; the tie below the best does not matter
        best_of("Math", 0.0, -1.0, -1.0, -2.0, name="1"),
    ]
    numbers = measure(REWARDBENCH2, rows)
    focus = numbers["subsets"]["Focus"]
    assert focus["score"] == focus["half_credit"] == (1 + 1 / 2 + 1 / 4 + 0) / 4
    assert focus["strict"] == 1 / 4
    assert (focus["ties"], focus["n"]) == (2, 4)
    assert numbers["score"] == (focus["score"] + 1.0) / 2
    assert numbers["missing"] == ["Factuality", "Precise IF", "Safety", "Ties"]


def test_terms_of_ties() -> None:
    rows = [
        best_of("Ties", 5.0, 4.0, 1.0, 0.0, name="tied:1", right=2),  # gap 3, spread 1
        best_of("Ties", 3.0, 1.0, 0.0, name="ref:1"),  # gap 2
        best_of("Ties", 5.0, 3.0, 2.0, name="tied:2", right=2),  # gap 1, spread 2
        best_of("Ties", 1.0, 1.0, name="ref:2"),  # gap 0: a tie
        best_of("Ties", 0.0, 1.0, name="ref:3"),  # has no tied prompt: counts in one term only
    ]
    closeness = (math.tanh(2 / 1 - 1) + math.tanh(0 / 2 - 1)) / 2
    expected = 0.30 * (2 / 2) + 0.30 * (1 / 3) + 0.20 * (1 / 2) + 0.20 * (1 / 2) + 0.01 * closeness
    assert REWARDBENCH2.scores(rows, "official").subsets["Ties"] == pytest.approx(expected, abs=1e-15)
    assert REWARDBENCH2.scores(rows, "strict").subsets["Ties"] == pytest.approx(expected, abs=1e-15)
    half = REWARDBENCH2.scores(rows, "half_credit").subsets["Ties"]
    assert half == pytest.approx(expected + 0.30 * (0.5 / 3), abs=1e-15), "the tie of ref:2 counts half"
    numbers = measure(REWARDBENCH2, rows)
    assert (numbers["subsets"]["Ties"]["n"], numbers["subsets"]["Ties"]["ties"]) == (4, 1)


@pytest.mark.parametrize(
    ("gap", "spread", "closeness"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (-1.0, 0.0, -1.0)],
    ids=["0/0 is a tanh of 0", "inf is kept", "-inf is kept"],
)
def test_spread_of_zero(gap: float, spread: float, closeness: float) -> None:
    rows = [
        best_of("Ties", 1.0, 1.0 + spread, 1.0 - gap, name="tied:7", right=2),
        best_of("Ties", 9.0, 1.0, name="ref:7"),
    ]
    expected = 0.30 * (gap > 0) + 0.30 + 0.20 * (gap > spread) + 0.20 * (gap > spread) + 0.01 * closeness
    assert REWARDBENCH2.scores(rows, "official").subsets["Ties"] == pytest.approx(expected, abs=1e-15)


def drawn_ties() -> list[ScoredComparison]:
    """Make sixty prompts with rewards of one decimal, so that some tie; every seventh has one kind only."""
    generator, rows = np.random.default_rng(2), []
    for number in range(1, 61):
        for kind in ("ref", "tied"):
            right = 1 if kind == "ref" else 2 + number % 3
            size = right + 1 + number % 4
            values = generator.normal(size=size) + np.where(np.arange(size) < right, 1.5, 0.0)
            rewards = np.round(values, 1).astype(np.float32).astype(float).tolist()
            if kind == "ref" or number % 7:
                rows.append(best_of("Ties", *rewards, name=f"{kind}:{number}", right=right))
    return rows


def test_golden_numbers_of_the_official_script() -> None:
    rows = drawn_ties()
    assert REWARDBENCH2.scores(rows, "official").subsets["Ties"] == pytest.approx(GOLDEN, abs=1e-15)
    assert REWARDBENCH2.scores(rows, "half_credit").subsets["Ties"] > GOLDEN, "guard: there are ties"
    paired = [row for row in rows if any(row.id == f"tied:{n}" or row.id == f"ref:{n}" for n in range(1, 61) if n % 7)]
    assert weighted_total(REWARDBENCH2.units(paired), "official") == pytest.approx(
        REWARDBENCH2.scores(paired, "official").total, abs=1e-12
    )


GOLDEN = 0.47691181155195667
"""The result of `process_single_model` of reward-bench for `drawn_ties`."""


def test_output_of_its_script(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(
        '{"id": ["12", "ref:1", "tied:1"], "subset": ["Factuality", "Ties", "ties"], "num_correct": [1, 1, 2], "model": "m",'
        ' "scores": [[[0.5], [0.25], [0.5], [0.0]], [2.0, 1.0], [3.0, 2.5, 1.0]], "results": [0.5, null, null]}'
    )
    rows = read_output(REWARDBENCH2, path)
    assert rows == [
        best_of("Factuality", 0.5, 0.25, 0.5, 0.0, name="12"),
        best_of("Ties", 2.0, 1.0, name="ref:1"),
        best_of("Ties", 3.0, 2.5, 1.0, name="tied:1", right=2),
    ]
    assert measure(REWARDBENCH2, rows)["subsets"]["Factuality"]["score"] == 0.5


def test_halves_of_ties_alone_are_refused() -> None:
    """A prompt of Ties only counts with its other half; without any row that counts there is nothing to measure."""
    halves = [best_of("Ties", 1.0, 0.0, name="ref:1"), best_of("Ties", 1.0, 2.0, 0.0, name="tied:2", right=2)]
    with pytest.raises(DataError, match=r"^rewardbench2: none of 2 rows "):
        measure(REWARDBENCH2, halves)
    assert measure(REWARDBENCH2, [*halves, best_of("Math", 1.0, 0.0, 0.0, 0.0)])["score"] == 1.0, "guard"


def test_malformed_rows_are_refused() -> None:
    good = {"id": "tied:3", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    assert REWARDBENCH2.item(good, Path("x"), 0).source == "Ties"
    for change, shown in (
        ({"chosen": ["a"]}, "^tied:3 "),
        ({"id": "3"}, "'3'"),
        ({"subset": "Math"}, " 2 "),
        ({"subset": "Poetry"}, "^subset 'Poetry'"),
        ({"rejected": []}, "^rejected: "),
    ):
        with pytest.raises(ValueError, match=shown):
            REWARDBENCH2.item(good | change, Path("x"), 0)
