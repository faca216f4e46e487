"""The run itself: `train` says when, `train_step` says how."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rmtrain.batching.layout import MicroBatch
from rmtrain.batching.loader import StepBatch, StepLoader
from rmtrain.engine.memory import rehearse, within_memory
from rmtrain.engine.metrics import Display, Meter, RunLog
from rmtrain.engine.optim import learning_rate
from rmtrain.errors import RmtrainError
from rmtrain.objective import Edges, Objective, bradley_terry, plackett_luce
from rmtrain.recipe.schema import Objectives, PlackettLuce, Recipe

T = TypeVar("T")


def train(
    recipe: Recipe,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: StepLoader,
    meter: Meter,
    log: RunLog,
    display: Display,
    evaluate: Callable[[int], T] | None,
) -> T | None:
    """Train from the first step to the last.

    Args:
        recipe: what to do.
        accelerator: the processes; `model` and `optimizer` are prepared by it.
        loader: every micro-batch of every step, for this rank.
        meter, log, display: where statistics, log lines and what a person sees go.
        evaluate: evaluates and logs at a given step; also called after the last one. None: there is nothing to evaluate on.

    Returns:
        The last evaluation.
    """
    rate, last = learning_rate(recipe.optimizer, len(loader)), len(loader)
    rehearse(accelerator, model, optimizer, loader)
    for number in range(last):
        lr, step = rate(number), number + 1
        compute = partial(train_step, accelerator, model, optimizer, recipe, meter, lr)
        tokens = within_memory(compute, number, optimizer, loader)
        display.step(step, tokens)
        if due(recipe.tracking.log_every, step) or step in (1, last):
            metrics = meter.report(step, step / loader.plan.steps_per_epoch, lr)
            log.metrics(step, metrics)
            display.log(step, metrics)
        if evaluate is not None and due(recipe.evaluation.every, step) and step != last:
            with meter.paused():
                evaluate(step)
    return None if evaluate is None else evaluate(last)


def due(every: int | None, step: int) -> bool:
    """Whether a job that is done every so many steps is due after this one."""
    return every is not None and step % every == 0


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    meter: Meter,
    lr: float,
    batch: StepBatch,
) -> int:
    """One optimizer step over all its micro-batches; returns the tokens this process computed.

    The loss of each micro-batch is a sum. It is divided once, by the comparisons of the whole step on all ranks, and multiplied
    by the number of ranks, since gradient averaging divides by that: the result does not depend on how the step was cut.
    """
    scale, statistics = accelerator.num_processes / batch.comparisons, []
    for number, host_batch in enumerate(batch.micro_batches, start=1):
        micro_batch = host_batch.to(accelerator.device)
        with nullcontext() if number == len(batch.micro_batches) else accelerator.no_sync(model):
            result = compute_objective(recipe.objective, model(micro_batch), micro_batch)
            accelerator.backward(result.loss * scale)
        statistics.append(result.statistics())
    if batch.step == 0:
        check_gradients(model)
    clip = float("inf") if recipe.optimizer.clip is None else recipe.optimizer.clip
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    tokens = sum(micro_batch.tokens for micro_batch in batch.micro_batches)
    meter.add(torch.stack(statistics).sum(0), tokens, grad_norm)
    return tokens


def compute_objective(objective: Objectives, rewards_N: Tensor, batch: MicroBatch) -> Objective:
    """The objective of a recipe on the rewards of a micro-batch."""
    edges = Edges(batch.winner_E, batch.loser_E, batch.margin_E, batch.probability_E, batch.weight_E)
    if isinstance(objective, PlackettLuce):
        return plackett_luce(rewards_N, batch.comparison_N, edges, objective.center_rewards)
    return bradley_terry(rewards_N, edges, objective.center_rewards, objective.label_smoothing)


def check_gradients(model: nn.Module) -> None:
    """Raise RmtrainError when, after the first backward, a trainable parameter has no gradient: it would never train.

    Frozen inputs under gradient checkpointing, or a head left out of the graph, show up here and nowhere else.
    """
    missing = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if missing:
        named = ", ".join(missing[:3])
        raise RmtrainError(f"{len(missing)} trainable parameters got no gradient in the first step, among them {named}")
