"""`rmtrain train --dry-run`: what a run would do and whether it would fit. Nothing is trained or written, and no process is started."""

import os
import time
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.plan import Costs, Plan, StepLoader, cpu_budget
from rmtrain.command_line.options import CommandResult, TrainOptions
from rmtrain.commands.train import build_model, flos_per_token, make_plan, prepare_model
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start
from rmtrain.engine.launch import read
from rmtrain.engine.loop import train_step
from rmtrain.engine.memory import token_budget, warmup_largest_batch
from rmtrain.engine.memory_estimate import USABLE, MemoryEstimate, MemoryModel
from rmtrain.engine.run_log import Meter
from rmtrain.engine.strategy_kind import CONFIGURED, STRATEGIES, StrategyKind, check_recipe, zero_kind
from rmtrain.errors import RecipeError
from rmtrain.model.export_dir import golden_texts
from rmtrain.objective import for_training
from rmtrain.recipe.schema import PretrainedModel, Recipe
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.run_view import dry_run_report

GIGABYTE = 10**9
COMPARED_GPUS = 8
"""Processes for the other strategies where one process is requested and this machine has fewer GPUs."""
SEARCHED_STEPS = 1000
"""Steps in which the largest micro-batch is looked for; millions of them would take minutes."""


def on_gpu(options: TrainOptions) -> bool:
    """Return whether GPUs are meant, of this machine or another."""
    return options.gpu_memory is not None or torch.cuda.is_available()


def memory_of(options: TrainOptions, processes: int) -> int:
    """Return the bytes that each of `processes` processes of one machine has: of its GPU, or a share of the main memory without GPUs."""
    if options.gpu_memory is not None:
        return round(options.gpu_memory * GIGABYTE)
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return main_memory() // processes


def main_memory() -> int:
    """Return the bytes of main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def dry_run(recipe: Recipe, console: Console, options: TrainOptions) -> CommandResult:
    """Report what a run would do: its steps and tokens, and the memory of a process under each strategy.

    Data is prepared as for a run. Of the model only the configuration is read, unless steps are measured. The exit code is 0 whatever fits:
    this is a report; scripts read `fits` of the document.

    Raises:
        RecipeError: what a run would refuse of recipe, data and launch configuration; or a model that cannot be traced.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("--dry-run: expected one process, got one of several; use --processes, which starts none in a dry run")
    if options.measure and on_gpu(options) and not torch.cuda.is_available():
        raise RecipeError("--measure: computes on this machine, which has no GPU; leave out --gpu-memory or --measure")
    strategy, processes, machines = launch_of(options)
    check_recipe(recipe, strategy, meant_device(options))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)

    model = MemoryModel.of(recipe, tokenizer, prepared.train, recipe.batching.layout, on_gpu(options))
    budget, costs = recipe.batching.max_tokens, Costs.of(prepared.train, model.layout)
    if budget == "auto" and on_gpu(options):
        budget = model.budget(strategy, processes, memory_of(options, processes // machines), costs)
    plan = make_plan(recipe, prepared, model.layout, cpu_budget(costs) if budget == "auto" else budget, processes)

    # A run computes the heaviest micro-batch before its first step, so this one has to fit.
    tokens = plan.costs.of_micro_batch(plan.largest_micro_batch())
    estimates = [model.estimate(name, count, tokens) for name, count in _compared(strategy, processes, recipe, options)]
    rows = [_row(one, options, max(1, one.processes // machines)) for one in estimates]
    facts = _facts(recipe, prepared, plan, model)
    seconds_per_token = measure(recipe, prepared, tokenizer) if options.measure else None
    document = {
        **facts,
        "strategy": strategy,
        "processes": processes,
        "machines": machines,
        "device": meant_device(options).type,
        "strategies": rows,
        "fits": next(row["fits"] for row in rows if row["name"] == strategy),
        "seconds": None if seconds_per_token is None else seconds_per_token * facts["tokens"] / processes,
        "tokens_per_second": None if seconds_per_token is None else 1 / seconds_per_token,
    }
    return CommandResult(dry_run_report(document), document)


def meant_device(options: TrainOptions) -> torch.device:
    """Return the kind of device that is meant."""
    return torch.device("cuda" if on_gpu(options) else "cpu")


def _row(one: MemoryEstimate, options: TrainOptions, local: int) -> dict[str, Any]:
    """An estimate for a machine of `local` processes. Main memory is compared where the GPUs are those of this machine."""
    memory = memory_of(options, local)
    is_here = options.gpu_memory is None
    fits = one.fits(memory) and not (is_here and one.host * local > USABLE * main_memory())
    return {**asdict(one), "total": one.total, "memory": memory, "fits": fits}


def launch_of(options: TrainOptions) -> tuple[StrategyKind, int, int]:
    """Return the strategy that `--processes` and `--accelerate-config` name, and its processes and machines."""
    is_requested = options.processes is not None or options.accelerate_config is not None
    launch = read(options.processes, options.accelerate_config) if is_requested else None
    if launch is None:
        return "single", 1, 1
    kind = launch.content["distributed_type"]
    strategy: StrategyKind = "ddp"
    if kind == "FSDP":
        offloads = str((launch.content.get("fsdp_config") or {}).get("fsdp_offload_params")).lower() == "true"
        strategy = "fsdp2_offload" if offloads else "fsdp2"
    if kind == "DEEPSPEED":
        section = launch.content.get("deepspeed_config") or {}
        keys = ("zero_stage", "offload_optimizer_device", "offload_param_device")
        strategy = zero_kind(f"{launch.config}: deepspeed_config", *map(section.get, keys))
    return strategy, launch.processes, launch.machines


def _compared(strategy: StrategyKind, processes: int, recipe: Recipe, options: TrainOptions) -> list[tuple[StrategyKind, int]]:
    """The requested strategy and all others that the recipe allows, with their processes."""
    several = processes
    if processes == 1:
        several = max(COMPARED_GPUS if on_gpu(options) else 2, torch.cuda.device_count())
    names = [name for name in STRATEGIES if name == strategy or (name in CONFIGURED and _runs(recipe, name, options))]
    return [(name, processes if name == strategy else 1 if name == "single" else several) for name in names]


def _runs(recipe: Recipe, strategy: StrategyKind, options: TrainOptions) -> bool:
    """Return whether a strategy runs a recipe, and is another one on the device that is meant: a CPU has nothing to offload from."""
    try:
        check_recipe(recipe, strategy, meant_device(options))
    except RecipeError:
        return False
    return on_gpu(options) or "offload" not in strategy


def _facts(recipe: Recipe, prepared: PreparedData, plan: Plan, model: MemoryModel) -> dict[str, Any]:
    steps = (plan.step(number) for number in range(min(SEARCHED_STEPS, plan.total_steps)))
    micro_batches = (piece for step in steps for rank in step.micro_batches for piece in rank if len(piece))
    section = recipe.model
    return {
        "name": recipe.run.name,
        "model": section.path if isinstance(section, PretrainedModel) else f"{section.scratch.architecture} from scratch",
        "parameters": model.sizes.weights,
        "trainable": model.sizes.trained,
        "adapters": None if model.adapted is None else model.adapted._asdict(),
        "comparisons": len(prepared.train),
        "steps": plan.total_steps,
        "batch_size": plan.batch_size,
        "layout": model.layout,
        "layout_is_auto": recipe.batching.layout == "auto",
        "tokens_per_epoch": plan.computed_epoch(),
        "padded_tokens_per_epoch": plan.padded_epoch(),
        "tokens": plan.computed_epoch() * plan.total_steps // plan.steps_per_epoch,
        "micro_batches_per_step": plan.micro_batches_per_step(),
        "max_tokens": plan.max_tokens,
        "max_tokens_is_auto": recipe.batching.max_tokens == "auto",
        "largest_micro_batch": max(map(plan.costs.of_micro_batch, micro_batches)),
        "computing": model.computing,
    }


def measure(recipe: Recipe, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the seconds of a token in one process on this machine: of the second optimizer step of the real model."""
    strategy = start(recipe)
    golden = golden_texts(tokenizer, recipe.data.max_length)
    model = build_model(recipe, tokenizer, golden, int(prepared.train.longest.max()), strategy)
    meter = Meter(strategy.accelerator, flos_per_token(model))
    layout = prepare_model(model, recipe, prepared.train, tokenizer, strategy)
    plan = make_plan(recipe, prepared, layout, token_budget(recipe, prepared.train, layout, tokenizer, strategy), 1)
    loader = StepLoader(prepared.train, plan, layout, tokenizer.pad_token_id)
    objective = for_training(recipe.objective, prepared.train)
    warmup_largest_batch(strategy, loader, balance=objective.router_balance is not None)
    for number in (0, 1):  # the first allocates the optimizer's state
        batch = loader.step(number % len(loader))
        start_time = _now()
        train_step(strategy, objective, meter, recipe.optimizer.lr, batch)
        seconds = _now() - start_time
    return seconds / sum(loader.plan.costs.of_micro_batch(piece) for piece in loader.plan.step(batch.step).micro_batches[0])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
