"""When a run saves, what it saves, and how it resumes."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from rmtrain.engine.checkpoint import Checkpoint
from rmtrain.engine.distributed import any_rank, run_on_main
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.run_check import LENGTH
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Meter
from rmtrain.engine.state_dict import restore_rng, rng_tensors
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError
from rmtrain.recipe.schema import LOWER_IS_BETTER, Checkpointing, EarlyStopping

logger = logging.getLogger("rmtrain")


@dataclass
class TrainState:
    """The progress of a run, stored in each checkpoint next to its tensors.

    step: optimizer steps that are done.
    last_evaluated_step: the last step whose evaluation is done; -1: none. One that was due later comes first when the run is resumed.
    best_step, best_value: the best evaluation by `checkpoints.best`.
    stopping_value, not_improved: the best value by `evaluation.early_stopping`, and the number of evaluations since then.
    """

    step: int = 0
    last_evaluated_step: int = -1
    best_step: int | None = None
    best_value: float | None = None
    stopping_value: float | None = None
    not_improved: int = 0


@dataclass
class CheckpointManager:
    """Saves the checkpoints of a run, and resumes it from one. Its methods are called on all ranks; the main process writes.

    meter: its open log interval is saved as well.
    plan: everything that the order of the comparisons depends on; checkpoints with another plan or other frozen weights are refused.
    early_stopping: when evaluations end the run; `ends_early` says that one has.
    """

    strategy: Strategy
    meter: Meter
    directory: RunDirectory
    settings: Checkpointing
    plan: Mapping[str, Any]
    early_stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        self.accelerator, self.checkpoints = self.strategy.accelerator, self.directory.checkpoints
        self.state, self.last_save_time = TrainState(), time.monotonic()
        self.resumed_from: int | None = None
        self.saved_step: int | None = None
        self.ends_early = False

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step, the same on every rank."""
        by_steps = self.settings.every is not None and step % self.settings.every == 0
        if self.settings.minutes is None:
            return by_steps
        by_time = time.monotonic() - self.last_save_time >= 60 * self.settings.minutes
        # Clocks differ between ranks, and all must save together: the main one decides.
        return any_rank(self.accelerator, by_time and self.accelerator.is_main_process) or by_steps

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, unless it exists, and delete those that need not be kept; raise TryAgain on a full disk."""
        if step == self.saved_step:
            return
        self.state.step = step
        generators, interval = gather_object([rng_tensors(self.accelerator.device)]), self.meter.state()
        # Weights first: that re-shards what an evaluation left gathered, and the optimizer's parameters are the shards.
        files = {"model": self.strategy.weights(), "optimizer": self.strategy.optimizer_state()}
        files |= {f"rng-{rank}": state for rank, state in enumerate(generators)}
        state = {
            "train_state": asdict(self.state),
            "plan": dict(self.plan),
            "processes": self.accelerator.num_processes,
            "strategy": self.strategy.name,
            "frozen": self.strategy.frozen,
            "meter": interval,
            "loss_scale": self.strategy.scaler.state_dict(),
        }

        def write() -> None:
            self.directory.sync()  # a checkpoint must never be newer than the records of its steps
            self.checkpoints.save(step, files, state)
            protected = (step, self.state.best_step, self.resumed_from)
            self.checkpoints.rotate(self.settings.keep, {step for step in protected if step is not None})

        run_on_main(self.accelerator, write)
        self.saved_step, self.last_save_time = step, time.monotonic()

    def save_and_stop_if_signaled(self, stop: GracefulShutdown, step: int) -> None:
        """If any process received a signal, save and raise Stopped."""
        if stop.requested():
            self.save(step)
            stop.stop()

    def record_evaluation(self, step: int, summary: Mapping[str, Any]) -> None:
        """Note that a step was evaluated. If its evaluation is the best so far, or ends the run early, its weights are saved.

        The evaluation before the first step is a reference, and decides nothing.
        """
        state, stopping, metric = self.state, self.early_stopping, self.settings.best
        if step and stopping is not None and (value := summary[stopping.metric]) is not None:
            improves = is_better(stopping.metric, value, state.stopping_value)
            not_improved = 0 if improves else state.not_improved + 1
            self.ends_early = not_improved >= stopping.patience
            if self.ends_early:
                self.save(step)  # with the state before this evaluation: a run resumed from here repeats it, and ends again
            state.stopping_value, state.not_improved = value if improves else state.stopping_value, not_improved
        state.last_evaluated_step = step
        if step and metric is not None and (value := summary[metric]) is not None and is_better(metric, value, state.best_value):
            state.best_step, state.best_value = step, value
            self.save(step)

    def check_room(self, moments: float) -> None:
        """Raise TryAgain unless the disk has room for a checkpoint: the weights, and `moments` times as much for the optimizer."""
        run_on_main(self.accelerator, partial(self.checkpoints.check_room, int(self.strategy.trained_bytes * (1 + moments))))

    def resume(self, chosen: Path | None = None) -> None:
        """Resume from the chosen checkpoint, or from the newest valid one, or start from step 0 when there is none.

        Records of later steps are cut off, later checkpoints renamed.

        Raises:
            CheckpointError: none is valid, or it does not match this run, model, optimizer or plan.
        """
        find = self.checkpoints.newest if chosen is None else partial(self.checkpoints.read, chosen)
        checkpoint = run_on_main(self.accelerator, find)
        if checkpoint is not None:
            self._restore(checkpoint)
            self.resumed_from = self.saved_step = checkpoint.step

        def rewind() -> None:
            if checkpoint is None:
                logger.info("no checkpoint found in %s; starting from step 0", self.directory.path)
            else:
                logger.info("resuming from step %d (%s)", checkpoint.step, checkpoint.path)
                self.checkpoints.set_aside_after(checkpoint.step)
            self.directory.rewind(self.state.step, self.state.last_evaluated_step)

        run_on_main(self.accelerator, rewind)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        try:
            plan, processes = state["plan"], state["processes"]
            # Another length is decided earlier, see `checkpoint_of_other_length`.
            order = {key: now for key, now in self.plan.items() if f"training.{key}" not in LENGTH}
            changed = [f"{key} was {plan.get(key)}, is {now}" for key, now in order.items() if plan.get(key) != now]
            if changed:
                raise CheckpointError(f"made with other data or in another order: {', '.join(changed)}; --fresh starts over")
            check_frozen(state, self.strategy.frozen)
            self.strategy.restore_weights(checkpoint.tensors("model"))
            self.strategy.restore_optimizer(checkpoint.tensors("optimizer"))
            if self.accelerator.process_index < processes:
                restore_rng(self.accelerator.device, checkpoint.tensors(f"rng-{self.accelerator.process_index}"))
            self.meter.restore(state["meter"])
            if loss_scale := state.get("loss_scale"):  # of a run in float16
                self.strategy.scaler.load_state_dict(loss_scale)
            self.state = TrainState(**state["train_state"])
        except CheckpointError as error:
            raise CheckpointError(*(f"{checkpoint.path}: {problem}" for problem in error.problems)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint.path / 'state.json'}: not the state of a run: {error}") from error
        running = self.accelerator.num_processes
        if processes != running and self.accelerator.is_main_process:
            change = "data order is unchanged, dropout masks will differ"
            logger.warning("checkpoint was saved with %d processes, now running %d: %s", processes, running, change)

    def load_best(self) -> int | None:
        """Load the weights of the best evaluation; return its step, or None if they are the current ones.

        Raises:
            CheckpointError: their checkpoint is missing or damaged.
        """
        best = self.state.best_step
        if best is None or best == self.state.step:
            return None
        try:
            checkpoint = run_on_main(self.accelerator, partial(self.checkpoints.read, self.checkpoints.path(best)))
            self.strategy.restore_weights(checkpoint.tensors("model"))
        except CheckpointError as error:
            advice = "set checkpoints.load_best_at_end: false to export the last weights instead; they are saved"
            raise CheckpointError(*error.problems, advice) from error
        return best


def check_frozen(state: Mapping[str, Any], frozen: str | None) -> None:
    """Raise CheckpointError when the state of a checkpoint names other frozen weights than those with this fingerprint."""
    if state["frozen"] != frozen:
        raise CheckpointError("the frozen weights of the base model have changed; use the same base model")


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Return whether a value of an evaluation metric is better than the best one so far."""
    return best is None or (value < best if metric in LOWER_IS_BETTER else value > best)
