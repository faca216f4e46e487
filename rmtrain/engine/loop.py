"""The training loop: `train` says when, `train_step` says how, and the optimizer and its learning rate are built for both."""

import logging
import math
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import get_scheduler

from rmtrain.batching.plan import StepBatch, StepLoader
from rmtrain.engine.checkpoint_manager import CheckpointManager
from rmtrain.engine.distributed import any_rank
from rmtrain.engine.memory import retry_on_oom, warmup_largest_batch
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.run_log import Meter, RunLog
from rmtrain.engine.state_dict import gathered, shape_of
from rmtrain.engine.strategy import LR_SCALE, Outcome, Strategy
from rmtrain.errors import NumericError, RecipeError, RmtrainError, Stopped
from rmtrain.evaluation.metrics import EvaluationResult
from rmtrain.model.classifier import head_of
from rmtrain.model.reward_model import unwrap
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import Objectives, Optimizer, Recipe, Training

logger = logging.getLogger("rmtrain")

NAMED_ROWS, MAX_NONFINITE_STEPS = 5, 3


def train(
    recipe: Recipe,
    objective: Objectives,
    strategy: Strategy,
    loader: StepLoader,
    meter: Meter,
    log: RunLog,
    evaluate: Callable[[int], EvaluationResult | None] | None,
    checkpoints: CheckpointManager,
    shutdown: GracefulShutdown,
) -> EvaluationResult | None:
    """Train from the step of `checkpoints.state` to the last step.

    Args:
        objective: that of the recipe, with what it takes from the training data.
        strategy: has prepared the model and the optimizer.
        loader: every micro-batch of every step, for this rank.
        meter: statistics of the steps since the last log line.
        evaluate: evaluates and logs at a given step; called last after the last step. It returns None, and this is None, without
            evaluation data; on benchmarks it may evaluate all the same.

    Returns:
        The last evaluation. With `evaluation.early_stopping`, its step, that of `checkpoints.state`, may be before the last one.

    Raises:
        Stopped: a signal was received; a checkpoint is saved.
        NumericError: the gradients of several steps in a row are not finite.
        TryAgain: the disk is full.
    """
    rate, last = learning_rate(recipe.optimizer, len(loader)), len(loader)

    def evaluation_is_due(step: int) -> bool:
        due = is_due(recipe.evaluation.every, step) if step else recipe.evaluation.on_start
        return evaluate is not None and step != last and due

    def evaluate_at(step: int) -> EvaluationResult | None:
        if evaluate is None:
            return None
        try:
            with meter.paused():
                evaluation = evaluate(step)
        except Stopped:
            checkpoints.save(step)
            raise
        checkpoints.record_evaluation(step, {} if evaluation is None else evaluation.summary)
        return evaluation

    warmup_largest_batch(strategy, loader, balance=objective.router_balance is not None)
    state = checkpoints.state
    evaluation = None
    if evaluation_is_due(state.step) and state.last_evaluated_step < state.step:
        evaluation = evaluate_at(state.step)  # the first step is to come, or the run was stopped before this evaluation

    nonfinite = 0
    for number in takewhile(lambda _: not checkpoints.ends_early, range(state.step, last)):
        lr, step = rate(number), number + 1
        result = retry_on_overflow(partial(train_step, strategy, objective, meter, lr), number, strategy, loader)
        nonfinite = record_rows(step, result, nonfinite, log)
        log.step(step, result.tokens)

        if not meter.is_empty and (is_due(recipe.tracking.log_every, step) or step in (1, last)):
            log.train_metrics(step, meter.report(step, step / loader.plan.steps_per_epoch, lr))
        if step == last or checkpoints.is_due(step):
            checkpoints.save(step)
        checkpoints.save_and_stop_if_signaled(shutdown, step)
        if evaluation_is_due(step):
            evaluation = evaluate_at(step)
            checkpoints.save_and_stop_if_signaled(shutdown, step)
    return evaluation if checkpoints.ends_early else evaluate_at(last)


def is_due(every: int | None, step: int) -> bool:
    """Return whether something that happens every `every` steps happens after this one."""
    return every is not None and step % every == 0


class StepResult(NamedTuple):
    """The result of one optimizer step: `tokens` counts those of this process; without an update, the weights are unchanged."""

    batch: StepBatch
    tokens: int
    outcome: Outcome


def retry_on_overflow(
    compute: Callable[[StepBatch], StepResult], number: int, strategy: Strategy, loader: StepLoader
) -> StepResult:
    """Compute a step; where its scaled gradient is beyond float16, which has halved the scale, compute the same step again.

    Skipping it instead, as is usual, would leave out its rows. It ends: where the scale is 1, the gradient counts as not finite.
    """
    while (result := retry_on_oom(compute, number, strategy, loader)).outcome == "overflowed":
        scale = strategy.scaler.get_scale()
        logger.info("step %d: a gradient is beyond float16; computing the step again with loss scale %g", number + 1, scale)
    return result


def train_step(strategy: Strategy, objective: Objectives, meter: Meter, lr: float, batch: StepBatch) -> StepResult:
    """Compute one optimizer step over all its micro-batches.

    The loss of each micro-batch is a sum. It is divided once, by the comparisons of the whole step on all ranks, and multiplied
    by the number of ranks, since gradient averaging divides by that: the result does not depend on how the step was split. Only
    `objective.router_balance` does, as everywhere in the field: it is a product of two means over the tokens of a micro-batch, which counts
    by its share of the comparisons.
    """
    accelerator, coefficient = strategy.accelerator, objective.router_balance
    scale, statistics, balances = accelerator.num_processes / len(batch.ids), [], []
    for number, host_batch in enumerate(batch.micro_batches, start=1):
        micro_batch = host_batch.to(accelerator.device)
        with strategy.micro_batch(is_last=number == len(batch.micro_batches)):
            if coefficient is None:
                result = compute_objective(objective, strategy.model(micro_batch), micro_batch)
                loss = result.loss
            else:
                rewards_N, balance = strategy.model(micro_batch, balance=True)
                result = compute_objective(objective, rewards_N, micro_batch)
                balance = balance * result.comparisons
                loss = result.loss + coefficient * balance
                balances.append(balance.detach())
            strategy.backward(loss * scale)
        statistics.append(result.statistics())
    if batch.step == 0:
        check_gradients(strategy)
    grad_norm, outcome = strategy.update(lr)
    sums, tokens = torch.stack(statistics).sum(0), sum(micro_batch.tokens for micro_batch in batch.micro_batches)
    if outcome == "updated":
        meter.add(sums, tokens, len(batch.ids), grad_norm, torch.stack(balances).sum() if balances else None)
    elif outcome == "overflowed" and any_rank(accelerator, not bool(torch.isfinite(sums).all())):
        outcome = "not_finite"  # rewards or the loss are: no factor of the loss mends that
    return StepResult(batch, tokens, outcome)


def record_rows(step: int, result: StepResult, before: int, log: RunLog) -> int:
    """Record the rows of a step; return how many steps in a row, of which `before` came before this one, were not finite.

    Raises:
        NumericError: this is the third one.
    """
    ids = result.batch.ids
    log.rows(step, result.batch.epoch, ids)
    if result.outcome == "updated":
        return 0
    log.not_finite(step, ids)
    named = ", ".join(ids[:NAMED_ROWS]) + (f" and {len(ids) - NAMED_ROWS} more" if len(ids) > NAMED_ROWS else "")
    if before + 1 == MAX_NONFINITE_STEPS:
        raise NumericError(
            f"step {step}: gradient not finite, {MAX_NONFINITE_STEPS} steps in a row; the weights are unchanged since then. "
            f"Lower optimizer.lr, or look at the rows with `rmtrain inspect`: {named} (all are in nonfinite.jsonl)"
        )
    logger.warning("step %d: gradient not finite, update skipped; rows: %s", step, named)
    return before + 1


def check_gradients(strategy: Strategy) -> None:
    """Raise RmtrainError if a trainable parameter has no gradient after the first backward: it would never train.

    Frozen inputs under gradient checkpointing, or a head left out of the graph, show up here and nowhere else.
    """
    missing = strategy.params_without_grad()
    if missing:
        named = ", ".join(missing[:3])
        raise RmtrainError(f"{len(missing)} trainable parameters got no gradient in the first step, such as {named}")


def build_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; weight decay applies to matrices, not to vectors (biases, norms).

    With `head_lr`, the score head of a RewardModel has parameter groups of its own.

    Raises:
        RecipeError: `adamw_8bit` is requested without bitsandbytes.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head: list[nn.Parameter] = []
    if optimizer.head_lr is not None:
        reward_model = unwrap(model)
        head = list(head_of(reward_model.backbone, reward_model.head).parameters())
    rest = [parameter for parameter in trainable if all(parameter is not other for other in head)]
    groups: list[dict[str, Any]] = []
    for parameters, scale in ((rest, 1.0), (head, (optimizer.head_lr or optimizer.lr) / optimizer.lr)):
        is_matrix = [len(shape_of(parameter)) >= 2 for parameter in parameters]
        matrices, vectors = (
            [p for p, flag in zip(parameters, is_matrix, strict=True) if flag == wanted] for wanted in (True, False)
        )
        groups.append({"params": matrices, "weight_decay": optimizer.weight_decay, LR_SCALE: scale})
        groups.append({"params": vectors, "weight_decay": 0.0, LR_SCALE: scale})
    groups = [group for group in groups if group["params"]]
    if optimizer.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise RecipeError("optimizer.name: adamw_8bit needs bitsandbytes; install rmtrain[8bit] or use adamw") from None
        return AdamW8bit(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)  # type: ignore[no-any-return]
    # Also on a CPU, where shards are that are offloaded: unfused, a step of 135 million weights takes 2.0 s in place of 0.26.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=fused or None)


def warn_of_lost_updates(model: nn.Module, training: Training, lr: float) -> None:
    """Warn of the share of bfloat16 weights that a step cannot change: AdamW moves a weight by about `lr`, which may round to nothing."""
    weights = [p for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16]
    if training.allow_bfloat16_weights and weights:
        movable = total = 0
        for weight in weights:
            with gathered(weight) as whole:
                movable, total = movable + int(((whole + lr) != whole).sum()), total + whole.numel()
        lost = 100 * (1 - movable / total)
        logger.warning("trainable weights are bfloat16: a step of %g is lost to rounding in %.1f %% of them", lr, lost)


def learning_rate(optimizer: Optimizer, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0, by transformers' schedule of that name.

    A schedule that is stepped would have to be saved, restored and kept from accelerate, which steps it once per process.

    Raises:
        RecipeError: warm-up and decay take more steps than the run has.
    """
    warmup, decay = (
        math.ceil(length * total_steps) if length < 1 else int(length) for length in (optimizer.warmup, optimizer.decay or 0)
    )
    if optimizer.decay is not None and optimizer.decay < 1:
        decay = min(decay, total_steps - warmup)  # both shares are rounded up
    if warmup + decay > total_steps:
        key, parts = (
            ("decay", f"warm-up ({warmup}) and decay ({decay}) have") if decay else ("warmup", f"the warm-up ({warmup}) has")
        )
        raise RecipeError(f"optimizer.{key}: {parts} more steps than the run ({total_steps}); set fewer, or train longer")
    lr, min_lr = optimizer.lr, optimizer.min_lr
    name, settings = {
        "constant": ("constant_with_warmup", {}),
        "linear": ("linear", {}) if min_lr is None else ("polynomial", {"lr_end": min_lr, "power": 1.0}),
        "cosine": ("cosine", {}) if min_lr is None else ("cosine_with_min_lr", {"min_lr": min_lr}),
        "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": optimizer.cycles}),
        "warmup_stable_decay": ("warmup_stable_decay", {"num_decay_steps": decay, "min_lr_ratio": (min_lr or 0.0) / lr}),
    }.get(optimizer.schedule, (optimizer.schedule, {}))
    placeholder = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    (factor,) = get_scheduler(name, placeholder, warmup, total_steps, settings).lr_lambdas
    return lambda step: lr * float(factor(step))
