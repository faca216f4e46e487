"""`balance` and `augment` do what they are for: a model trained with them is less fooled by length."""

import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.recipe.schema import Recipe
from tests.runs import tiny_recipe, write_rows

TOPICS = [
    ["boat", "sail", "wave", "fish"],
    ["barn", "hay", "cow", "plough"],
    ["road", "car", "wheel", "bus"],
    ["lamp", "wire", "bulb", "plug"],
    ["bread", "oven", "flour", "cake"],
    ["tree", "leaf", "root", "bark"],
]
BIAS, RIGHT = 0.8, 0.8
"""Share of the training comparisons in which the longer response wins, and in which the one on the topic of the prompt does."""


def topical_rows(count: int, seed: int, longer: float, right: float) -> list[dict[str, str]]:
    """Pairs of a response on the topic of the prompt and one on another topic; true quality is the topic, whatever the length."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        topics = rng.sample(TOPICS, 2)
        prompt = f"{seed}-{number}: write about the {' '.join(rng.sample(topics[0], 2))}"
        sizes = sorted(rng.sample(range(2, 13), 2), reverse=rng.random() < longer)
        if rng.random() >= right:
            topics.reverse()
        sides = [" ".join(rng.choice(words) for _ in range(size)) for words, size in zip(topics, sizes, strict=True)]
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


def biased_recipe(folder: Path, seed: int, **keys: Any) -> Recipe:
    """The quickstart's kind of model on biased comparisons, evaluated on some in which length says nothing and the topic everything."""
    folder.mkdir()
    train_file = write_rows(folder / "biased.jsonl", topical_rows(1500, 1, BIAS, RIGHT))
    test_file = write_rows(folder / "balanced.jsonl", topical_rows(400, 2, 0.5, 1.0))
    return tiny_recipe(
        folder,
        run={"name": "bias", "output_dir": str(folder / "run"), "seed": seed},
        data={"train": [{"path": str(train_file), **keys}], "eval": [{"path": str(test_file)}]},
        model={
            "scratch": {
                "architecture": "llama", "hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 128,
                "vocab_size": 600, "max_positions": 128,
            }
        },
        optimizer={"lr": 3e-3, "warmup": 0.1},
        training={"batch_size": 32, "max_steps": 250, "epochs": 100, "precision": "float32"},
        batching={"max_tokens": 8192},
        tracking={"log_every": 50},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_planted_length_bias_is_reduced(tmp_path: Path, seed: int) -> None:
    """With the same number of steps, accuracy on comparisons without the bias rises, most of all where the shorter response is better."""
    found = {}
    for name, keys in {
        "none": {},
        "balance": {"balance": "longer"},
        "augment": {"augment": {"other_prompts": 1.0}},
    }.items():
        recipe = biased_recipe(tmp_path / name, seed, **keys)
        numbers = train(recipe, Console(quiet=True)).document["evaluation"]
        found[name] = (numbers["accuracy"], numbers["accuracy_by_length"]["winner_shorter"]["accuracy"], numbers["longer_wins"])
    print(found)
    (none, shorter, longer_wins) = found["none"]
    assert 0.45 < longer_wins < 0.55, "the evaluation data has no bias"
    assert shorter < 0.3, "guard: without a remedy the model follows length"
    for name in ("balance", "augment"):
        assert found[name][0] > none + 0.1, found
        assert found[name][1] > shorter + 0.2, found
