"""When a run saves, what it saves, and how it goes on from there."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import gather_object
from torch import nn

from rmtrain.engine.checkpoint import Checkpoint, size_of
from rmtrain.engine.distributed import any_rank, run_on_main
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import Meter
from rmtrain.engine.signals import GracefulShutdown
from rmtrain.engine.state_dict import Tensors, frozen_fingerprint, restore_rng, rng_tensors, trained_parameters
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import CheckpointError
from rmtrain.recipe.schema import LOWER_IS_BETTER, Checkpointing

logger = logging.getLogger("rmtrain")


@dataclass
class TrainState:
    """Where a run is, beside its tensors.

    step: optimizer steps that are done.
    evaluated: whether the evaluation that is due after this step is done.
    best_step, best_value: of the evaluation that was best by `checkpoints.best`.
    """

    step: int = 0
    evaluated: bool = True
    best_step: int | None = None
    best_value: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """What a checkpoint is of, noted while the model is whole.

    trained: bytes of the trained weights. frozen: the fingerprint of the others. plan: what the order of the comparisons depends on.
    """

    trained: int
    frozen: str | None
    plan: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, plan: Mapping[str, Any]) -> Self:
        """Of a model that is not prepared yet."""
        return cls(size_of(trained_parameters(model)), frozen_fingerprint(model), plan)


class CheckpointManager:
    """The checkpoints of a running run.

    Args:
        strategy: how the processes share the model; the main one writes.
        model, optimizer: prepared.
        meter: its open interval is saved, too.
        directory: of the run.
        settings: when to save, and what to keep.
        contents: what a checkpoint is of; one of another plan or other frozen weights is refused.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        meter: Meter,
        directory: RunDirectory,
        settings: Checkpointing,
        contents: CheckpointMetadata,
    ) -> None:
        self.strategy, self.accelerator = strategy, strategy.accelerator
        self.model, self.optimizer, self.meter = model, optimizer, meter
        self.directory, self.checkpoints, self.settings, self.contents = directory, directory.checkpoints, settings, contents
        self.position = TrainState()
        self.resumed_from: int | None = None
        self.saved_step: int | None = None
        self.since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after this step. Called on all ranks, which are told what the main process finds."""
        settings = self.settings
        by_steps = settings.every is not None and step % settings.every == 0
        by_time = settings.minutes is not None and time.monotonic() - self.since >= 60 * settings.minutes
        if settings.minutes is None:
            return by_steps
        return any_rank(self.accelerator, by_time and self.accelerator.is_main_process) or by_steps

    def save(self, step: int, evaluated: bool) -> None:
        """Write a checkpoint after this step, unless there is one, and delete those that are not to be kept. Called on all ranks.

        Args:
            step: steps that are done.
            evaluated: whether the evaluation that is due after it is done; if not, it comes first when the run is resumed.

        Raises:
            TryAgain: the disk is full.
        """
        if step == self.saved_step:
            return
        self.position.step, self.position.evaluated = step, evaluated
        generators, interval = gather_object([rng_tensors(self.accelerator.device)]), self.meter.state()
        weights, moments, values = self.strategy.state(self.model, self.optimizer)
        files = {"model": weights, "optimizer": moments, **{f"rng-{rank}": state for rank, state in enumerate(generators)}}
        state = {
            "position": asdict(self.position),
            "plan": dict(self.contents.plan),
            "processes": self.accelerator.num_processes,
            "strategy": self.strategy.name,
            "frozen": self.contents.frozen,
            "meter": interval,
            "optimizer": values,
        }
        run_on_main(self.accelerator, partial(self._write, files, state))
        self.saved_step, self.since = step, time.monotonic()

    def end_if_asked(self, stop: GracefulShutdown, step: int, evaluated: bool) -> None:
        """Where a signal came to any process, save as `save` does, then raise Stopped. Called on all ranks."""
        if stop.requested():
            self.save(step, evaluated)
            stop.stop()

    def note_evaluation(self, step: int, summary: Mapping[str, Any]) -> None:
        """After an evaluation: when it is the best so far, keep the weights that it is of. Called on all ranks."""
        metric, position = self.settings.best, self.position
        value = None if metric is None else summary[metric]
        if metric is None or value is None or not _is_better(metric, value, position.best_value):
            return
        position.best_step, position.best_value = step, value
        self.save(step, evaluated=True)

    def resume(self, chosen: Path | None = None) -> None:
        """Go on from a checkpoint, the newest that is undamaged unless one is chosen; from the beginning where there is none.

        Records and checkpoints of what came after it are put out of the way. Called on all ranks.

        Raises:
            CheckpointError: none can be used, or the chosen one is not of this run, this model, this optimizer or this plan.
        """
        find = self.checkpoints.newest if chosen is None else partial(self.checkpoints.read, chosen)
        found = run_on_main(self.accelerator, find)
        if found is not None:
            self._restore(found)
            self.resumed_from = self.saved_step = found.step
        run_on_main(self.accelerator, partial(self._forget_what_came_after, found))

    def check_room(self, moments: float) -> None:
        """Before the first step, see whether a checkpoint will fit: the weights, and `moments` times as much for the optimizer.

        Raises:
            TryAgain: it will not.
        """
        run_on_main(self.accelerator, partial(self.checkpoints.check_room, int(self.contents.trained * (1 + moments))))

    def load_best(self) -> int | None:
        """Put the weights of the best evaluation back; returns its step, None when they are those in memory already.

        Raises:
            CheckpointError: their checkpoint is missing or damaged.
        """
        best = self.position.best_step
        if best is None or best == self.position.step:
            return None
        try:
            found = run_on_main(self.accelerator, partial(self.checkpoints.read, self.checkpoints.path(best)))
            self.strategy.restore_weights(self.model, found.tensors("model"))
        except CheckpointError as error:
            advice = "the last weights are saved; set checkpoints.load_best_at_end: false to export those"
            raise CheckpointError(*error.problems, advice) from error
        return best

    def _write(self, files: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        self.directory.sync()
        self.checkpoints.save(self.position.step, files, state)
        protected = (self.position.step, self.position.best_step, self.resumed_from)
        self.checkpoints.rotate(self.settings.keep, {number for number in protected if number is not None})

    def _forget_what_came_after(self, found: Checkpoint | None) -> None:
        if found is None:
            logger.info("no checkpoint was saved yet; beginning anew in %s", self.directory.path)
        else:
            logger.info("going on after step %d, from %s", found.step, found.path)
            self.checkpoints.set_aside_after(found.step)
        self.directory.rewind(self.position.step, self.position.evaluated)

    def _restore(self, found: Checkpoint) -> None:
        try:
            self._check_origin(found.state)
            self.strategy.restore_weights(self.model, found.tensors("model"))
            self.strategy.restore_optimizer(self.optimizer, self.model, found.tensors("optimizer"), found.state["optimizer"])
            self._restore_rng(found)
            self.meter.restore(found.state["meter"])
            self.position = TrainState(**found.state["position"])
        except CheckpointError as error:
            raise CheckpointError(*(f"{found.path}: {problem}" for problem in error.problems)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{found.path / 'state.json'}: not the state of a run: {error}") from error

    def _check_origin(self, state: Mapping[str, Any]) -> None:
        before = state["plan"]
        different = [
            f"{key} was {before.get(key)}, is {value}" for key, value in self.contents.plan.items() if before.get(key) != value
        ]
        if different:
            raise CheckpointError(f"it is of other training data or another order: {', '.join(different)}")
        if state["frozen"] != self.contents.frozen:
            raise CheckpointError("the frozen weights of the base model are not those it was trained on")

    def _restore_rng(self, found: Checkpoint) -> None:
        before, now, rank = found.state["processes"], self.accelerator.num_processes, self.accelerator.process_index
        if before != now and self.accelerator.is_main_process:
            logger.warning(
                "the checkpoint is of %d processes, there are %d now: same order and losses within rounding, other dropout masks",
                before,
                now,
            )
        if rank < before:
            restore_rng(self.accelerator.device, found.tensors(f"rng-{rank}"))


def _is_better(metric: str, value: float, best: float | None) -> bool:
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best
