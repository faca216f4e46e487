"""Comparisons with their rewards as text: the hardest errors, samples, and records of a run to rewards over time."""

from pathlib import Path
from typing import Any

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.evaluation.diagnosis import hardest_errors, hardest_rows, reward_drift, sample_histories, sample_rows
from rmtrain.evaluation.scores_file import ScoredComparison
from tests.evaluation.test_metrics import pair, random_lists
from tests.runs import tiny_recipe


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
    (worst, second) = hardest_rows(data, scored, tokenizer, 2)
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
