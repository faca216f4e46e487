"""The start of a run: the accelerator really in force, its trackers, and the record of what made it."""

import os
import platform
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_trackio_available, is_wandb_available

from rmtrain.engine.directory import flat
from rmtrain.engine.trackers import Trackers
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.recipe.schema import Recipe, Tracking

PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy", "safetensors")
STRATEGIES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
TRACKERS = {
    "wandb": is_wandb_available,
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "mlflow": is_mlflow_available,
}


def start(recipe: Recipe) -> Accelerator:
    """The accelerator of a run: device, processes, precision and trackers.

    Raises:
        RecipeError: a tracker that is not installed, which accelerate would leave out without a word.
        RmtrainError: fewer processes than were launched, or a strategy other than one process or DDP.
    """
    _check_trackers(recipe.tracking)
    if recipe.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        mixed_precision="bf16" if computes_in_bfloat16(recipe.training.precision) else "no",
        log_with=list(recipe.tracking.to) or None,
        project_dir=recipe.run.output_dir,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        running = accelerator.num_processes
        raise RmtrainError(f"{launched} processes were launched, but accelerate runs {running}; check its configuration")
    if accelerator.distributed_type not in STRATEGIES:
        strategy = accelerator.distributed_type.value
        raise RmtrainError(f"{strategy} is not supported yet; launch one process, or DDP over several")
    return accelerator


def computes_in_bfloat16(precision: str) -> bool:
    """Whether matrix products run in bfloat16 under this `training.precision` on this machine."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def _check_trackers(tracking: Tracking) -> None:
    missing = [name for name in tracking.to if not TRACKERS[name]()]
    if missing:
        raise RecipeError(*(f"tracking.to: {name} is not installed; install rmtrain[{name}] or leave it out" for name in missing))


def start_trackers(accelerator: Accelerator, recipe: Recipe, run_id: str) -> Trackers | None:
    """The recipe's trackers, started with its settings as `section.key` on the main process; None where there are none.

    wandb goes on with the run of this id where there is one.
    """
    if not recipe.tracking.to or not accelerator.is_main_process:
        return None
    named = {"wandb": {"name": recipe.run.name, "id": run_id, "resume": "allow"}, "trackio": {"name": recipe.run.name}}
    kwargs = {name: options for name, options in named.items() if name in recipe.tracking.to}
    settings = {key: value if isinstance(value, str | int | float) else str(value) for key, value in flat(recipe.model_dump())}

    def end() -> None:
        for tracker in accelerator.trackers:
            tracker.finish()

    return Trackers(
        start=partial(accelerator.init_trackers, recipe.tracking.project, settings, kwargs),
        send=lambda metrics, step: accelerator.log(dict(metrics), step=step),
        end=end,
    )


def environment(accelerator: Accelerator, hashes: dict[str, str]) -> dict[str, Any]:
    """Versions, hardware and hashes that a result depends on; no host or user name, no path."""
    on_gpu = accelerator.device.type == "cuda"
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if on_gpu else accelerator.device.type,
        "processes": accelerator.num_processes,
        "strategy": str(accelerator.distributed_type.value),
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hashes": hashes,
    }
