"""TRL's side: `trl.RewardTrainer` on the same weights and tokens, on an unmeasured first step and then on the clock."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from benchmarks.common import Stopwatch, Trace
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import Recipe

Pair = tuple[list[int], list[int]]
"""Tokens of the chosen and of the rejected side."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How TRL is run: pairs of a step and of a micro-batch, and whether micro-batches hold pairs of like length."""

    batch: int
    micro_batch: int
    grouped: bool = False
    gradient_checkpointing: bool = False


def pairs_of(rows: Sequence[TokenizedComparison]) -> list[Pair]:
    """Each edge of each comparison as a pair of its own, which is how TRL trains on groups."""
    edges = [(row, edge) for row in rows for edge in row.preferences]
    return [tuple(list(map(int, row.sequences[side])) for side in (edge.winner, edge.loser)) for row, edge in edges]


def grouped(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the order of `train_sampling_strategy="group_by_length"` with a length column, all of them in one mega-batch.

    It is the sampler's own function. It would cut the few pairs that are timed into mega-batches of 32, which pads more than its
    mega-batches do on all of the data, so it is told to take them in one.
    """
    lengths = [max(len(chosen), len(rejected)) for chosen, rejected in pairs]
    generator = torch.Generator().manual_seed(0)
    return [pairs[i] for i in get_length_grouped_indices(lengths, 1, mega_batch_mult=len(pairs), generator=generator)]


def plain_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> PreTrainedModel:
    """The weights that `train_ours` begins with, in transformers' own class with transformers' own attention."""
    with device:
        ours = build_reward_model(recipe.model, None, tokenizer, recipe.run.seed)
        config = copy.deepcopy(ours.backbone.config)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=ours.dtype)
    model.load_state_dict(ours.backbone.state_dict(), strict=True)
    return model


class Clock(TrainerCallback):
    """Notes the end of every step."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.lap()


@dataclass
class CountingCollator(DataCollatorForPreference):
    """TRL's collator, which also notes the tokens of each micro-batch, with padding and without."""

    counts: list[tuple[int, int]] = field(default_factory=list)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        self.counts.append((batch["input_ids"].numel(), int(batch["attention_mask"].sum())))
        return batch


def train_trl(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    warm: Sequence[Pair],
    timed: Sequence[Pair],
    setting: Setting,
    *,
    cpu: bool = True,
    peft_config: Any = None,
) -> Trace:
    """Train a new model of the recipe on one step of `warm`, then on all steps of `timed`, which are measured.

    What slows TRL by default and buys nothing here is off: gradient checkpointing, progress bars, saving, reporting.
    """
    model = plain_model(recipe, tokenizer, torch.device("cpu" if cpu else "cuda"))
    pairs = [*warm[: setting.batch], *(grouped(timed) if setting.grouped else timed)]
    columns = {name: [pair[side] for pair in pairs] for side, name in enumerate(("chosen_ids", "rejected_ids"))}
    clock, collator = Clock(), CountingCollator(tokenizer.pad_token_id)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=setting.micro_batch,
            gradient_accumulation_steps=setting.batch // setting.micro_batch,
            max_steps=len(pairs) // setting.batch,
            train_sampling_strategy="sequential",
            learning_rate=recipe.optimizer.lr,
            lr_scheduler_type="constant",
            max_grad_norm=recipe.optimizer.clip,
            logging_steps=1,
            max_length=None,
            bf16=recipe.training.precision == "bfloat16",
            gradient_checkpointing=setting.gradient_checkpointing,
            save_strategy="no",
            report_to=[],
            use_cpu=cpu,
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model,
            arguments,
            data_collator=collator,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=peft_config,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line][1:]
    counts = collator.counts[setting.batch // setting.micro_batch :]
    return Trace(
        *clock.watch.between(1, -1),
        [float(line["loss"]) for line in lines],
        [float(line["grad_norm"]) for line in lines],
        sum(computed for computed, _ in counts),
        sum(real for _, real in counts),
    )
