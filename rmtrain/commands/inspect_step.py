"""`rmtrain inspect --step`: what an optimizer step holds and how it is packed, from the very plan and layout that `train` follows."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rmtrain.batching.layout import Layout, MicroBatch
from rmtrain.batching.loader import StepLoader
from rmtrain.batching.plan import Costs, Indices, Plan, check_budget, cpu_budget
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.query import Query
from rmtrain.data.checks.ranking import extremes
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.data.stored.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Recipe
from rmtrain.report.micro_batch import step_view
from rmtrain.report.reading import ReadingDisplay

FIRST_LAYOUT: Layout = "shared_prefix"
FIRST_STEP = Query(step=0)

Run = tuple[str, int]
"""A kind of token and how many of it follow one another."""


def inspect_step(recipe: Recipe, console: Console, query: Query = FIRST_STEP) -> Outcome:
    """Show the micro-batches of an optimizer step on every rank, and their comparisons.

    No model is built: `batching.layout: auto` is taken to be `shared_prefix`, and `batching.max_tokens: auto` what it is on a CPU.

    Args:
        recipe: its data section is used, and those that the plan follows from.
        console: shows progress.
        query: which step, and of how many processes.

    Raises:
        RecipeError: options that do not go together, no such step, or a comparison that is above the budget.
        DataError: the data is refused.
    """
    query.check()
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingDisplay(console) as progress:
        data = prepare(recipe.data, tokenizer, progress).train
    document = step_document(recipe, data, tokenizer, query.step or 0, query.world_size or 1)
    return Outcome(step_view(document, query.limit), document)


def step_document(
    recipe: Recipe, data: TokenizedData, tokenizer: PreTrainedTokenizerBase, number: int, world: int
) -> dict[str, Any]:
    """A step of so many processes as JSON values; see `step_view`. Raises RecipeError when there is no such step."""
    layout = FIRST_LAYOUT if recipe.batching.layout == "auto" else recipe.batching.layout
    plan = step_plan(recipe, data, layout, world)
    if number >= plan.total_steps:
        raise RecipeError(f"--step {number}: the run has {plan.total_steps} steps, 0 to {plan.total_steps - 1}")
    step = plan.step(number)
    batches = [
        _batch_document(rank, place, indices, batch, data, plan.costs)
        for rank in range(world)
        for place, (indices, batch) in enumerate(
            zip(step.micro_batches[rank], _laid_out(data, plan, layout, tokenizer, rank, number), strict=True)
        )
    ]
    return {
        "step": number,
        "steps": plan.total_steps,
        "epoch": step.epoch,
        "step_of_epoch": number % plan.steps_per_epoch,
        "steps_per_epoch": plan.steps_per_epoch,
        "layout": layout,
        "layout_is_auto": recipe.batching.layout == "auto",
        "max_tokens": plan.max_tokens,
        "max_tokens_is_auto": recipe.batching.max_tokens == "auto",
        "world_size": world,
        "comparisons": len(step.indices),
        "tokens": sum(batch["tokens"] for batch in batches),
        "padded_tokens": sum(batch["padded_tokens"] for batch in batches),
        "micro_batches": batches,
    }


def step_plan(recipe: Recipe, data: TokenizedData, layout: Layout, world: int) -> Plan:
    """The plan of a recipe on so many processes without a GPU; raises RecipeError when a comparison is above the budget."""
    costs = Costs.of(data, layout)
    max_tokens = cpu_budget(costs) if recipe.batching.max_tokens == "auto" else recipe.batching.max_tokens
    check_budget(costs, data.ids, max_tokens)
    return Plan.of(recipe, costs, max_tokens, world)


def _laid_out(
    data: TokenizedData, plan: Plan, layout: Layout, tokenizer: PreTrainedTokenizerBase, rank: int, number: int
) -> Sequence[MicroBatch]:
    return StepLoader(data, plan, layout, tokenizer.pad_token_id, rank).step(number).micro_batches


def _batch_document(
    rank: int, place: int, indices: Indices, batch: MicroBatch, data: TokenizedData, costs: Costs
) -> dict[str, Any]:
    rows = [_row_document(int(index), data[int(index)], runs) for index, runs in zip(indices, _runs(batch), strict=False)]
    tokens = sum(row["tokens"] for row in rows)
    longest = max((max(map(len, data[int(index)].sequences)) for index in indices), default=0)
    return {
        "rank": rank,
        "number": place,
        "tokens": tokens,
        "padding": sum(count for row in rows for kind, count in row["runs"] if kind == "padding"),
        "padded_tokens": longest * int(costs.responses[indices].sum()),
        "comparisons": rows,
    }


def _row_document(number: int, row: TokenizedComparison, runs: Sequence[Sequence[int]]) -> dict[str, Any]:
    named = list(_named(row, runs))
    return {
        "id": row.id,
        "source": row.source,
        "row": number,
        "prompt_length": row.prompt_length,
        "prefix_length": row.prefix_length,
        "response_lengths": [len(sequence) - row.prompt_length for sequence in row.sequences],
        "tokens": sum(count for _, count in named),
        "margin": row.preferences[0].margin if len(row.preferences) == 1 else None,
        "runs": named,
    }


def _runs(batch: MicroBatch) -> Iterator[list[list[int]]]:
    """Of each comparison its prefix, then for each response its tokens and its padding, as they lie in a micro-batch."""
    if batch.segments is not None:
        for prefix, responses in zip(batch.segments.prefixes, batch.segments.responses, strict=True):
            yield [[prefix], *([length, 0] for length in responses)]
        return
    assert batch.attention_mask_RT is not None, "rows that are padded have a mask"
    real = batch.attention_mask_RT.sum(1).tolist()
    begin, width = 0, batch.input_ids_RT.shape[1]
    for count in batch.response_counts:
        yield [[0], *([length, width - length] for length in real[begin : begin + count])]
        begin += count


def _named(row: TokenizedComparison, runs: Sequence[Sequence[int]]) -> Iterator[Run]:
    (prefix,), *responses = runs
    best, worst = extremes(row)
    kinds = {best: "chosen", worst: "rejected"}
    yield from [("prefix", prefix)] if prefix else []
    for number, (length, padding) in enumerate(responses):
        yield kinds.get(number, "other"), length
        yield from [("padding", padding)] if padding else []
