"""Each part of the diagnosis against its formula, and against the numbers that `summarize` computes from the same scores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.evaluation.diagnosis import (
    ROUND,
    accuracy_by_length_difference,
    calibration_curve,
    describe_edge,
    diagnose,
    hardest_errors,
    margin_histogram,
    reward_by_length,
    reward_drift,
    reward_histograms,
    round_edges,
    round_width,
    sample_histories,
    sample_rows,
)
from rmtrain.evaluation.metrics import ScoredEdges, scored_edges, share_with_interval, summarize
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores
from rmtrain.intervals import wilson_interval
from tests.evaluation.test_metrics import pair, random_lists, random_pairs
from tests.runs import tiny_recipe

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: float(np.float32(value)))


def edges_of(*rows: ScoredComparison) -> ScoredEdges:
    return scored_edges(rows)


@pytest.mark.parametrize("rows", [random_pairs(400), random_lists(60), random_pairs(1)], ids=["pairs", "lists", "one"])
def test_every_part_counts_each_preference_once(rows: list[ScoredComparison]) -> None:
    diagnosis, edges = diagnose(rows), scored_edges(rows)
    assert diagnosis["preferences"] == len(edges) > 0
    assert sum(diagnosis["rewards"]["winners"]) == sum(diagnosis["rewards"]["losers"]) == len(edges)
    assert sum(diagnosis["margins"]["counts"]) == len(edges)
    assert sum(row["preferences"] for row in diagnosis["length_difference"]) == len(edges)
    assert sum(row["responses"] for row in diagnosis["reward_by_length"]) == 2 * len(edges)
    assert sum(row["preferences"] for row in diagnosis["calibration"]["bins"]) == len(edges)
    json.dumps(diagnosis, allow_nan=False)


@pytest.mark.parametrize("rows", [random_pairs(400), random_lists(60)], ids=["pairs", "lists"])
def test_parts_agree_with_the_summary(rows: list[ScoredComparison]) -> None:
    diagnosis, summary = diagnose(rows), summarize(rows)
    assert diagnosis["calibration"]["error"] == pytest.approx(summary["calibration_error"], abs=1e-12)
    assert diagnosis["margins"]["right"] == pytest.approx(summary["accuracy"])
    weighted = sum(row["preferences"] * row["accuracy"] for row in diagnosis["length_difference"])
    assert weighted == pytest.approx(summary["wins"])
    assert diagnosis["margins"]["tied"] * diagnosis["preferences"] == pytest.approx(summary["ties"])


def test_margins_below_zero_are_wrong() -> None:
    """A tie is neither right nor wrong."""
    margins = margin_histogram(edges_of(pair(0.0, 1.0), pair(1.0, 1.0), pair(2.0, 1.0), pair(3.0, 0.0)))
    assert margins is not None
    assert 0.0 in margins["edges"]
    wrong = sum(count for low, count in zip(margins["edges"], margins["counts"], strict=False) if low < 0)
    assert wrong == 1
    assert (margins["right"], margins["wrong"], margins["tied"]) == (0.5, 0.25, 0.25)


def test_rewards_are_counted_in_their_bins() -> None:
    rewards = reward_histograms(edges_of(pair(1.25, -0.5), pair(1.0, 0.0)))
    assert rewards is not None
    for side, values in (("winners", [1.25, 1.0]), ("losers", [-0.5, 0.0])):
        expected, _ = np.histogram(values, bins=np.array(rewards["edges"]))
        assert rewards[side] == expected.tolist()


def test_preference_for_length_shows_as_a_slope() -> None:
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
def test_few_or_equal_differences_are_counted(differences: list[int]) -> None:
    bins = accuracy_by_length_difference(
        edges_of(*(pair(1.0, 0.0, (20 + d, 20), name=str(k)) for k, d in enumerate(differences)))
    )
    assert bins is not None
    assert sum(row["preferences"] for row in bins) == len(differences)
    for row in bins:
        inside = [d for d in differences if (row["low"] is None or d >= row["low"]) and (row["high"] is None or d <= row["high"])]
        assert len(inside) == row["preferences"] > 0


def test_reward_by_length_averages_each_bin() -> None:
    rows = [pair(float(k), float(k), (k, k), name=str(k)) for k in range(1, 81)]
    bins = reward_by_length(scored_edges(rows))
    assert bins is not None
    assert [row["responses"] for row in bins] == [20] * 8
    assert bins[0] == {"low": 1, "high": 10, "responses": 20, "reward": 5.5, "deviation": pytest.approx(np.std(np.arange(1, 11)))}


def test_calibration_error_follows_its_definition() -> None:
    edges = edges_of(pair(1.0, 0.0, name="1"), pair(0.0, 1.0, name="2"), pair(3.0, 0.0, name="3"), pair(1.0, 1.0, name="4"))
    curve = calibration_curve(edges)
    assert curve is not None
    sure, surer = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    assert [row["preferences"] for row in curve["bins"]] == [1, 2, 1]
    assert [row["accuracy"] for row in curve["bins"]] == [0.5, 0.5, 1.0]
    assert [row["confidence"] for row in curve["bins"]] == pytest.approx([0.5, sure, surer])
    assert curve["error"] == pytest.approx((0 + 2 * (sure - 0.5) + (1 - surer)) / 4)


def test_most_confident_are_in_the_last_bin() -> None:
    curve = calibration_curve(edges_of(pair(100.0, 0.0)))
    assert curve is not None
    assert curve["bins"][0]["high"] == 1.0
    assert curve["error"] == pytest.approx(0.0)


def test_nothing_without_winners_or_lengths() -> None:
    tied = ScoredComparison("t", "s", (1.0, 2.0), (3, 4), (Preference(0, 1, 0.0, 0.5, 1.0),))
    assert diagnose([tied]) == {"preferences": 0} | dict.fromkeys(
        ("rewards", "margins", "length_difference", "reward_by_length", "calibration", "reward_by_target")
    )
    bare = diagnose([ScoredComparison("t", "s", (1.0, 2.0), (), PAIR)])
    assert bare["length_difference"] is bare["reward_by_length"] is None
    assert bare["margins"]["wrong"] == 1.0


def test_equal_rewards_have_a_diagnosis() -> None:
    diagnosis: dict[str, Any] = diagnose([pair(2.0, 2.0, name=str(k)) for k in range(3)])
    assert sum(diagnosis["rewards"]["winners"]) == 3
    assert diagnosis["margins"]["tied"] == 1.0


def test_diagnosis_from_a_file_of_scores(tmp_path: Any) -> None:
    (tmp_path / "scores.jsonl").write_text('{"id": "a", "source": "s", "rewards": [2.0, 1.0, 3.0]}\n')
    diagnosis = diagnose(read_scores(tmp_path / "scores.jsonl"))
    assert diagnosis["preferences"] == 2
    assert diagnosis["margins"]["right"] == 0.5


@given(NUMBERS, NUMBERS, st.integers(2, 40))
def test_edges_are_round_and_hold_all_values(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    if 0 < high - low < 1e-3:
        high = low
    edges = round_edges(low, high, most)
    width = edges[1] - edges[0]
    assert 2 <= len(edges) <= most + 2, "a bin more where both ends are cut"
    assert edges[0] <= low + 1e-8 * width + 1e-6 * abs(low)
    assert edges[-1] >= high - 1e-8 * width - 1e-6 * abs(high)
    assert np.allclose(np.diff(edges), width)


def test_zero_is_an_edge_between_signs() -> None:
    assert 0.0 in round_edges(-3.7, 8.1, 30).tolist()
    assert round_edges(-3.7, 8.1, 30).tolist()[:3] == pytest.approx([-4.0, -3.5, -3.0])


@pytest.mark.parametrize(
    ("span", "most", "width"), [(10, 10, 1), (11, 10, 2), (0, 10, 1), (0.3, 30, 0.01), (23, 10, 2.5), (60, 10, 10)]
)
def test_widths_are_round(span: float, most: int, width: float) -> None:
    assert round_width(span, most) == pytest.approx(width)
    assert any(abs(width / 10**power - digits) < 1e-9 for digits in ROUND for power in range(-3, 3)), "guard"


def test_share_of_a_part_has_its_own_interval() -> None:
    """Edges outside of the part change nothing, and edges of one prompt that agree count once."""
    rows = [replace(pair(1.0, 0.0 if k % 4 else 2.0, name=str(k)), prompt=str(k % 200)) for k in range(400)]
    edges = edges_of(*rows, pair(0.0, 1.0, name="outside"))
    inside = share_with_interval(edges, edges.margin_E > 0, np.arange(401) < 400)
    assert (inside["preferences"], inside["accuracy"]) == (400, 0.75)
    assert (inside["accuracy_low"], inside["accuracy_high"]) == pytest.approx(wilson_interval(0.75, 200), abs=0.002)
    assert share_with_interval(edges, edges.margin_E > 0)["preferences"] == 401, "guard"
    assert share_with_interval(edges, edges.margin_E > 0, np.zeros(401, bool))["accuracy"] is None


def test_largest_wrong_margins_come_first() -> None:
    """Right preferences and ties are not errors."""
    rows = [pair(1.0, 0.0), pair(0.0, 1.0), pair(0.0, 3.0), pair(2.0, 2.0), pair(0.0, 2.0)]
    assert [number for number, _ in hardest_errors(rows, 10)] == [2, 4, 1]
    assert [number for number, _ in hardest_errors(rows, 2)] == [2, 4]
    assert hardest_errors(rows[:1], 10) == []


def test_worst_preference_of_a_comparison_counts() -> None:
    row = ScoredComparison("a", "s", (1.0, 3.0, 9.0), (), (Preference(0, 1), Preference(1, 2), Preference(2, 0)))
    tie = ScoredComparison("b", "s", (0.0, 90.0), (), (Preference(0, 1, 0.0, 0.5, 1.0),))
    assert hardest_errors([row, tie], 5) == [(0, Preference(1, 2))]
    many = random_lists(50)
    errors = hardest_errors(many, 1000)
    assert len({number for number, _ in errors}) == len(errors) > 10
    leads = [many[n].rewards[edge.loser] - many[n].rewards[edge.winner] for n, edge in errors]
    assert leads == sorted(leads, reverse=True)
    assert min(leads) > 0


def test_hardest_and_samples_have_texts(tmp_path: Path) -> None:
    """Samples are spread evenly over the data, the same ones each time."""
    recipe = tiny_recipe(tmp_path, rows=24, test_rows=6)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    data = prepare(recipe.data, tokenizer).eval
    scored = [ScoredComparison(data[k].id, data[k].source, (0.0, float(k)), (), PAIR) for k in range(len(data))]
    worst, second = (describe_edge(data[k], edge, scored[k].rewards, tokenizer) for k, edge in hardest_errors(scored, 2))
    assert worst["id"] == data[len(data) - 1].id
    assert worst["rewards"] == [0.0, float(len(data) - 1)]
    assert "describe the" in worst["prompt"]
    assert worst["chosen"].strip().startswith("the ")
    assert worst["chosen"] != worst["rejected"]
    assert second["rewards"][1] < worst["rewards"][1]
    samples = sample_rows(data, scored, tokenizer, 3)
    assert [row["id"] for row in samples] == [data[k].id for k in (0, len(data) // 2 - 1, len(data) - 1)]
    assert samples[-1] == worst
    assert len(sample_rows(data, scored, tokenizer, 100)) == len(data)


def sample(step: int, name: str, rewards: tuple[float, float], source: str = "s") -> dict[str, Any]:
    return {"step": step, "id": name, "source": source, "prompt": "p", "chosen": "c", "rejected": "r", "rewards": list(rewards)}


def test_drift_has_each_evaluation_once() -> None:
    lines = [
        {"step": 1, "train/loss": 0.7, "train/chosen_reward": 9.0},
        {"step": 4, "eval/chosen_reward": 1.0, "eval/rejected_reward": 0.0},
        {"step": 2, "eval/chosen_reward": 3.0, "eval/rejected_reward": 2.0},
        {"step": 4, "eval/chosen_reward": 5.0, "eval/rejected_reward": 4.0},
        {"step": 5, "eval/loss": 0.1},
    ]
    assert reward_drift(lines) == [{"step": 2, "chosen": 3.0, "rejected": 2.0}, {"step": 4, "chosen": 5.0, "rejected": 4.0}]
    assert reward_drift([]) == []


def test_sample_history_has_all_its_rewards() -> None:
    lines = [
        sample(10, "a", (0.0, 1.0)),
        sample(10, "a", (7.0, 1.0), "other"),
        sample(5, "a", (0.5, 0.5)),
        sample(10, "a", (2.0, 1.0)),
    ]
    ours, other = sample_histories(lines)
    assert ours["history"] == [{"step": 5, "rewards": [0.5, 0.5]}, {"step": 10, "rewards": [2.0, 1.0]}]
    assert other["source"] == "other"
    assert (ours["prompt"], ours["chosen"], ours["rejected"]) == ("p", "c", "r")
