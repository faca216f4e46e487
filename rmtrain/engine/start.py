"""The start of a run: its accelerator and strategy, its trackers, and the record of what it depends on."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    is_deepspeed_available,
    is_mlflow_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)
from torch.distributed.fsdp import CPUOffloadPolicy

from rmtrain.engine.deepspeed import DeepSpeedStrategy
from rmtrain.engine.distributed import SHARDING, is_set, launched
from rmtrain.engine.run_dir import RunDirectory, flat
from rmtrain.engine.strategy import Fsdp2, Strategy
from rmtrain.engine.trackers import Trackers
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.recipe.schema import Recipe

Plugin: TypeAlias = FullyShardedDataParallelPlugin | DeepSpeedPlugin
PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy", "safetensors")
STRATEGIES: dict[DistributedType, type[Strategy]] = {
    **dict.fromkeys((DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU), Strategy),
    DistributedType.FSDP: Fsdp2,
    DistributedType.DEEPSPEED: DeepSpeedStrategy,
}
TRACKERS = {
    "wandb": is_wandb_available,
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "mlflow": is_mlflow_available,
}


def start(recipe: Recipe) -> Strategy:
    """Join the job as it was launched, and return the strategy that accelerate really runs.

    Raises:
        RecipeError: a tracker is not installed, or the strategy does not support a setting of the recipe or of accelerate.
        RmtrainError: accelerate runs another number of processes, or another strategy, than was launched.
    """
    missing = {
        f"{name} is not installed; install rmtrain[{name}] or leave it out": not TRACKERS[name]() for name in recipe.tracking.to
    }
    _refuse("tracking.to: ", missing)
    if recipe.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    plugin = _sharding_plugin()
    if plugin is not None:
        problems = {
            "optimizer.name: adamw_8bit does not support sharded weights; use adamw, or the ddp configuration": (
                recipe.optimizer.name == "adamw_8bit"
            ),
            "model.quantization: 4-bit weights cannot be sharded; set null, or use the ddp configuration": (
                recipe.model.quantization is not None
            ),
        }
        _refuse("", problems)
    accelerator = launched(
        fsdp_plugin=plugin if isinstance(plugin, FullyShardedDataParallelPlugin) else None,
        deepspeed_plugin=plugin if isinstance(plugin, DeepSpeedPlugin) else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if plugin is not None and not torch.cuda.is_available():
        force_distributed_type(plugin)
    # accelerate falls back to another strategy without a word, as where a plugin is not supported on the device
    running, strategy = accelerator.distributed_type, STRATEGIES.get(accelerator.distributed_type)
    expected = Strategy if plugin is None else STRATEGIES[distributed_type(plugin)]
    if strategy is not expected:
        requested = "one process or DDP" if plugin is None else distributed_type(plugin).value
        raise RmtrainError(f"requested {requested}, but accelerate runs {running.value}; use a file of configs/accelerate")
    return expected(accelerator)


def distributed_type(plugin: Plugin) -> DistributedType:
    """Return accelerate's name for the strategy of a plugin."""
    return DistributedType.FSDP if isinstance(plugin, FullyShardedDataParallelPlugin) else DistributedType.DEEPSPEED


def force_distributed_type(plugin: Plugin) -> None:
    """Switch an accelerator of CPU processes to the strategy of a plugin.

    accelerate ignores its FSDP and DeepSpeed plugins on CPUs, though torch and DeepSpeed run there over gloo. Its state is private, and
    writing it is the price for testing every strategy in CI without a GPU, on the code that runs on GPUs.
    """
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = distributed_type(plugin)
    if isinstance(plugin, FullyShardedDataParallelPlugin):
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        return
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)


def _sharding_plugin() -> Plugin | None:
    """Return the sharding that `accelerate launch` set up in the environment, or None.

    Raises:
        RecipeError: a setting that belongs into the recipe, or that rmtrain does not support.
    """
    if is_set(SHARDING["FSDP"]):
        fsdp = FullyShardedDataParallelPlugin()
        problems = {
            f"fsdp_version: expected 2, got {fsdp.fsdp_version}": fsdp.fsdp_version != 2,
            "fsdp_offload_params: set false": isinstance(fsdp.cpu_offload, CPUOffloadPolicy),
            "fsdp_cpu_ram_efficient_loading: set false": fsdp.cpu_ram_efficient_loading,
            "fsdp_activation_checkpointing: set false, and model.gradient_checkpointing in the recipe": fsdp.activation_checkpointing,
        }
        _refuse("accelerate configuration: ", problems)
        return fsdp
    if not is_set(SHARDING["DeepSpeed"]):
        return None
    if not is_deepspeed_available():
        raise RecipeError("accelerate configuration: deepspeed is not installed; install rmtrain[deepspeed]")
    deepspeed = DeepSpeedPlugin()
    config = deepspeed.deepspeed_config["zero_optimization"]
    offloaded = [key for key in ("offload_optimizer", "offload_param") if config.get(key, {}).get("device", "none") != "none"]
    accumulates = deepspeed.deepspeed_config.get("gradient_accumulation_steps", 1) not in (1, "auto")
    problems = {
        f"zero_stage: expected 1, 2 or 3, got {deepspeed.zero_stage}; or use ddp": deepspeed.zero_stage not in (1, 2, 3),
        "gradient_accumulation_steps: set 1; batching.max_tokens sets the size of micro-batches": accumulates,
        "zero3_init_flag: set false": bool(deepspeed.zero3_init_flag),
        **{f"{key}_device: set none": True for key in offloaded},
    }
    _refuse("accelerate configuration: ", problems)
    return deepspeed


def _refuse(place: str, problems: dict[str, bool]) -> None:
    wrong = [problem for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise RecipeError(*(f"{place}{problem}" for problem in wrong))


def uses_bfloat16(precision: str) -> bool:
    """Return whether matrix products run in bfloat16 under this `training.precision` on this machine."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


@contextmanager
def start_trackers(accelerator: Accelerator, recipe: Recipe, directory: RunDirectory) -> Iterator[Trackers | None]:
    """Start the recipe's trackers on rank 0, with its settings as `section.key`, and close them at the end; None if there are none.

    wandb and trackio continue the run that they had before.
    """
    if not recipe.tracking.to or not accelerator.is_main_process:
        yield None
        return
    run = recipe.run.name
    options: dict[str, dict[str, Any]] = {
        "wandb": {"name": run, "id": directory.run_id, "resume": "allow"},
        "trackio": {"name": run, "resume": "allow" if directory.continues else "never"},
        "mlflow": {"run_name": run},
        "tensorboard": {"logging_dir": str(directory.path)},
    }
    builders: dict[str, Any] = {
        name: partial(LOGGER_TYPE_TO_CLASS[name], recipe.tracking.project, **options[name]) for name in recipe.tracking.to
    }
    settings = {key: value if isinstance(value, str | int | float) else str(value) for key, value in flat(recipe.model_dump())}
    trackers = Trackers(builders, settings)
    try:
        yield trackers
    finally:
        trackers.close()


def environment(strategy: Strategy, precision: str, hashes: dict[str, str]) -> dict[str, Any]:
    """Return the versions, hardware and hashes that a result depends on, without host name, user name or path."""
    accelerator = strategy.accelerator
    on_gpu = accelerator.device.type == "cuda"
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if on_gpu else accelerator.device.type,
        "processes": accelerator.num_processes,
        "strategy": strategy.name,
        "computing": "bfloat16" if uses_bfloat16(precision) else "float32",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hashes": hashes,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
