"""`rmtrain train --dry-run`: what a run would do and whether it would fit, without a run: no weights, no process, nothing written."""

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.batching.loader import StepLoader, gather
from rmtrain.batching.plan import Costs, Indices, Plan, check_budget, cpu_budget
from rmtrain.commands.result import CommandResult
from rmtrain.commands.train import agreed_budget, build_model, flos_per_token, make_plan
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.launch import Launch, read
from rmtrain.engine.loop import train_step
from rmtrain.engine.memory import gpu_budget, warmup_largest_batch
from rmtrain.engine.memory_trace import NAMES, SHARDING, Name, Share, Sizes, Trace, Training, meta_model, share, takes, trace
from rmtrain.engine.meter import Meter
from rmtrain.engine.optim import build_optimizer
from rmtrain.engine.start import start, uses_bfloat16
from rmtrain.errors import RecipeError
from rmtrain.model.export_dir import golden_texts
from rmtrain.model.layout_probe import FALLBACKS, choose_layout, probing_comparisons
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import PretrainedModel, Recipe, ScratchModel
from rmtrain.report.dry_run import dry_run_report
from rmtrain.report.progress import ReadingProgress

GIGABYTE = 10**9
USABLE = 0.9
"""Share of a memory that tensors can take: the rest is for CUDA, for communication, and for gaps between tensors."""
OTHERS = 8
"""Processes that strategies are compared on, where one is asked for and there is at most one GPU."""
SEARCHED_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What a dry run is about.

    processes, config: as of `--processes` and `--accelerate-config`; None: one process.
    gpu_memory: of each GPU in GB; None: that of this machine's GPU, or where it has none, its main memory.
    measure: compute a step on this machine, and say how long a run would take.
    """

    processes: int | None = None
    config: str | None = None
    gpu_memory: float | None = None
    measure: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is meant, of this machine or another."""
        return self.gpu_memory is not None or torch.cuda.is_available()

    def memory(self, processes: int) -> int:
        """Bytes for each of so many processes of a machine."""
        if self.gpu_memory is not None:
            return round(self.gpu_memory * GIGABYTE)
        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info()[1])
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy and the number of its processes, on all machines and on each."""

    name: Name
    processes: int
    local: int


def dry_run(recipe: Recipe, console: Console, request: Request) -> CommandResult:
    """Say what a run would do: steps and tokens, and for each strategy the memory of a process.

    The exit code is 0 whatever fits: this is a report, and what follows from it is the user's to say (`fits` of the document).
    Data is read, checked and tokenized as for a run, or taken from the cache; of the model its configuration is all that is read, unless a
    step is measured.

    Raises:
        RecipeError: what a run would refuse of recipe, data and configuration of processes; or a model that cannot be outlined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("--dry-run: expected one process, got one of several; say --processes, which starts none in a dry run")
    if request.measure and request.on_gpu and not torch.cuda.is_available():
        raise RecipeError("--measure: computes on this machine, which has no GPU; leave out --gpu-memory or --measure")
    asked = strategy_of(request)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    estimate = Estimate.of(recipe, prepared, tokenizer, asked, request)
    seconds_per_token = measure(recipe, prepared, tokenizer) if request.measure else None
    document = estimate.document(prepared, seconds_per_token)
    return CommandResult(dry_run_report(document), document)


def strategy_of(request: Request) -> Strategy:
    """The strategy that the options of a launch mean."""
    launch = None if request.processes is None and request.config is None else read(request.processes, request.config)
    if launch is None:
        return Strategy("single", 1, 1)
    return Strategy(_name(launch), launch.processes, launch.local)


def _name(launch: Launch) -> Name:
    kind = launch.content["distributed_type"]
    if kind != "DEEPSPEED":
        return "fsdp2" if kind == "FSDP" else "ddp"
    stage = (launch.content.get("deepspeed_config") or {}).get("zero_stage")
    stages: dict[Any, Name] = {1: "zero1", 2: "zero2", 3: "zero3"}
    if stage not in stages:
        raise RecipeError(f"{launch.config}: deepspeed_config.zero_stage: expected 1, 2 or 3, got {stage}")
    return stages[stage]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan for the strategy that is asked for, and what processes keep under it and the others.

    largest: tokens of the largest micro-batch of the plan.
    """

    recipe: Recipe
    request: Request
    asked: Strategy
    plan: Plan
    layout: Layout
    autocast: bool
    sizes: Sizes
    largest: int
    shares: tuple[Share, ...]

    @classmethod
    def of(
        cls, recipe: Recipe, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, asked: Strategy, request: Request
    ) -> "Estimate":
        """Estimate a run. `batching.max_tokens: auto` of one GPU is halved until it fits, as the run would."""
        outline = Outline(recipe, tokenizer, request)
        model = outline.model()
        sizes = Sizes.of(model, recipe.model.quantization is not None)
        layout, narrow = outline.layout(prepared.train)
        plan = _plan(recipe, prepared, layout, model, request.memory(asked.local) - sizes.all.bytes, asked, request)
        loader = StepLoader(prepared.train, plan, layout, tokenizer.pad_token_id)
        while True:
            training, largest = outline.training(loader, sizes, narrow)
            shares = tuple(share(name, count, training) for name, count in _compared(asked, recipe, request))
            estimate = cls(recipe, request, asked, loader.plan, loader.layout, model.autocast, sizes, largest, shares)
            halves = request.on_gpu and asked.name == "single" and recipe.batching.max_tokens == "auto"
            if not halves or estimate.wanted in estimate.fitting or not loader.halve_budget():
                return estimate

    @property
    def wanted(self) -> Share:
        """Of the strategy that is asked for."""
        return next(one for one in self.shares if one.name == self.asked.name)

    @property
    def fitting(self) -> list[Share]:
        """Those that fit."""
        return [one for one in self.shares if one.total <= USABLE * self.memory(one)]

    def memory(self, one: Share) -> int:
        """Bytes for each process of a strategy."""
        machines = self.asked.processes // self.asked.local
        return self.request.memory(max(1, one.processes // machines))

    def document(self, prepared: PreparedData, seconds_per_token: float | None) -> dict[str, Any]:
        """Everything as JSON values; see `dry_run_report`."""
        recipe, plan = self.recipe, self.plan
        tokens_per_epoch = plan.computed_epoch()
        tokens = tokens_per_epoch * plan.total_steps // plan.steps_per_epoch
        return {
            "name": recipe.run.name,
            "model": _model_name(recipe.model),
            "parameters": self.sizes.all.weights,
            "trainable": self.sizes.all.trained,
            "comparisons": len(prepared.train),
            "steps": plan.total_steps,
            "batch_size": plan.batch_size,
            "layout": self.layout,
            "layout_is_auto": recipe.batching.layout == "auto",
            "tokens_per_epoch": tokens_per_epoch,
            "padded_tokens_per_epoch": plan.padded_epoch(),
            "tokens": tokens,
            "micro_batches_per_step": plan.micro_batches_per_step(),
            "max_tokens": plan.max_tokens,
            "max_tokens_is_auto": recipe.batching.max_tokens == "auto",
            "largest_micro_batch": self.largest,
            "strategy": self.asked.name,
            "processes": self.asked.processes,
            "device": "cuda" if self.request.on_gpu else "cpu",
            "computing": "bfloat16" if self.autocast else "float32",
            "strategies": [
                {**asdict(one), "total": one.total, "memory": self.memory(one), "fits": one in self.fitting}
                for one in self.shares
            ],
            "fits": self.wanted in self.fitting,
            "seconds": None if seconds_per_token is None else seconds_per_token * tokens / self.asked.processes,
            "tokens_per_second": None if seconds_per_token is None else 1 / seconds_per_token,
        }


@dataclass(frozen=True, slots=True)
class Outline:
    """The model of a recipe without weights, as often as it is needed: a trace uses one up."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    request: Request

    def model(self) -> RewardModel:
        """A new one; it computes in the precision that the run would."""
        precision = self.recipe.training.precision
        model = meta_model(self.recipe.model, self.recipe.lora, self.tokenizer)
        model.autocast = self.request.on_gpu if precision == "auto" else uses_bfloat16(precision)
        return model

    def layout(self, data: TokenizedData) -> tuple[Layout, bool]:
        """That of the recipe, or of `auto` the first that the model takes; and whether its last layer is narrow there.

        Whether a model that takes a layout is also right in it, only its weights tell: that is left to the run.

        Raises:
            RecipeError: the model does not take the layout of the recipe.
        """
        some = gather(data, range(min(2, len(data))))
        wanted = self.recipe.batching.layout
        for layout in FALLBACKS if wanted == "auto" else (wanted,):
            batch = lay_out(some, self.tokenizer.pad_token_id, layout)
            for narrow in (True, False):
                if takes(self.model(), batch, layout, self.request.on_gpu, narrow):
                    return layout, narrow
        raise RecipeError(f"batching.layout: {wanted} is not for this model; set auto, or padded")

    def training(self, loader: StepLoader, sizes: Sizes, narrow: bool) -> tuple[Training, int]:
        """What one process keeps, and the tokens of the largest micro-batch of the plan."""
        largest, micro_batches = _heaviest(loader.plan)
        batch = lay_out(gather(loader.data, largest), self.tokenizer.pad_token_id, loader.layout)
        heaviest = loader.largest_micro_batch()
        casts = self.model().autocast
        own = self._trace(batch, loader.layout, narrow)
        training = Training(
            sizes=sizes,
            trace=own,
            gathered=self._trace(batch, loader.layout, narrow, torch.bfloat16) if casts else own,
            rehearsal=self._trace(heaviest, loader.layout, narrow),
            gathered_bytes=2 if casts or self.recipe.model.dtype == "bfloat16" else 4,
            optimizer=self.recipe.optimizer,
            micro_batches=micro_batches,
            on_gpu=self.request.on_gpu,
        )
        return training, loader.plan.costs.of_micro_batch(largest)

    def _trace(self, batch: MicroBatch, layout: Layout, narrow: bool, weights: torch.dtype | None = None) -> Trace:
        return trace(self.model(), batch, layout, self.request.on_gpu, weights, narrow)


def _plan(
    recipe: Recipe, prepared: PreparedData, layout: Layout, model: RewardModel, free: int, asked: Strategy, request: Request
) -> Plan:
    """The plan on the processes that are asked for; raises RecipeError when a comparison is above the budget."""
    costs = Costs.of(prepared.train, layout)
    max_tokens = recipe.batching.max_tokens
    if max_tokens == "auto":
        max_tokens = gpu_budget(free, costs, model) if request.on_gpu else cpu_budget(costs)
    check_budget(costs, prepared.train.ids, max_tokens)
    return Plan.of(recipe, costs, max_tokens, asked.processes)


def _heaviest(plan: Plan) -> tuple[Indices, int]:
    """The comparisons of the largest micro-batch, and the most micro-batches of a rank in a step, of the first steps."""
    steps = [plan.step(number) for number in range(min(SEARCHED_STEPS, plan.total_steps))]
    pieces = (piece for step in steps for rank in step.micro_batches for piece in rank if len(piece))
    return max(pieces, key=plan.costs.of_micro_batch), max(len(step.micro_batches[0]) for step in steps)


def _compared(asked: Strategy, recipe: Recipe, request: Request) -> list[tuple[Name, int]]:
    """Strategies with their processes: what is asked for, and all others that the recipe allows."""
    several = asked.processes if asked.processes > 1 else max(OTHERS if request.on_gpu else 2, torch.cuda.device_count())
    is_cut = recipe.optimizer.name == "adamw" and recipe.model.quantization is None
    names = [name for name in NAMES if is_cut or name not in SHARDING or name == asked.name]
    return [(name, asked.processes if name == asked.name else 1 if name == "single" else several) for name in names]


def measure(recipe: Recipe, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> float:
    """Seconds of a token in one process on this machine: those of an optimizer step of the real model, after one to warm up.

    Raises:
        RecipeError, RmtrainError: as a run says when it starts.
    """
    strategy = start(recipe)
    accelerator = strategy.accelerator
    model = build_model(recipe, tokenizer, golden_texts(tokenizer, recipe.data.max_length), accelerator)
    layout = choose_layout(model, recipe.batching.layout, probing_comparisons(prepared.train), tokenizer.pad_token_id)
    plan = make_plan(recipe, prepared, layout, agreed_budget(recipe, prepared.train, layout, model, accelerator), 1)
    loader = StepLoader(prepared.train, plan, layout, tokenizer.pad_token_id)
    meter = Meter(accelerator, flos_per_token(model))
    prepared_model, optimizer = strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
    warmup_largest_batch(strategy, prepared_model, optimizer, loader)
    for number in (0, 1):
        batch = loader.step(number % len(loader))
        began = _now()
        train_step(strategy, prepared_model, optimizer, recipe, meter, recipe.optimizer.lr, batch)
        seconds = _now() - began
    return seconds / sum(loader.plan.costs.of_micro_batch(piece) for piece in loader.plan.step(batch.step).micro_batches[0])


def _model_name(model: PretrainedModel | ScratchModel) -> str:
    return model.path if isinstance(model, PretrainedModel) else f"{model.scratch.architecture} from scratch"


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
