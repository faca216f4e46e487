"""The numbers of targets against their definitions, computed pair by pair."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rmtrain.data.comparison import Target
from rmtrain.errors import DataError
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison, read_scores, write_scores
from rmtrain.evaluation.targets import target_numbers
from rmtrain.recipe.schema import Binary, BradleyTerry, BySource, Regression


def scored_rows(count: int, values: tuple[float, ...], seed: int = 0) -> list[ScoredComparison]:
    """Rows of one to three responses with targets, two rows to a prompt; rewards are rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        size = 1 + number % 3
        targets = tuple(Target(place, float(rng.choice(values))) for place in range(size))
        rewards = tuple(round(float(target.value + rng.normal()), 1) for target in targets)
        rows.append(ScoredComparison(f"r:{number}", "rated", rewards, (), (), targets, prompt=f"p{number // 2}"))
    return rows


def values_of(rows: list[ScoredComparison]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row.rewards[target.response], target.value) for row in rows for target in row.targets]
    rewards, targets = np.array(pairs).T
    return rewards, targets


def test_errors_are_in_the_units_of_targets() -> None:
    rows = scored_rows(60, (1.0, 2.0, 3.5, 5.0))
    rewards, targets = values_of(rows)
    numbers = target_numbers(rows, Regression(type="regression", mean=3.0, std=1.5))
    residuals = rewards * 1.5 + 3.0 - targets
    assert numbers["mse"] == pytest.approx(np.mean(residuals**2), rel=1e-12)
    assert numbers["r2"] == pytest.approx(1 - np.sum(residuals**2) / np.sum((targets - targets.mean()) ** 2), rel=1e-12)
    assert numbers["brier"] is None
    assert target_numbers(rows, Regression(type="regression"))["mse"] is None, "an error needs the scale"


def test_auc_counts_pairs_and_half_of_ties() -> None:
    rows = scored_rows(80, (0.0, 1.0))
    rewards, targets = values_of(rows)
    pairs = list(product(rewards[targets == 1], rewards[targets == 0]))
    expected = sum((right > wrong) + 0.5 * (right == wrong) for right, wrong in pairs) / len(pairs)
    assert target_numbers(rows, Binary(type="binary"))["auc"] == pytest.approx(expected, rel=1e-12)
    assert any(right == wrong for right, wrong in pairs), "guard: rewards are equal"
    assert target_numbers(scored_rows(20, (0.0, 0.5, 1.0)), Binary(type="binary"))["auc"] is None, (
        "some are neither right nor wrong"
    )


def test_probabilities_against_their_formulas() -> None:
    rows = scored_rows(80, (0.0, 0.5, 1.0))
    rewards, targets = values_of(rows)
    probabilities = 1 / (1 + np.exp(-rewards))
    numbers = target_numbers(rows, Binary(type="binary"))
    assert numbers["brier"] == pytest.approx(np.mean((probabilities - targets) ** 2), rel=1e-12)
    decided = targets != 0.5
    assert numbers["accuracy_at_half"] == np.mean((probabilities > 0.5)[decided] == (targets > 0.5)[decided])
    bins = [(probabilities >= low / 10) & (probabilities < (low + 1) / 10) for low in range(10)]
    gaps = [abs(np.sum(targets[inside] - probabilities[inside])) for inside in bins]
    assert numbers["target_calibration_error"] == pytest.approx(sum(gaps) / len(targets), rel=1e-12)


def test_rank_correlation_over_all_and_within_prompts() -> None:
    """Spearman's rho is Pearson's of the mean ranks; within a prompt, responses of all of its rows count."""
    rows = scored_rows(30, (1.0, 2.0, 3.0))

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])

    def rho(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.corrcoef(ranks(left), ranks(right))[0, 1])

    numbers = target_numbers(rows, BradleyTerry())
    assert numbers["spearman"] == pytest.approx(rho(*values_of(rows)), rel=1e-9)
    within = []
    for prompt in {row.prompt for row in rows}:
        rewards, targets = values_of([row for row in rows if row.prompt == prompt])
        if len(set(rewards)) > 1 and len(set(targets)) > 1:
            within.append(rho(rewards, targets))
    assert numbers["spearman_within"] == pytest.approx(np.mean(within), rel=1e-9)
    assert len(within) > 5, "guard"


def test_sources_have_the_numbers_of_their_objective() -> None:
    rated, checked = scored_rows(20, (1.0, 5.0)), [replace(row, source="checked") for row in scored_rows(20, (0.0, 1.0), seed=1)]
    objective = BySource(
        type="by_source", sources={"checked": Binary(type="binary")}, others=Regression(type="regression", mean=3, std=2)
    )
    summary = summarize([*rated, *checked], objective)
    assert summary["mse"] == summary["sources"]["rated"]["mse"] is not None
    assert summary["brier"] == summary["sources"]["checked"]["brier"] is not None
    assert summary["sources"]["checked"]["mse"] is summary["sources"]["rated"]["brier"] is None
    losses = [summary["sources"][name]["loss"] for name in ("rated", "checked")]
    assert summary["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert not summary["warnings"]


def test_scores_with_targets_survive_their_file(tmp_path: Path) -> None:
    rows = [replace(row, weight=0.5 + number) for number, row in enumerate(scored_rows(9, (0.25, 1.0)))]
    write_scores(tmp_path / "scores.jsonl", rows)
    again = read_scores(tmp_path / "scores.jsonl")
    assert again == rows
    assert summarize(again, Binary(type="binary"))["loss"] == summarize(rows, Binary(type="binary"))["loss"]
    assert math.isfinite(summarize(rows, Binary(type="binary"))["loss"])


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"id": "a", "source": "s", "rewards": [1.0], "targets": [[0, 1e999, 1]]}', "targets"),
        ('{"id": "a", "source": "s", "rewards": [1.0], "targets": [[1, 1.0, 1]]}', "0..0"),
        ('{"id": "a", "source": "s", "rewards": [1.0], "targets": [[0, 1.0, 0]]}', "weight"),
        ('{"id": "a", "source": "s", "rewards": [1.0], "targets": "good"}', "targets"),
        ('{"id": "a", "source": "s", "rewards": [], "targets": []}', "rewards"),
        ('{"id": "a", "source": "s", "rewards": [1.0, 2.0], "weight": -1}', "weight"),
        ('{"id": "a", "source": "s", "rewards": [1.0, 2.0], "weight": true}', "weight"),
    ],
)
def test_damaged_targets_are_one_line(line: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=word) as refusal:
        read_scores(file)
    assert refusal.value.problems[0].startswith(f"{file}:1  ")
