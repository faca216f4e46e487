"""LLMBar: labels to best first, the adversarial mean, and the real rows of Natural."""

import json
from pathlib import Path

import pytest

from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.measure import measure
from rmtrain.evaluation.benchmarks.published import read_items
from tests.evaluation.benchmarks.rows import many, pair, weighted_total


def test_adversarial_section_is_the_mean_of_subsets() -> None:
    rows = [
        *many("Natural", 3, 1),
        *many("Neighbor", 1, 3),
        *many("GPTInst", 1, 0, 1),
        *many("GPTOut", 1, 0),
        *many("Manual", 0, 2),
    ]
    numbers = measure(LLMBAR, rows)
    adversarial = (0.25 + 0.75 + 1.0 + 0.0) / 4
    assert numbers["sections"]["Adversarial"]["score"] == numbers["sections"]["Adversarial"]["half_credit"] == adversarial
    assert numbers["sections"]["Adversarial"]["strict"] == (0.25 + 0.5 + 1.0 + 0.0) / 4
    assert numbers["score"] == (0.75 + adversarial) / 2
    assert (numbers["ties"], numbers["missing"]) == (1, [])
    assert weighted_total(LLMBAR.units(rows), "official") == pytest.approx(LLMBAR.scores(rows, "official").total, abs=1e-12)


def test_tie_counts_as_in_the_official_script() -> None:
    """Of two equal scores `evaluate.py` takes the second output in both orders, and reports the mean of both accuracies."""
    outcomes = [(2.0, 1.0), (1.0, 2.0), (1.5, 1.5), (3.0, 3.0), (2.0, 0.0)]
    official = [
        (better > worse if label == 1 else not worse > better, not worse > better if label == 1 else better > worse)
        for label in (1, 2)
        for better, worse in outcomes
    ]
    score = measure(LLMBAR, [pair("Natural", *rewards, name=str(n)) for n, rewards in enumerate(outcomes * 2)])["score"]
    assert score == sum(map(sum, official)) / 2 / len(official) == 0.6


def test_real_rows_of_natural(shared_data: Path) -> None:
    items = read_items(LLMBAR, shared_data)
    raw = json.loads((shared_data / "llmbar_natural.json").read_text())
    assert len(items) == len(raw) == 100
    assert {row["label"] for row in raw} == {1, 2}, "guard: both sides win"
    for read, row in zip(items, raw, strict=True):
        assert read.responses[0] == row[f"output_{row['label']}"]
        assert read.responses[1] == row[f"output_{3 - row['label']}"]
        assert (read.source, read.prompt[0]["content"]) == ("Natural", row["input"])


def test_path_names_the_subset() -> None:
    repository = [Path("Natural/dataset.json"), Path("Adversarial/GPTInst/dataset.json"), Path("Processed/x.json")]
    assert LLMBAR.files(repository) == repository[:2]
    row = {"input": "i", "output_1": "a", "output_2": "b", "label": 2}
    assert LLMBAR.item(row, Path("Dataset/LLMBar/Adversarial/GPTInst/dataset.json"), 4).source == "GPTInst"
    with pytest.raises(ValueError, match="GPTInst"):
        LLMBAR.item(row, Path("dataset.json"), 0)
    with pytest.raises(ValueError, match=r"^label: .*3"):
        LLMBAR.item(row | {"label": 3}, Path("natural.json"), 0)
