"""The run itself: `train` says when, `train_step` says how."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from rmtrain.batching.loader import StepBatch, StepLoader
from rmtrain.engine.checkpoint_manager import CheckpointManager
from rmtrain.engine.memory import retry_on_oom, warmup_largest_batch
from rmtrain.engine.meter import Meter
from rmtrain.engine.optim import learning_rate
from rmtrain.engine.run_log import RunLog
from rmtrain.engine.signals import Stop
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import NumericError, RmtrainError, Stopped
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import Recipe

logger = logging.getLogger("rmtrain")

NAMED_ROWS, MAX_NONFINITE_STEPS = 5, 3


class Evaluation(Protocol):
    """What an evaluation gives: numbers by name."""

    @property
    def summary(self) -> Mapping[str, Any]: ...


Evaluated = TypeVar("Evaluated", bound=Evaluation)


class Display(Protocol):
    """Shows a running run to a person."""

    def step(self, step: int, tokens: int) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def show(self, renderable: Any) -> None: ...


def train(
    recipe: Recipe,
    strategy: Strategy,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: StepLoader,
    meter: Meter,
    log: RunLog,
    display: Display,
    evaluate: Callable[[int], Evaluated] | None,
    saver: CheckpointManager,
    stop: Stop,
) -> Evaluated | None:
    """Train from the step of the saver's state to the last step.

    Args:
        recipe: what to do.
        strategy: how the processes share the model; `model` and `optimizer` are prepared by it.
        loader: every micro-batch of every step, for this rank.
        meter, log, display: where statistics, log lines and what a person sees go.
        evaluate: evaluates and logs at a given step; also called after the last one. None: there is nothing to evaluate on.
        saver: writes checkpoints.
        stop: whether a signal came.

    Returns:
        The last evaluation.

    Raises:
        Stopped: a signal came; a checkpoint is saved.
        NumericError: the gradients of some steps in a row are not finite.
        TryAgain: the disk is full.
    """
    rate, last = learning_rate(recipe.optimizer, len(loader)), len(loader)
    guard = NonFiniteGuard(log)

    def evaluation_is_due(step: int) -> bool:
        return evaluate is not None and step != last and due(recipe.evaluation.every, step)

    def evaluate_at(step: int) -> Evaluated | None:
        if evaluate is None:
            return None
        try:
            with meter.paused():
                evaluation = evaluate(step)
        except Stopped:
            saver.save(step)
            raise
        saver.update_best(step, evaluation.summary)
        return evaluation

    warmup_largest_batch(strategy, model, optimizer, loader)
    if evaluation_is_due(saver.state.step) and saver.state.last_evaluated_step < saver.state.step:
        evaluate_at(saver.state.step)  # the run was stopped between this step and its evaluation
    for number in range(saver.state.step, last):
        lr, step = rate(number), number + 1
        compute = partial(train_step, strategy, model, optimizer, recipe, meter, lr)
        batch, tokens, finite = retry_on_oom(compute, number, strategy, optimizer, loader)
        guard.watch(batch, finite)
        display.step(step, tokens)
        if not meter.is_empty and (due(recipe.tracking.log_every, step) or step in (1, last)):
            metrics = meter.report(step, step / loader.plan.steps_per_epoch, lr)
            log.metrics(step, metrics)
            display.log(step, metrics)
        if step == last or saver.is_due(step):
            saver.save(step)
        saver.save_and_stop_if_signaled(stop, step)
        if evaluation_is_due(step):
            evaluate_at(step)
            saver.save_and_stop_if_signaled(stop, step)
    return evaluate_at(last)


def due(every: int | None, step: int) -> bool:
    """Whether a job that is done every so many steps is due after this one."""
    return every is not None and step % every == 0


def train_step(
    strategy: Strategy,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    meter: Meter,
    lr: float,
    batch: StepBatch,
) -> tuple[StepBatch, int, bool]:
    """One optimizer step over all its micro-batches; returns the tokens this process computed, and whether it was a step.

    It is none where the gradient is not finite.

    The loss of each micro-batch is a sum. It is divided once, by the comparisons of the whole step on all ranks, and multiplied
    by the number of ranks, since gradient averaging divides by that: the result does not depend on how the step was cut.
    """
    accelerator = strategy.accelerator
    scale, statistics = accelerator.num_processes / len(batch.ids), []
    for number, host_batch in enumerate(batch.micro_batches, start=1):
        micro_batch = host_batch.to(accelerator.device)
        with strategy.micro_batch(model, is_last=number == len(batch.micro_batches)):
            result = compute_objective(recipe.objective, model(micro_batch), micro_batch)
            strategy.backward(model, result.loss * scale)
        statistics.append(result.statistics())
    if batch.step == 0:
        check_gradients(strategy, model)
    grad_norm, is_step = strategy.update(model, optimizer, lr, recipe.optimizer.clip)
    tokens = sum(micro_batch.tokens for micro_batch in batch.micro_batches)
    if is_step:
        meter.add(torch.stack(statistics).sum(0), tokens, grad_norm)
    return batch, tokens, is_step


class NonFiniteGuard:
    """Keeps the ledger, and ends a run whose gradients are no longer finite.

    Args:
        log: records the row ids of each step.
    """

    def __init__(self, log: RunLog) -> None:
        self.log, self.in_a_row = log, 0

    def watch(self, batch: StepBatch, finite: bool) -> None:
        """Record a step, and whether its gradient was finite.

        Raises:
            NumericError: the gradient is not finite for the third step in a row.
        """
        step, ids = batch.step + 1, batch.ids
        self.log.rows(step, batch.epoch, ids)
        if finite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.log.not_finite(step, ids)
        named = ", ".join(ids[:NAMED_ROWS]) + (f" and {len(ids) - NAMED_ROWS} more" if len(ids) > NAMED_ROWS else "")
        if self.in_a_row == MAX_NONFINITE_STEPS:
            raise NumericError(
                f"step {step}: the gradient is not finite, {MAX_NONFINITE_STEPS} steps in a row; the weights are as before them. "
                f"Rows: {named} (all in nonfinite.jsonl); lower optimizer.lr, or look at these rows with `rmtrain inspect`"
            )
        logger.warning("step %d: the gradient is not finite, so there was no update; its rows: %s", step, named)


def check_gradients(strategy: Strategy, model: nn.Module) -> None:
    """Raise RmtrainError when, after the first backward, a trainable parameter has no gradient: it would never train.

    Frozen inputs under gradient checkpointing, or a head left out of the graph, show up here and nowhere else.
    """
    missing = strategy.params_without_grad(model)
    if missing:
        named = ", ".join(missing[:3])
        raise RmtrainError(f"{len(missing)} trainable parameters got no gradient in the first step, among them {named}")
