"""Records of a run to rewards over time."""

from typing import Any

from rmtrain.evaluation.samples import reward_drift, sample_histories


def sample(step: int, name: str, rewards: tuple[float, float], source: str = "s") -> dict[str, Any]:
    return {"step": step, "id": name, "source": source, "prompt": "p", "chosen": "c", "rejected": "r", "rewards": list(rewards)}


def test_drift_has_each_evaluation_once_in_order() -> None:
    lines = [
        {"step": 1, "train/loss": 0.7, "train/chosen_reward": 9.0},
        {"step": 4, "eval/chosen_reward": 1.0, "eval/rejected_reward": 0.0},
        {"step": 2, "eval/chosen_reward": 3.0, "eval/rejected_reward": 2.0},
        {"step": 4, "eval/chosen_reward": 5.0, "eval/rejected_reward": 4.0},
        {"step": 5, "eval/loss": 0.1},
    ]
    assert reward_drift(lines) == [{"step": 2, "chosen": 3.0, "rejected": 2.0}, {"step": 4, "chosen": 5.0, "rejected": 4.0}]
    assert reward_drift([]) == []


def test_a_sample_is_shown_once_with_all_its_rewards() -> None:
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
