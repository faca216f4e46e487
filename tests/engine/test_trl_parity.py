"""TRL's RewardTrainer as oracle: ten optimizer steps on the same model and batches give the same losses and gradient norms."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from rmtrain.batching.plan import Plan, StepLoader, order
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.engine.checkpoint_manager import CheckpointManager
from rmtrain.engine.loop import build_optimizer, train
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Meter, RunLog
from rmtrain.engine.strategy import Strategy
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import Recipe
from tests.comparisons import costs_of
from tests.helpers import byte_bpe

STEPS, BATCH = 10, 8
SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 512, "max_positions": 128}


def recipe_for(architecture: str, center_rewards: float | None, output_dir: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "run": {"name": "parity", "output_dir": str(output_dir)},
            "data": {"train": [{"path": "unused"}], "max_length": 64},
            "model": {"scratch": {"architecture": architecture, **SIZES}},
            "objective": {"center_rewards": center_rewards},
            "optimizer": {"lr": 1e-3, "warmup": 0.2},
            "training": {"batch_size": BATCH, "max_steps": STEPS, "precision": "float32"},
            "batching": {"layout": "auto"},
            "tracking": {"log_every": 1},
        }
    )


def make_comparisons(rng: np.random.Generator, vocabulary: int, eos: int, with_margin: bool) -> list[TokenizedComparison]:
    rows = []
    for number in range(STEPS * BATCH):
        prompt = rng.integers(5, vocabulary, rng.integers(2, 15)).tolist()
        chosen, rejected = (prompt + rng.integers(5, vocabulary, rng.integers(1, 20)).tolist() + [eos] for _ in range(2))
        margin = float(rng.random()) if with_margin else 0.0
        rows.append(
            TokenizedComparison(f"s:{number}", "s", (chosen, rejected), len(prompt), len(prompt), (Preference(0, 1, margin),))
        )
    return rows


def losses_of_trl(
    model: torch.nn.Module, rows: list[TokenizedComparison], recipe: Recipe, tokenizer: object, output: Path
) -> list[dict]:
    from trl import RewardConfig, RewardTrainer

    columns = {
        "chosen_ids": [list(row.sequences[0]) for row in rows],
        "rejected_ids": [list(row.sequences[1]) for row in rows],
    }
    if any(row.preferences[0].margin for row in rows):
        columns["margin"] = [row.preferences[0].margin for row in rows]
    arguments = RewardConfig(
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        learning_rate=recipe.optimizer.lr,
        warmup_steps=2,
        lr_scheduler_type="linear",
        max_steps=STEPS,
        max_grad_norm=recipe.optimizer.clip,
        logging_steps=1,
        logging_first_step=True,
        train_sampling_strategy="sequential",
        center_rewards_coefficient=recipe.objective.center_rewards,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "bert"])
@pytest.mark.parametrize(("with_margin", "center_rewards"), [(False, None), (True, 0.05)], ids=["plain", "margin-and-centering"])
def test_ten_steps_equal_trl(architecture: str, with_margin: bool, center_rewards: float | None, tmp_path: Path) -> None:
    recipe = recipe_for(architecture, center_rewards, tmp_path / "ours")
    tokenizer = byte_bpe()
    rows = make_comparisons(np.random.default_rng(5), len(tokenizer), tokenizer.eos_token_id, with_margin)
    ours = build_reward_model(recipe.model, None, tokenizer, seed=1)
    with torch.no_grad():  # new models give nearly equal rewards; larger weights make every term of the loss count
        for parameter in ours.parameters():
            parameter.mul_(2.5 if parameter.ndim > 1 else 1)
    theirs = AutoModelForSequenceClassification.from_config(copy.deepcopy(ours.hf.config))
    theirs.load_state_dict(ours.hf.state_dict(), strict=True)

    layout = "padded" if architecture == "bert" else "shared_prefix"
    ours.use_layout(layout)
    plan = Plan(costs_of(rows, layout), BATCH, 150, epochs=1, seed=1, max_steps=STEPS)
    accelerator = Accelerator(cpu=True)
    strategy = Strategy(accelerator)
    strategy.prepare(ours, build_optimizer(ours, recipe.optimizer), recipe.optimizer.clip)
    (tmp_path / "ours").mkdir()
    loader, meter = StepLoader(rows, plan, layout, tokenizer.pad_token_id), Meter(accelerator, 1)
    log = RunLog(accelerator, tmp_path / "ours")
    directory = RunDirectory(tmp_path / "ours", "ours", continues=False)
    saver = CheckpointManager(strategy, meter, directory, recipe.checkpoints, {})
    train(recipe, recipe.objective, strategy, loader, meter, log, None, saver, GracefulShutdown())
    lines = [json.loads(line) for line in (tmp_path / "ours/metrics.jsonl").read_text().splitlines()]

    in_order = [rows[i] for i in order(1, 0, len(rows))]
    reference = losses_of_trl(theirs, in_order, recipe, tokenizer, tmp_path / "trl")

    assert len(lines) == len(reference) == STEPS
    for mine, trl in zip(lines, reference, strict=True):
        assert mine["train/loss"] == pytest.approx(float(trl["loss"]), abs=1e-5)
        assert mine["train/grad_norm"] == pytest.approx(float(trl["grad_norm"]), rel=1e-5, abs=1e-5)
        assert mine["train/learning_rate"] == pytest.approx(float(trl["learning_rate"]), rel=1e-6)
    assert any(len(plan.step(s).micro_batches[0]) > 1 for s in range(STEPS)), "guard: steps were cut, TRL's were not"
    assert abs(lines[0]["train/loss"] - lines[-1]["train/loss"]) > 1e-3, "guard: the weights moved"
