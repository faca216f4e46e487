"""The start of a run: the accelerator really in force, the directory that belongs to one run, and the record of what made it."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_trackio_available, is_wandb_available

from rmtrain.errors import CheckpointError, RecipeError, RmtrainError
from rmtrain.recipe.load import dump_recipe
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


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's trackers with its settings, flattened to `section.key`."""
    if recipe.tracking.to:
        named = {"wandb": {"name": recipe.run.name}, "trackio": {"name": recipe.run.name}}
        kwargs = {name: options for name, options in named.items() if name in recipe.tracking.to}
        accelerator.init_trackers(recipe.tracking.project, dict(_flat("", recipe.model_dump())), kwargs)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str | int | float]]:
    if isinstance(value, dict | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str | int | float) else str(value)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Everything one run writes, under one path."""

    path: Path

    @classmethod
    def reserve(cls, output_dir: str) -> "RunDirectory":
        """The directory of a run that is about to start. Nothing is written yet.

        Raises:
            CheckpointError: the path is a file, or a directory that holds anything: another run, or the user's own files.
        """
        path = Path(output_dir).expanduser()
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"run.output_dir: {path} is a file; name a directory that is new or empty")
        if path.is_dir() and any(path.iterdir()):
            owner = "another run" if (path / "recipe.yaml").exists() else "other files"
            raise CheckpointError(f"run.output_dir: {path} holds {owner}; name a new directory, or move that one away")
        return cls(path)

    def open(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Create the directory and write what the run is made of: the resolved recipe, versions and hashes."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")

    @property
    def model(self) -> Path:
        """Where the exported model goes."""
        return self.path / "model"


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
        "hashes": hashes,
    }
