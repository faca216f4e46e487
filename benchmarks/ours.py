"""Our side: `rmtrain.engine.loop.train_step` on the micro-batches of a StepLoader, first unmeasured steps, then steps on the clock."""

import gc

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

from benchmarks.common import Trace, now
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Costs, Plan
from rmtrain.commands.train import flos_per_token
from rmtrain.data.prepare import PreparedData
from rmtrain.engine.loop import train_step
from rmtrain.engine.metrics import Meter
from rmtrain.engine.optim import build_optimizer
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import Recipe


def step_loader(recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> StepLoader:
    """The steps of one epoch of these data, for one process. The recipe names its layout and its budget."""
    layout, budget = recipe.batching.layout, recipe.batching.max_tokens
    plan = Plan(Costs.of(data.train, layout), recipe.training.batch_size, budget, epochs=1, seed=recipe.run.seed)
    return StepLoader(data.train, plan, layout, tokenizer.pad_token_id)


def train_ours(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, warm: PreparedData, timed: PreparedData, accelerator: Accelerator
) -> Trace:
    """Train a new model of the recipe on one epoch of `warm`, then on one of `timed`, which is measured.

    Args:
        recipe: sizes, an explicit layout and budget, batch size, a constant learning rate.
        tokenizer: the recipe's.
        warm, timed: comparisons of the first, unmeasured steps and of the measured ones.
        accelerator: device and precision.
    """
    with accelerator.device:
        built = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    built.use_layout(recipe.batching.layout)
    model, optimizer = accelerator.prepare(built, build_optimizer(built, recipe.optimizer))
    meter = Meter(accelerator, flos_per_token(built))

    def epoch(loader: StepLoader) -> list[dict[str, float]]:
        lines = []
        for number in range(len(loader)):
            train_step(accelerator, model, optimizer, recipe, meter, recipe.optimizer.lr, loader.step(number))
            lines.append(meter.report(number + 1, 0.0, recipe.optimizer.lr))
        return lines

    epoch(step_loader(recipe, warm, tokenizer))
    loader = step_loader(recipe, timed, tokenizer)
    start = now()
    lines = epoch(loader)
    seconds = now() - start
    accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    batches = [micro_batch for number in range(len(loader)) for micro_batch in loader.step(number).micro_batches]
    return Trace(
        seconds,
        [line["train/loss"] for line in lines],
        [line["train/grad_norm"] for line in lines],
        sum(batch.input_ids_RT.numel() for batch in batches),
        sum(batch.tokens for batch in batches),
    )
