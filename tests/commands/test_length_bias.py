"""`balance` and `augment` do what they are for: a model trained with them is less fooled by length."""

import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.recipe.schema import Recipe
from tests.runs import tiny_recipe, write_rows

WORDS = ["boat", "sail", "wave", "fish", "barn", "hay", "cow", "road", "car", "bus", "lamp", "wire"]
BIAS, RIGHT = 0.8, 0.8
"""Share of the training comparisons in which the longer response wins, and in which the one about the prompt does."""


TOPICAL: dict[str, Any] = {
    "model": {
        "scratch": {
            "architecture": "llama", "hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128,
            "vocab_size": 600, "max_positions": 128,
        }
    },
    "optimizer": {"lr": 3e-3, "warmup": 0.1},
    "training": {"batch_size": 32, "max_steps": 300, "epochs": 100, "precision": "float32"},
    "batching": {"max_tokens": 8192},
}  # fmt: skip
"""Sections of a recipe from which the quickstart's kind of model learns `topical_rows`."""


def topical_rows(count: int, seed: int, longer: float, right: float) -> list[dict[str, str]]:
    """Pairs of a response with the words of the prompt and one with other words; that is true quality, whatever the length."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        words = rng.sample(WORDS, 6)
        topics = [words[:3], words[3:]]
        prompt = f"{seed}-{number}: write about {' '.join(topics[0])}"
        sizes = sorted(rng.sample(range(2, 13), 2), reverse=rng.random() < longer)
        if rng.random() >= right:
            topics.reverse()
        sides = [" ".join(rng.choice(topic) for _ in range(size)) for topic, size in zip(topics, sizes, strict=True)]
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


def biased_recipe(folder: Path, seed: int, **keys: Any) -> Recipe:
    """The quickstart's kind of model on biased comparisons, evaluated on some in which only the words of the prompt count."""
    folder.mkdir()
    train_file = write_rows(folder / "biased.jsonl", topical_rows(2000, 1, BIAS, RIGHT))
    test_file = write_rows(folder / "balanced.jsonl", topical_rows(400, 2, 0.5, 1.0))
    return tiny_recipe(
        folder,
        run={"name": "bias", "output_dir": str(folder / "run"), "seed": seed},
        data={"train": [{"path": str(train_file), **keys}], "eval": [{"path": str(test_file)}]},
        **TOPICAL,
        tracking={"log_every": 50},
    )


@pytest.mark.long
@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_planted_length_bias_is_reduced(tmp_path: Path, seed: int) -> None:
    """After equally many steps, the accuracy on comparisons without the bias is higher, and depends less on which response is longer."""
    accuracies, gaps = {}, {}
    keys = {"none": {}, "balance": {"balance": "longer"}, "augment": {"augment": {"other_prompts": 1.0}}}
    for name, source in keys.items():
        numbers = train(biased_recipe(tmp_path / name, seed, **source), Console(quiet=True)).document["evaluation"]
        assert 0.45 < numbers["longer_wins"] < 0.55, "guard: the evaluation data has no bias"
        longer, shorter = (numbers["accuracy_by_length"][kind]["accuracy"] for kind in ("winner_longer", "winner_shorter"))
        accuracies[name], gaps[name] = numbers["accuracy"], longer - shorter
    assert gaps["none"] > 0.3, "guard: without a remedy, the model is fooled by length"
    for name in ("balance", "augment"):
        assert accuracies[name] > accuracies["none"] + 0.03, accuracies
        assert abs(gaps[name]) < gaps["none"] / 2, gaps
