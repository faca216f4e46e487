"""T3: a trained model scores pairs and the same pairs with their sides swapped."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.data.prepare import prepare_evaluation
from rmtrain.evaluation.score import evaluate
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import PairSource
from tests.runs import planted_rows, tiny_recipe, write_rows


def test_trap_20_swapping_the_sides_of_every_pair_turns_wins_into_losses_and_leaves_ties(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, training={"max_steps": 3, "batch_size": 8, "precision": "float32"})
    train(recipe, Console(quiet=True))
    model, tokenizer = load_reward_model(str(tmp_path / "run/model"), torch.device("cpu"))
    one, other = (tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in ("#", "%"))
    embeddings = model.backbone.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[other] = embeddings[one]  # two tokens that mean the same to the model: the tied pairs differ by them alone
    rows = planted_rows(33, seed=5, shuffled=True)
    rows += [{"prompt": f"tie {k}", "chosen": f"{k} #", "rejected": f"{k} %"} for k in range(8)]
    turned = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    summaries = []
    for name, pairs in (("straight", rows), ("turned", turned)):
        source = PairSource(path=str(write_rows(tmp_path / f"{name}.jsonl", pairs)))
        data = prepare_evaluation([source], recipe.data, tokenizer)
        summaries.append(evaluate(model, data, "padded", Accelerator(), tokenizer.pad_token_id, 1024).summary)
    straight, swapped = summaries
    assert (swapped["wins"], swapped["losses"], swapped["ties"]) == (straight["losses"], straight["wins"], straight["ties"])
    n = straight["preferences"]
    assert swapped["wins"] / n == (n - straight["wins"] - straight["ties"]) / n
    assert swapped["accuracy"] == swapped["wins"] / n
    assert swapped["half_credit_accuracy"] == pytest.approx(1 - straight["half_credit_accuracy"], abs=1e-15)
    assert straight["ties"] == 8
    assert min(straight["wins"], straight["losses"]) > 0, "guard: all three outcomes occur"
