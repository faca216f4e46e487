"""The numbers of a run: summed by `Meter`, written to the run directory by `RunLog`, and copied to wandb and the like by `Trackers`.

Trackers can fail, hang or fall behind, and never stop a run: `metrics.jsonl` has every line. All calls to them run in one thread with a
bounded queue. When it is full, calls are dropped. Each tracker's first failure is reported once, and does not affect the others.
"""

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import MLflowTracker, SwanLabTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rmtrain.engine.rank import TRACKERS_THREAD
from rmtrain.engine.run_check import flat
from rmtrain.engine.run_dir import RunDirectory, disk_errors
from rmtrain.errors import NumericError
from rmtrain.objective import Objective
from rmtrain.recipe.schema import Recipe
from rmtrain.redact import redact

logger = logging.getLogger("rmtrain")

WAITING_CALLS = 1000
SECONDS_AT_END = 15.0
SAMPLES = "eval/samples"
COLUMNS = ("id", "source", "prompt", "chosen", "rejected", "reward_chosen", "reward_rejected", "margin")

PROJECTS = {
    "wandb": "WANDB_PROJECT",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "trackio": "TRACKIO_PROJECT",
    "swanlab": "SWANLAB_PROJ_NAME",
}
"""Variables of the environment that name a tracker's project."""

Tracker = Any
"""One of accelerate's trackers, such as a WandBTracker."""
Draw = Callable[[], Figure]


class Meter:
    """Sums over the steps since the last log line, reduced over ranks where they are read.

    Statistics stay tensors on the device: reading one waits for the GPU, and only `report` pays for that.

    Args:
        flos_per_token: floating-point operations of one token, forward and backward.
    """

    def __init__(self, accelerator: Accelerator, flos_per_token: int) -> None:
        self.accelerator, self.flos_per_token = accelerator, flos_per_token
        self.total_tokens = 0
        self.started, self.seconds_before = time.perf_counter(), 0.0
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(len(Objective._fields), device=self.accelerator.device)
        self.balance: Tensor | None = None
        self.grad_norm: Tensor | None = None
        self.tokens, self.comparisons, self.since = 0, 0, time.perf_counter()

    @property
    def is_empty(self) -> bool:
        """Whether no step was added since the last report."""
        return self.grad_norm is None

    @property
    def runtime(self) -> float:
        """Seconds that the run has taken until now, evaluations and checkpoints included, over all starts that led here."""
        return self.seconds_before + time.perf_counter() - self.started

    def add(self, statistics: Tensor, tokens: int, comparisons: int, grad_norm: Tensor, balance: Tensor | None = None) -> None:
        """Add one step: the sums over its micro-batches, as `Objective.statistics` gives them, and its gradient norm.

        `tokens` are those of this rank, `comparisons` the number on all ranks.
        `balance` is the balancing loss of the routers, if it trains, as a sum over comparisons.
        """
        self.sums += statistics
        if balance is not None:
            self.balance = balance if self.balance is None else self.balance + balance
        self.tokens += tokens
        self.comparisons += comparisons
        self.grad_norm = grad_norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block, such as an evaluation, from the throughput."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def report(self, step: int, epoch: float, learning_rate: float) -> dict[str, float]:
        """Return means since the last report under the seed's names, reduced over ranks, and start a new interval.

        Raises:
            NumericError: the loss or the gradient norm of the interval is not finite.
        """
        assert self.grad_norm is not None, "no step since the last report"
        balance = self.sums.new_zeros(()) if self.balance is None else self.balance
        counted = torch.stack(
            [*self.sums.double(), balance.double(), torch.tensor(self.tokens, device=self.sums.device).double()]
        )
        *sums, balances, tokens = self.accelerator.reduce(counted, reduction="sum").tolist()
        seconds = time.perf_counter() - self.since
        total = dict(zip(Objective._fields, sums, strict=True))
        comparisons, compared = total["comparisons"], total["preferences"]
        self.total_tokens += int(tokens)
        of_preferences = {
            "train/accuracy": total["correct"],
            "train/margin": total["margin"],
            "train/chosen_reward": total["winner_reward"],
            "train/rejected_reward": total["loser_reward"],
        }
        metrics = {
            "train/loss": total["loss"] / comparisons,
            **({name: value / compared for name, value in of_preferences.items()} if compared else {}),
            **({} if self.balance is None else {"train/router_balance": balances / comparisons}),
            "train/grad_norm": float(self.grad_norm),
            "train/learning_rate": learning_rate,
            "train/epoch": epoch,
            "train/global_step": step,
            "train/runtime": self.runtime,
            "train/tokens_per_second": tokens / seconds,
            "train/comparisons_per_second": self.comparisons / seconds,
            "total_flos": float(self.total_tokens * self.flos_per_token),
        }
        self._reset()
        check_finite(step, metrics)
        return metrics

    def state(self) -> dict[str, Any]:
        """Return the open interval, summed over ranks, as JSON values for a checkpoint. Called on all ranks."""
        tokens = torch.tensor(self.tokens, device=self.sums.device)
        balance = None if self.balance is None else float(self.accelerator.reduce(self.balance.clone(), reduction="sum"))
        return {
            "sums": self.accelerator.reduce(self.sums.clone(), reduction="sum").tolist(),
            "balance": balance,
            "tokens": int(self.accelerator.reduce(tokens, reduction="sum").item()),
            "comparisons": self.comparisons,
            "total_tokens": self.total_tokens,
            "runtime": self.runtime,
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the open log interval of a checkpoint; rank 0 takes the sums of all ranks."""
        self._reset()
        self.total_tokens, self.comparisons = state["total_tokens"], state["comparisons"]
        self.seconds_before = state.get("runtime", 0.0)  # checkpoints of older versions have none
        if state["grad_norm"] is not None:
            self.grad_norm = torch.tensor(state["grad_norm"], device=self.sums.device)
        if state.get("balance") is not None:  # checkpoints of older versions have none
            is_main = self.accelerator.is_main_process
            self.balance = torch.tensor(state["balance"] if is_main else 0.0, device=self.sums.device)
        if self.accelerator.is_main_process:
            self.sums += torch.tensor(state["sums"], device=self.sums.device)
            self.tokens = state["tokens"]


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise NumericError when a metric is not finite: the weights are lost by then, and more steps would only hide it."""
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NumericError(f"step {step}: {', '.join(bad)}; lower optimizer.lr, or look for extreme rows with `rmtrain inspect`")


class Trackers:
    """Calls trackers, one call after the other, in a thread of its own.

    Args:
        builders: functions that make the trackers, by name. A tracker that cannot be made or started is sent nothing.
        settings: the recipe, by `section.key`.
        seconds: how long `close` waits at most for unsent calls.
    """

    def __init__(
        self, builders: Mapping[str, Callable[[], Tracker]], settings: Mapping[str, Any], seconds: float = SECONDS_AT_END
    ) -> None:
        self.builders, self.settings, self.seconds = builders, settings, seconds
        self.calls: queue.Queue[Callable[[Tracker], Any] | None] = queue.Queue(WAITING_CALLS)
        self.warned_about: set[str] = set()
        self.is_given_up = False
        self.thread = threading.Thread(target=self._work, name=TRACKERS_THREAD, daemon=True)
        self.thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the metrics of a step for every tracker."""
        values = dict(metrics)
        self.each(lambda tracker: tracker.log(values, step=step))

    def each(self, call: Callable[[Tracker], Any]) -> None:
        """Queue a call, such as of `send_samples`, for every tracker."""
        if not self.thread.is_alive():
            return
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self._warn("", "trackers are slower than the run; some lines are not sent")

    def close(self) -> None:
        """Wait up to `seconds` for the queued calls, then give up."""
        deadline = time.monotonic() + self.seconds
        try:
            if self.thread.is_alive():
                self.calls.put(None, timeout=self.seconds)
                self.thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self.thread.is_alive():
            self.is_given_up = True
            self._warn("", f"no end after {self.seconds:g} s; some lines may not be sent")

    def _work(self) -> None:
        def start(build: Callable[[], Tracker]) -> Tracker:
            tracker = build()
            tracker.start()
            tracker.store_init_configuration(dict(self.settings))
            return tracker

        started = {name: self._try(name, partial(start, build)) for name, build in self.builders.items()}
        running = {name: tracker for name, tracker in started.items() if tracker is not None}
        while running and not self.is_given_up and (call := self.calls.get()) is not None:
            for name, tracker in running.items():
                self._try(name, partial(call, tracker))
        for name, tracker in running.items():
            self._try(name, tracker.finish)

    def _try(self, name: str, call: Callable[[], Any]) -> Any:
        """Return the result of a call into a tracker's library, or None if it raises."""
        try:
            return call()
        except Exception as error:  # broad on purpose: it is their code, over their network
            message = " ".join(f"{type(error).__name__}: {redact(str(error))}".split())
            self._warn(name, f"{name}: {message.rstrip('.')}")
            return None

    def _warn(self, subject: str, problem: str) -> None:
        if subject not in self.warned_about:
            self.warned_about.add(subject)
            logger.warning("trackers: %s. Training continues, and metrics.jsonl has every line", problem)


@contextmanager
def start_trackers(accelerator: Accelerator, recipe: Recipe, directory: RunDirectory) -> Iterator[Trackers | None]:
    """Start the recipe's trackers on rank 0, with its settings as `section.key`, and close them at the end; None if there are none.

    wandb, trackio and swanlab continue the run that they had before.
    """
    if not recipe.tracking.to or not accelerator.is_main_process:
        yield None
        return
    builders: dict[str, Any] = {name: partial(build_tracker, name, recipe, directory) for name in recipe.tracking.to}
    settings = {key: value if isinstance(value, str | int | float) else str(value) for key, value in flat(recipe.model_dump())}
    trackers = Trackers(builders, settings)
    try:
        yield trackers
    finally:
        trackers.close()


def build_tracker(name: str, recipe: Recipe, directory: RunDirectory) -> Tracker:
    """Return a tracker of accelerate; variables of the environment have the meaning that its users know.

    `tracking.project` comes before the variable of the project. Names and ids of a run in the environment come before those of the run
    directory: they are set for one run, as by a sweep.
    """
    variables, run, project = os.environ, recipe.run.name, recipe.tracking.project
    if name == "mlflow" and project is None and "MLFLOW_EXPERIMENT_NAME" not in variables and "MLFLOW_EXPERIMENT_ID" in variables:
        project = import_module("mlflow").get_experiment(variables["MLFLOW_EXPERIMENT_ID"]).name
    variable = {"wandb": "WANDB", "swanlab": "SWANLAB"}.get(name, "")
    own_id = {} if f"{variable}_RUN_ID" in variables else {"id": directory.run_id}
    resume = variables.get(f"{variable}_RESUME") or "allow"
    chosen = project or variables.get(PROJECTS.get(name, "")) or "rmtrain"
    builders: dict[str, Callable[[], Tracker]] = {
        "wandb": partial(WandBTracker, chosen, name=variables.get("WANDB_NAME") or run, resume=resume, **own_id),
        "trackio": partial(TrackioTracker, chosen, name=run, resume="allow" if directory.continues else "never"),
        "swanlab": partial(
            SwanLabTracker, chosen, experiment_name=variables.get("SWANLAB_EXP_NAME") or run, resume=resume, **own_id
        ),
        "mlflow": partial(MLflowTracker, chosen, run_name=variables.get("MLFLOW_RUN_NAME") or run),
        "tensorboard": partial(
            TensorBoardTracker, chosen, logging_dir=variables.get("TENSORBOARD_LOGGING_DIR") or str(directory.path)
        ),
    }
    tracker = builders[name]()
    if name == "mlflow":
        tracker.experiment_name = chosen  # accelerate prefers the environment
    return tracker


def send_samples(step: int, samples: Sequence[Mapping[str, Any]], tracker: Tracker) -> None:
    """Send sample comparisons with their rewards to a tracker that shows tables: wandb and trackio."""
    rows = []
    for sample in samples:
        chosen, rejected = sample["rewards"]
        texts = [redact(sample[name]) for name in ("id", "source", "prompt", "chosen", "rejected")]
        rows.append([*texts, chosen, rejected, chosen - rejected])
    table = {"columns": list(COLUMNS), "data": rows}
    if tracker.name == "wandb":
        tracker.log_table(SAMPLES, **table, step=step)
    elif tracker.name == "trackio":
        tracker.log({SAMPLES: import_module("trackio").Table(**table)}, step=step)


def send_pictures(step: int, pictures: Mapping[str, Draw], tracker: Tracker) -> None:
    """Send pictures by name; they are drawn only if the tracker shows them."""
    if tracker.name in ("wandb", "swanlab"):
        tracker.log_images({name: [pixels(draw())] for name, draw in pictures.items()}, step=step)
    elif tracker.name == "tensorboard":
        images = {name: pixels(draw())[None] for name, draw in pictures.items()}
        tracker.log_images(images, step=step, dataformats="NHWC")
    elif tracker.name == "mlflow":
        for name, draw in pictures.items():
            tracker.log_figure(draw(), f"{name}/{step:08d}.png")
    elif tracker.name == "trackio":
        image = import_module("trackio").Image
        tracker.log({name: image(pixels(draw())) for name, draw in pictures.items()}, step=step)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure as an array of bytes [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture


class Display(Protocol):
    """Shows the progress of a run to a person."""

    def step(self, step: int, tokens: int) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def show(self, renderable: Any) -> None: ...


class RunLog:
    """Writes the records of a run, and passes them on to the trackers and the display. Only the main process writes.

    Each method that writes raises TryAgain when the disk is full or fails.
    """

    def __init__(
        self, accelerator: Accelerator, directory: Path, trackers: Trackers | None = None, display: Display | None = None
    ) -> None:
        self.accelerator, self.directory, self.trackers, self.display = accelerator, directory, trackers, display

    def step(self, step: int, tokens: int) -> None:
        """Show that a step is done, in which this process computed `tokens` tokens."""
        if self.display is not None:
            self.display.step(step, tokens)

    def show(self, renderable: Any) -> None:
        """Show a table or a text."""
        if self.display is not None:
            self.display.show(renderable)

    def train_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one line of training metrics, and show it."""
        self.metrics(step, metrics)
        if self.display is not None:
            self.display.log(step, metrics)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one line of metrics."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])
        if self.trackers is not None:
            self.trackers.log(metrics, step)

    def rows(self, step: int, epoch: int, ids: Sequence[str]) -> None:
        """Record the ids of the comparisons of a step, in order, in the ledger."""
        self._append("ledger.jsonl", [{"step": step, "epoch": epoch, "ids": list(ids)}])

    def not_finite(self, step: int, ids: Sequence[str]) -> None:
        """Record the ids of the comparisons of a step whose gradient was not finite."""
        self._append("nonfinite.jsonl", [{"step": step, "ids": list(ids)}])

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Record sample comparisons with their rewards at this step."""
        self._append("samples.jsonl", [{"step": step, **sample} for sample in samples])
        if self.trackers is not None and samples:
            self.trackers.each(partial(send_samples, step, list(samples)))

    def pictures(self, step: int, pictures: Mapping[str, Draw]) -> None:
        """Send pictures by name to the trackers that show them; they are drawn in the trackers' thread."""
        if self.trackers is not None:
            self.trackers.each(partial(send_pictures, step, dict(pictures)))

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.accelerator.is_main_process:
            return
        file, text = self.directory / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Row ids and texts of the data are private: only the owner can read those records.
        mode = 0o666 if name == "metrics.jsonl" else 0o600
        with disk_errors(file), open(file, "a", encoding="utf-8", opener=partial(os.open, mode=mode)) as stream:
            stream.write(text)
