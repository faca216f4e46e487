"""A process and its job: which strategy it runs, what its results depend on, and work that all ranks share."""

import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache, partial
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    is_deepspeed_available,
)

from rmtrain.engine.rank import GracefulShutdown
from rmtrain.engine.strategy import DeepSpeedStrategy, Fsdp2, Strategy
from rmtrain.engine.strategy_kind import Plugin, check_recipe, kind_of
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.recipe.schema import Recipe

SHARDING = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
"""Variables that `accelerate launch` sets for the ranks of a strategy that shards the model."""
EVALUATION_TIMEOUT = timedelta(days=30)
"""All ranks wait for the lines of standard input, which may come slowly."""
LEFT_GROUPS: list[Any] = []
"""Groups that this process has left, kept alive: the destructor of one of gloo joins threads that may be waiting for the GIL."""
PACKAGES = ("rmtrain", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy", "safetensors")
STRATEGIES: dict[DistributedType, type[Strategy]] = {
    **dict.fromkeys((DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU), Strategy),
    DistributedType.FSDP: Fsdp2,
    DistributedType.DEEPSPEED: DeepSpeedStrategy,
}
logger = logging.getLogger("rmtrain")


def start(recipe: Recipe) -> Strategy:
    """Join the job as it was launched, and return the strategy that accelerate really runs.

    Raises:
        RecipeError: a tracker is not installed, or the strategy does not support a setting of the recipe or of accelerate.
        RmtrainError: accelerate runs another number of processes, or another strategy, than was launched.
    """
    # only accelerate's trackers: one of ours needs no package
    not_installed = LOGGER_TYPE_TO_CLASS.keys() - set(map(str, get_available_trackers()))
    missing = [name for name in recipe.tracking.to if name in not_installed]
    if missing:
        raise RecipeError(*(f"tracking.to: {name} is not installed; install rmtrain[{name}] or leave it out" for name in missing))
    if recipe.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    plugin = _sharding_plugin()
    if plugin is not None:
        check_recipe(recipe, kind_of(plugin), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    accelerator = launched(
        fsdp_plugin=plugin if isinstance(plugin, FullyShardedDataParallelPlugin) else None,
        deepspeed_plugin=plugin if isinstance(plugin, DeepSpeedPlugin) else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if plugin is not None and not torch.cuda.is_available():
        force_distributed_type(plugin)
    # accelerate falls back to another strategy without a word, as where a plugin is not supported on the device
    running, strategy = accelerator.distributed_type, Strategy if plugin is None else STRATEGIES[distributed_type(plugin)]
    if STRATEGIES.get(running) is not strategy:
        requested = "one process or DDP" if plugin is None else distributed_type(plugin).value
        raise RmtrainError(f"requested {requested}, but accelerate runs {running.value}; use a file of configs/accelerate")
    return strategy(accelerator)


def distributed_type(plugin: Plugin) -> DistributedType:
    """Return accelerate's name for the strategy of a plugin."""
    return DistributedType.FSDP if isinstance(plugin, FullyShardedDataParallelPlugin) else DistributedType.DEEPSPEED


def force_distributed_type(plugin: Plugin) -> None:
    """Switch an accelerator of CPU processes to the strategy of a plugin, which accelerate ignores there.

    Its state is private, and writing it is the price for testing every strategy in CI without a GPU, on the code that runs on GPUs.
    """
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = distributed_type(plugin)
    if isinstance(plugin, FullyShardedDataParallelPlugin):
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        return
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)


def _sharding_plugin() -> Plugin | None:
    """Return the sharding that `accelerate launch` set up, or None; raise RecipeError for a setting that rmtrain does not support."""
    if is_set(SHARDING["FSDP"]):
        fsdp = FullyShardedDataParallelPlugin()
        problems = {
            f"fsdp_version: expected 2, got {fsdp.fsdp_version}": fsdp.fsdp_version != 2,
            "fsdp_cpu_ram_efficient_loading: set false": fsdp.cpu_ram_efficient_loading,
            "fsdp_activation_checkpointing: set false, and model.gradient_checkpointing in the recipe": fsdp.activation_checkpointing,
        }
        _refuse(problems)
        return fsdp
    if not is_set(SHARDING["DeepSpeed"]):
        return None
    if not is_deepspeed_available():
        raise RecipeError("accelerate configuration: deepspeed is not installed; install rmtrain[deepspeed]")
    deepspeed = DeepSpeedPlugin()
    accumulates = deepspeed.deepspeed_config.get("gradient_accumulation_steps", 1) not in (1, "auto")
    problems = {
        "gradient_accumulation_steps: set 1; batching.max_tokens sets the size of micro-batches": accumulates,
        "zero3_init_flag: set false": bool(deepspeed.zero3_init_flag),
    }
    _refuse(problems)
    return deepspeed


def _refuse(problems: dict[str, bool]) -> None:
    wrong = [f"accelerate configuration: {problem}" for problem, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise RecipeError(*wrong)


def environment(strategy: Strategy, computing: str, hashes: dict[str, str]) -> dict[str, Any]:
    """Return the versions, hardware and hashes that a result depends on, without host name, user name or path."""
    accelerator = strategy.accelerator
    on_gpu = accelerator.device.type == "cuda"
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if on_gpu else accelerator.device.type,
        "processes": accelerator.num_processes,
        "strategy": strategy.name,
        "computing": computing,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hashes": hashes,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def launched(**options: Any) -> Accelerator:
    """Return the accelerator of this job, for one process or several; `options` are accelerate's.

    Raises:
        RmtrainError: accelerate runs another number of processes than were launched.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 and not is_set("ACCELERATE_USE_CPU"):
        note_idle_gpus(torch.cuda.device_count())
    accelerator = Accelerator(
        mixed_precision="no",  # the model computes in lower precision by itself, the same way under every strategy
        cpu=count > 1 and not torch.cuda.is_available(),
        **options,
    )
    if accelerator.num_processes != count:
        running = accelerator.num_processes
        raise RmtrainError(f"{count} processes were launched, but accelerate runs {running}; check its configuration")
    return accelerator


@cache
def note_idle_gpus(count: int) -> None:
    """Report, once, that one process uses one of several GPUs."""
    if count > 1:
        logger.info("1 of %d GPUs; --processes %d uses all", count, count)


def start_evaluation() -> Accelerator:
    """Return the accelerator of an evaluation, in which every process holds the whole model.

    Raises:
        RecipeError: the job was launched with a strategy that shards the model.
    """
    sharding = [name for name, variable in SHARDING.items() if is_set(variable)]
    if sharding:
        raise RecipeError(f"scoring needs the full model on every process; use the ddp configuration instead of {sharding[0]}")
    return launched(kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=EVALUATION_TIMEOUT)])


def is_set(variable: str) -> bool:
    """Return whether `accelerate launch` switched something on."""
    return os.environ.get(variable, "false").lower() == "true"


def leave_group(accelerator: Accelerator) -> None:
    """Leave the other ranks, which then need not wait for what this one still does."""
    if torch.distributed.is_initialized():
        LEFT_GROUPS.append(torch.distributed.group.WORLD)
    accelerator.state.destroy_process_group()


T = TypeVar("T")


def run_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do work on rank 0 alone, and return its result on every rank. A collective.

    Raises:
        RmtrainError, OSError: the error of the work, on every rank, so that none waits for the others.
    """
    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (RmtrainError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any rank. A collective."""
    return bool(largest_on_any_rank(accelerator, int(flag)))


def largest_on_any_rank(accelerator: Accelerator, number: int) -> int:
    """Return the largest of the numbers that the ranks pass. A collective."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max().item())


def graceful_shutdown(accelerator: Accelerator) -> GracefulShutdown:
    """Return the shutdown of a job, on which all its ranks agree."""
    return GracefulShutdown(partial(largest_on_any_rank, accelerator))


@contextmanager
def stopping(accelerator: Accelerator) -> Iterator[GracefulShutdown]:
    """Stop together when ranks that score get a signal. A single process, which has nothing to save, still stops at once."""
    shutdown = graceful_shutdown(accelerator)
    with shutdown if accelerator.num_processes > 1 else nullcontext():
        yield shutdown
