"""Each part of the diagnosis against its formula, and against the numbers that `summarize` gives of the same scores."""

import json
from typing import Any

import numpy as np
import pytest

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.evaluation.diagnosis import (
    ScoredEdges,
    accuracy_by_length_difference,
    calibration_curve,
    diagnose,
    margin_histogram,
    reward_by_length,
    reward_histograms,
    scored_edges,
)
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores
from tests.evaluation.test_metrics import pair, random_lists, random_pairs


def edges_of(*rows: ScoredComparison) -> ScoredEdges:
    return scored_edges(rows)


@pytest.mark.parametrize("rows", [random_pairs(400), random_lists(60), random_pairs(1)], ids=["pairs", "lists", "one"])
def test_every_preference_is_counted_once_in_every_part(rows: list[ScoredComparison]) -> None:
    found, edges = diagnose(rows), scored_edges(rows)
    assert found["preferences"] == len(edges) > 0
    assert sum(found["rewards"]["winners"]) == sum(found["rewards"]["losers"]) == len(edges)
    assert sum(found["margins"]["counts"]) == len(edges)
    assert sum(row["preferences"] for row in found["length_difference"]) == len(edges)
    assert sum(row["responses"] for row in found["reward_by_length"]) == 2 * len(edges)
    assert sum(row["preferences"] for row in found["calibration"]["bins"]) == len(edges)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("rows", [random_pairs(400), random_lists(60)], ids=["pairs", "lists"])
def test_the_parts_agree_with_the_summary(rows: list[ScoredComparison]) -> None:
    found, summary = diagnose(rows), summarize(rows)
    assert found["calibration"]["error"] == pytest.approx(summary["calibration_error"], abs=1e-12)
    assert found["margins"]["right"] == pytest.approx(summary["accuracy"])
    weighted = sum(row["preferences"] * row["accuracy"] for row in found["length_difference"])
    assert weighted == pytest.approx(summary["wins"])
    assert found["margins"]["tied"] * found["preferences"] == pytest.approx(summary["ties"])


def test_margins_left_of_zero_are_the_wrong_ones_and_a_tie_is_neither() -> None:
    margins = margin_histogram(edges_of(pair(0.0, 1.0), pair(1.0, 1.0), pair(2.0, 1.0), pair(3.0, 0.0)))
    assert margins is not None
    assert 0.0 in margins["edges"]
    wrong = sum(count for low, count in zip(margins["edges"], margins["counts"], strict=False) if low < 0)
    assert wrong == 1
    assert (margins["right"], margins["wrong"], margins["tied"]) == (0.5, 0.25, 0.25)


def test_rewards_lie_in_the_bins_that_hold_them() -> None:
    rewards = reward_histograms(edges_of(pair(1.25, -0.5), pair(1.0, 0.0)))
    assert rewards is not None
    for side, values in (("winners", [1.25, 1.0]), ("losers", [-0.5, 0.0])):
        expected, _ = np.histogram(values, bins=np.array(rewards["edges"]))
        assert rewards[side] == expected.tolist()


def test_accuracy_by_length_shows_a_taste_for_length_as_a_slope() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 100, size=(600, 2))
    rows = [pair(float(a), float(b), (int(a), int(b)), name=str(k)) for k, (a, b) in enumerate(lengths)]
    bins = accuracy_by_length_difference(scored_edges(rows))
    assert bins is not None
    assert [row["accuracy"] for row in bins] == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert [(row["low"], row["high"]) for row in bins][3] == (0, 0)
    assert bins[0]["low"] is bins[-1]["high"] is None
    for row, mirror in zip(bins, reversed(bins), strict=True):
        assert row["low"] == (None if mirror["high"] is None else -mirror["high"]), "symmetric about 0"
    covered = [number for row in bins[1:-1] for number in range(row["low"], row["high"] + 1)]
    assert covered == list(range(covered[0], covered[-1] + 1)), "no difference is left out or counted twice"
    assert 0.15 < bins[-1]["preferences"] / 300 < 0.5, "thirds"


@pytest.mark.parametrize("differences", [[0, 0], [3], [-1, 1, 1, 1], [5, 5, 5, -5]])
def test_few_or_equal_differences_are_counted_all_the_same(differences: list[int]) -> None:
    bins = accuracy_by_length_difference(
        edges_of(*(pair(1.0, 0.0, (20 + d, 20), name=str(k)) for k, d in enumerate(differences)))
    )
    assert bins is not None
    assert sum(row["preferences"] for row in bins) == len(differences)
    for row in bins:
        inside = [d for d in differences if (row["low"] is None or d >= row["low"]) and (row["high"] is None or d <= row["high"])]
        assert len(inside) == row["preferences"] > 0


def test_reward_by_length_has_the_mean_of_each_bin() -> None:
    rows = [pair(float(k), float(k), (k, k), name=str(k)) for k in range(1, 81)]
    bins = reward_by_length(scored_edges(rows))
    assert bins is not None
    assert [row["responses"] for row in bins] == [20] * 8
    assert bins[0] == {"low": 1, "high": 10, "responses": 20, "reward": 5.5, "deviation": pytest.approx(np.std(np.arange(1, 11)))}


def test_the_calibration_error_is_that_of_its_definition() -> None:
    edges = edges_of(pair(1.0, 0.0, name="1"), pair(0.0, 1.0, name="2"), pair(3.0, 0.0, name="3"), pair(1.0, 1.0, name="4"))
    curve = calibration_curve(edges)
    assert curve is not None
    sure, surer = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    assert [row["preferences"] for row in curve["bins"]] == [1, 2, 1]
    assert [row["accuracy"] for row in curve["bins"]] == [0.5, 0.5, 1.0]
    assert [row["confidence"] for row in curve["bins"]] == pytest.approx([0.5, sure, surer])
    assert curve["error"] == pytest.approx((0 + 2 * (sure - 0.5) + (1 - surer)) / 4)


def test_the_surest_are_in_the_last_bin() -> None:
    curve = calibration_curve(edges_of(pair(100.0, 0.0)))
    assert curve is not None
    assert curve["bins"][0]["high"] == 1.0
    assert curve["error"] == pytest.approx(0.0)


def test_without_a_winner_or_lengths_there_is_nothing_to_say() -> None:
    tied = ScoredComparison("t", "s", (1.0, 2.0), (3, 4), (Preference(0, 1, 0.0, 0.5, 1.0),))
    assert diagnose([tied]) == {"preferences": 0} | dict.fromkeys(
        ("rewards", "margins", "length_difference", "reward_by_length", "calibration")
    )
    bare = diagnose([ScoredComparison("t", "s", (1.0, 2.0), (), PAIR)])
    assert bare["length_difference"] is bare["reward_by_length"] is None
    assert bare["margins"]["wrong"] == 1.0


def test_equal_rewards_everywhere_have_a_diagnosis() -> None:
    found: dict[str, Any] = diagnose([pair(2.0, 2.0, name=str(k)) for k in range(3)])
    assert sum(found["rewards"]["winners"]) == 3
    assert found["margins"]["tied"] == 1.0


def test_it_can_be_computed_from_a_file_of_scores(tmp_path: Any) -> None:
    (tmp_path / "scores.jsonl").write_text('{"id": "a", "source": "s", "rewards": [2.0, 1.0, 3.0]}\n')
    found = diagnose(read_scores(tmp_path / "scores.jsonl"))
    assert found["preferences"] == 2
    assert found["margins"]["right"] == 0.5
