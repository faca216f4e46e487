"""The start of a run: the accelerator really in force, its trackers, and the record of what made it."""

import os
import platform
from functools import partial
from importlib.metadata import version
from typing import Any

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
from rmtrain.recipe.schema import Recipe, Tracking


def kind_of(plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin) -> DistributedType:
    """What accelerate calls the strategy of a plugin."""
    return DistributedType.FSDP if isinstance(plugin, FullyShardedDataParallelPlugin) else DistributedType.DEEPSPEED


def force_distributed_type(plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin) -> None:
    """Make the accelerator that there is, which was made for CPU processes, one of the plugin's strategy."""
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = kind_of(plugin)
    if isinstance(plugin, FullyShardedDataParallelPlugin):
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        return
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)


PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy", "safetensors")
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
SHARDED = {DistributedType.FSDP: Fsdp2, DistributedType.DEEPSPEED: DeepSpeedStrategy}
TRACKERS = {
    "wandb": is_wandb_available,
    "tensorboard": is_tensorboard_available,
    "trackio": is_trackio_available,
    "mlflow": is_mlflow_available,
}


def start(recipe: Recipe) -> Strategy:
    """The processes of a run as they were launched: device and strategy are what really is in force.

    Raises:
        RecipeError: a tracker that is not installed, or what the strategy cannot do.
        RmtrainError: fewer processes than were launched, or another strategy than was asked for.
    """
    _check_trackers(recipe.tracking)
    if recipe.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    plugin = _plugin()
    if plugin is not None:
        _check_sharding(recipe)
    accelerator = launched(
        fsdp_plugin=plugin if isinstance(plugin, FullyShardedDataParallelPlugin) else None,
        deepspeed_plugin=plugin if isinstance(plugin, DeepSpeedPlugin) else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if plugin is not None and not torch.cuda.is_available():
        force_distributed_type(plugin)
    return _in_force(accelerator, plugin)


def _plugin() -> FullyShardedDataParallelPlugin | DeepSpeedPlugin | None:
    """What `accelerate launch` was told about sharding, which it passes on in the environment.

    Raises:
        RecipeError: a setting that rmtrain has in its recipe, or does not support.
    """
    if is_set(SHARDING["FSDP"]):
        fsdp = FullyShardedDataParallelPlugin()
        wrong = {
            f"fsdp_version {fsdp.fsdp_version}: set 2": fsdp.fsdp_version != 2,
            "fsdp_offload_params true: set false": isinstance(fsdp.cpu_offload, CPUOffloadPolicy),
            "fsdp_cpu_ram_efficient_loading true: set false": fsdp.cpu_ram_efficient_loading,
            "fsdp_activation_checkpointing true: set false, and model.gradient_checkpointing in the recipe": (
                fsdp.activation_checkpointing
            ),
        }
        _refuse([text for text, is_wrong in wrong.items() if is_wrong])
        return fsdp
    if not is_set(SHARDING["DeepSpeed"]):
        return None
    if not is_deepspeed_available():
        raise RecipeError("accelerate's configuration asks for DeepSpeed, which is not installed; install rmtrain[deepspeed]")
    deepspeed = DeepSpeedPlugin()
    config = deepspeed.deepspeed_config["zero_optimization"]
    offloaded = [key for key in ("offload_optimizer", "offload_param") if config.get(key, {}).get("device", "none") != "none"]
    accumulates = deepspeed.deepspeed_config.get("gradient_accumulation_steps", 1) not in (1, "auto")
    wrong = {
        f"zero_stage {deepspeed.zero_stage}: set 1, 2 or 3, or use the ddp configuration": deepspeed.zero_stage not in (1, 2, 3),
        "gradient_accumulation_steps: set 1; batching.max_tokens says how steps are cut": accumulates,
        "zero3_init_flag true: set false": bool(deepspeed.zero3_init_flag),
        **{f"{key}: set none": True for key in offloaded},
    }
    _refuse([text for text, is_wrong in wrong.items() if is_wrong])
    return deepspeed


def _refuse(problems: list[str]) -> None:
    if problems:
        raise RecipeError(*(f"accelerate's configuration has {problem}" for problem in problems))


def _check_sharding(recipe: Recipe) -> None:
    problems = []
    if recipe.optimizer.name == "adamw_8bit":
        problems.append("optimizer.name: adamw_8bit does not work on pieces of weights; use adamw, or the ddp configuration")
    if recipe.model.quantization is not None:
        problems.append("model.quantization: 4-bit weights are not cut into pieces; set null, or use the ddp configuration")
    if problems:
        raise RecipeError(*problems)


def _in_force(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin | None) -> Strategy:
    """The strategy that accelerate really runs; raises RmtrainError when it is not the one that was asked for."""
    kind = accelerator.distributed_type
    if kind not in (PLAIN if plugin is None else (kind_of(plugin),)):
        expected = "one process or DDP" if plugin is None else kind_of(plugin).value
        raise RmtrainError(
            f"{expected} was asked for, but accelerate runs {kind.value}; use a configuration of configs/accelerate"
        )
    return SHARDED.get(kind, Strategy)(accelerator)


def uses_bfloat16(precision: str) -> bool:
    """Whether matrix products run in bfloat16 under this `training.precision` on this machine."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def _check_trackers(tracking: Tracking) -> None:
    missing = [name for name in tracking.to if not TRACKERS[name]()]
    if missing:
        raise RecipeError(*(f"tracking.to: {name} is not installed; install rmtrain[{name}] or leave it out" for name in missing))


def start_trackers(accelerator: Accelerator, recipe: Recipe, directory: RunDirectory) -> Trackers | None:
    """The recipe's trackers, started with its settings as `section.key` on the main process; None where there are none.

    wandb and trackio go on with the run that they had before.
    """
    if not recipe.tracking.to or not accelerator.is_main_process:
        return None
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
    return Trackers(builders, settings)


def environment(strategy: Strategy, precision: str, hashes: dict[str, str]) -> dict[str, Any]:
    """Versions, hardware and hashes that a result depends on; no host or user name, no path."""
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
    """Those of Python and of the packages that a result depends on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
