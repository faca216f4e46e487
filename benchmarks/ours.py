"""Our side: `rmtrain.engine.loop.train_step` on the micro-batches of a StepLoader, first unmeasured steps, then steps on the clock."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.common import Stopwatch, Trace
from benchmarks.pairs import unique_tokens, visible_pairs
from rmtrain.batching.plan import Costs, Plan, StepLoader
from rmtrain.commands.train import flos_per_token
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.prepare import PreparedData
from rmtrain.engine.loop import build_optimizer, train_step
from rmtrain.engine.memory import retry_on_oom, token_budget, warmup_largest_batch
from rmtrain.engine.run_log import Meter
from rmtrain.engine.strategy import Strategy
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel, computing_type
from rmtrain.recipe.schema import Recipe


def step_loader(
    recipe: Recipe,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerFast,
    rank: int = 0,
    world: int = 1,
    budget: int | None = None,
) -> StepLoader:
    """The steps of one epoch of these data, for one rank of `world`. The recipe names its layout and, unless `budget` does, its budget."""
    layout, budget = recipe.batching.layout, budget or recipe.batching.max_tokens
    plan = Plan(Costs.of(data.train, layout), recipe.training.batch_size, budget, epochs=1, seed=recipe.run.seed, world=world)
    return StepLoader(data.train, plan, layout, tokenizer.pad_token_id, rank)


def operations(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rows: Sequence[TokenizedComparison], accelerator: Accelerator
) -> int:
    """Floating-point operations that training once on these comparisons needs, as matmul_efficiency.py says.

    A frozen parameter needs no gradient of its own: 4 operations a token instead of 6. Of the last layer, all tokens need keys and
    values; the rest is needed where rewards are read.
    """
    with accelerator.device:
        model = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}

    def per_token(module: nn.Module) -> int:
        matrices = (parameter for parameter in module.parameters() if id(parameter) not in tables)
        return sum((6 if parameter.requires_grad else 4) * parameter.numel() for parameter in matrices)

    sizes = recipe.model.scratch
    (last,) = (m[-1] for m in model.backbone.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == sizes.layers)
    size = model.backbone.config.hidden_size
    keys_and_values = 2 * size * size * (sizes.key_value_heads or sizes.heads) // sizes.heads
    share = 1 - keys_and_values / sum(parameter.numel() for parameter in last.parameters())
    tokens, lengths = sum(map(unique_tokens, rows)), [len(sequence) for row in rows for sequence in row.sequences]
    matrices = per_token(model) * tokens - share * per_token(last) * (tokens - len(lengths))
    attention = 12 * size * ((sizes.layers - 1) * sum(map(visible_pairs, rows)) + sum(lengths))
    return round(matrices) + attention


def set_up(recipe: Recipe, model: RewardModel, strategy: Strategy) -> Meter:
    """Make a model ready to train on the device of a strategy, in the recipe's layout and precision."""
    model.use_layout(recipe.batching.layout)
    model.computing = computing_type(recipe.training.precision, strategy.accelerator.device)
    strategy.place(model)
    strategy.prepare(model, build_optimizer(model, recipe.optimizer), recipe.optimizer.clip)
    return Meter(strategy.accelerator, flos_per_token(model))


class FewSteps(NamedTuple):
    """Losses and gradient norms of some steps, and the budget before the first and after the last."""

    losses: list[float]
    grad_norms: list[float]
    first_budget: int
    last_budget: int


def few_steps(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: PreparedData, strategy: Strategy) -> FewSteps:
    """Train a new model of the recipe for `training.max_steps`, as a run does: budget, heaviest micro-batch, steps, less memory.

    The weights are drawn on the CPU, and so the same on every device.
    """
    accelerator = strategy.accelerator
    built = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    meter = set_up(recipe, built, strategy)
    budget = token_budget(recipe, data.train, recipe.batching.layout, tokenizer, strategy)
    loader = step_loader(recipe, data, tokenizer, budget=budget)
    warmup_largest_batch(strategy, loader)
    lines, lr = [], recipe.optimizer.lr
    for number in range(recipe.training.max_steps):
        retry_on_oom(partial(train_step, strategy, recipe.objective, meter, lr), number % len(loader), strategy, loader)
        lines.append(meter.report(number + 1, 0.0, lr))
    accelerator.free_memory()
    losses, grad_norms = ([line[name] for line in lines] for name in ("train/loss", "train/grad_norm"))
    return FewSteps(losses, grad_norms, budget, loader.plan.max_tokens)


def train_ours(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    warm: PreparedData,
    timed: PreparedData,
    strategy: Strategy,
    share: tuple[int, int] | None = None,
) -> Trace:
    """Train a new model of the recipe on one epoch of `warm`, then on one of `timed`, which is measured.

    Before both comes, on a GPU, the heaviest micro-batch, as in every run; it is not measured either.

    Args:
        recipe: sizes, an explicit layout and budget, batch size, a constant learning rate.
        tokenizer: the recipe's.
        warm, timed: comparisons of the first, unmeasured steps and of the measured ones.
        strategy: the processes, and the device.
        share: the rank, and of how many, whose micro-batches are computed; None: those of the strategy's own.
    """
    accelerator = strategy.accelerator
    with accelerator.device:
        built = build_reward_model(recipe.model, recipe.lora, tokenizer, recipe.run.seed)
    meter = set_up(recipe, built, strategy)

    def epoch(loader: StepLoader) -> list[dict[str, float]]:
        lines = []
        for number in range(len(loader)):
            train_step(strategy, recipe.objective, meter, recipe.optimizer.lr, loader.step(number))
            lines.append(meter.report(number + 1, 0.0, recipe.optimizer.lr))
        return lines

    rank, world = share or (accelerator.process_index, accelerator.num_processes)
    loader = step_loader(recipe, timed, tokenizer, rank, world)
    warmup_largest_batch(strategy, loader)
    epoch(step_loader(recipe, warm, tokenizer, rank, world))
    watch = Stopwatch()
    lines = epoch(loader)
    watch.lap()
    accelerator.free_memory()
    batches = [micro_batch for number in range(len(loader)) for micro_batch in loader.step(number).micro_batches]
    return Trace(
        *watch.between(0, 1),
        [line["train/loss"] for line in lines],
        [line["train/grad_norm"] for line in lines],
        sum(part.input_ids_RT.numel() for batch in batches for part in batch.rectangles()),
        sum(batch.tokens for batch in batches),
    )
