"""The strategies by name, as in memory estimates, in the JSON of a dry run and in the files of configs/accelerate, and what each refuses.

With `_offload`, what a strategy shards is kept in main memory, and AdamW runs on the CPU: optimizer state, gradients and, under FSDP2 and
ZeRO-3, the weights, which are copied to the GPU for each use. With `_offload_optimizer`, the weights of ZeRO-3 stay on the GPU.
"""

from typing import Literal, TypeAlias, get_args

import torch
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, is_torch_version
from torch.distributed.fsdp import CPUOffloadPolicy

from rmtrain.errors import RecipeError
from rmtrain.model.reward_model import computing_type
from rmtrain.recipe.schema import Recipe

StrategyKind = Literal[
    "single",
    "ddp",
    "fsdp2",
    "fsdp2_offload",
    "zero1",
    "zero1_offload",
    "zero2",
    "zero2_offload",
    "zero3",
    "zero3_offload_optimizer",
    "zero3_offload",
]
STRATEGIES: tuple[StrategyKind, ...] = get_args(StrategyKind)
SHARDED: tuple[StrategyKind, ...] = STRATEGIES[2:]
CONFIGURED: tuple[StrategyKind, ...] = ("single", "ddp", "fsdp2", "fsdp2_offload", "zero1", "zero2", "zero3", "zero3_offload")
"""The strategies of the configurations that ship with rmtrain."""
Plugin: TypeAlias = FullyShardedDataParallelPlugin | DeepSpeedPlugin
ZERO: dict[tuple[str, str, str], StrategyKind] = {
    ("1", "none", "none"): "zero1",
    ("1", "cpu", "none"): "zero1_offload",
    ("2", "none", "none"): "zero2",
    ("2", "cpu", "none"): "zero2_offload",
    ("3", "none", "none"): "zero3",
    ("3", "cpu", "none"): "zero3_offload_optimizer",
    ("3", "cpu", "cpu"): "zero3_offload",
}
"""By ZeRO stage, device of the optimizer and device of the weights. DeepSpeed offloads weights in stage 3 alone, and a float32 copy of them
on the GPU would take more than they do."""


def kind_of(plugin: Plugin) -> StrategyKind:
    """Return the strategy that a plugin of accelerate stands for; raises RecipeError as `zero_kind`."""
    if isinstance(plugin, FullyShardedDataParallelPlugin):
        return "fsdp2_offload" if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else "fsdp2"
    zero = plugin.deepspeed_config["zero_optimization"]
    devices = ((zero.get(key) or {}).get("device") for key in ("offload_optimizer", "offload_param"))
    return zero_kind("accelerate configuration", plugin.zero_stage, *devices)


def zero_kind(place: str, stage: object, optimizer: object, weights: object) -> StrategyKind:
    """Return the kind of a ZeRO stage, given accelerate's `offload_optimizer_device` and `offload_param_device`.

    Raises:
        RecipeError: there is no such stage or device, or weights are to be offloaded without stage 3 and the optimizer.
    """
    given = {"offload_optimizer_device": optimizer, "offload_param_device": weights}
    devices = {key: str(value or "none").lower() for key, value in given.items()}
    problems = [f"{key}: expected none or cpu, got {value}" for key, value in devices.items() if value not in ("none", "cpu")]
    if str(stage) not in ("1", "2", "3"):
        problems.append(f"zero_stage: expected 1, 2 or 3, got {stage}; or use ddp")
    kind = ZERO.get((str(stage), *devices.values()))  # type: ignore[arg-type]
    if kind is None and not problems:
        problems.append("offload_param_device: cpu needs zero_stage: 3 and offload_optimizer_device: cpu; set none")
    if kind is None:
        raise RecipeError(*(f"{place}: {problem}" for problem in problems))
    return kind


def check_recipe(recipe: Recipe, strategy: StrategyKind, device: torch.device) -> None:
    """Raise RecipeError for a setting of a recipe that a strategy does not support on a kind of device."""
    if strategy not in SHARDED:
        return
    is_fsdp2 = strategy.startswith("fsdp2")
    if recipe.optimizer.name == "adamw_8bit":
        problem = "bitsandbytes cannot update sharded weights with adamw_8bit (its issue 1633)"
        raise RecipeError(f"optimizer.name: {problem}; use adamw, or the ddp configuration")
    if recipe.model.quantization is not None and not is_fsdp2:
        problem = "4-bit weights do not support DeepSpeed"
        raise RecipeError(f"model.quantization: {problem}; use the fsdp2 or ddp configuration, or set null")
    if recipe.model.quantization is not None and not is_torch_version(">=", "2.12.0"):
        problem = f"FSDP2 can shard 4-bit weights from torch 2.12 on, got {torch.__version__}"
        raise RecipeError(f"model.quantization: {problem}; update torch, or use the ddp configuration")
    if not is_fsdp2 and computing_type(recipe.training.precision, device) == "float16":
        # DeepSpeed's own float16 also stores the weights in it.
        raise RecipeError("training.precision: float16 does not support DeepSpeed; set float32, or use the fsdp2 configuration")
