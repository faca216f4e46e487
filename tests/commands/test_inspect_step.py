"""`inspect --step`: its numbers are those of the plan and of the laid out micro-batches, in every layout and on every rank."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from rich.console import Console
from rich.text import Text

from rmtrain.batching.layout import lay_out
from rmtrain.command_line.options import CommandResult, InspectOptions
from rmtrain.commands.inspect import inspect, step_plan
from rmtrain.commands.train import make_plan
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.memory import token_budget
from rmtrain.engine.strategy import Strategy
from rmtrain.errors import RecipeError
from rmtrain.recipe.schema import Recipe
from tests.report.render import console, written
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)


def with_batching(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"batching": recipe.batching.model_copy(update=changes)})


def inspect_step(recipe: Recipe, step: int = 0, world: int | None = None) -> CommandResult:
    return inspect(recipe, QUIET, InspectOptions(step=step, world_size=world))


def shown(result: CommandResult, width: int = 100) -> str:
    target = console(width)
    target.print(result.report, crop=False)
    return Text.from_ansi(written(target)).plain


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """53 rows: seven steps per epoch, the last with five rows, and four steps of the next epoch."""
    return tiny_recipe(tmp_path_factory.mktemp("step"), rows=53, training={"epochs": 2, "max_steps": 11})


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> TokenizedData:
    return prepare(recipe.data, load_tokenizer(recipe.model, recipe.data)).train


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("layout", ["shared_prefix", "packed", "padded"])
def test_step_has_the_numbers_of_the_plan(recipe: Recipe, data: TokenizedData, layout: Any, world: int) -> None:
    changed = with_batching(recipe, layout=layout, max_tokens=300)
    plan = step_plan(changed, data, layout, world)
    seen: list[str] = []
    for number in range(plan.total_steps):
        step, document = plan.step(number), inspect_step(changed, number, world).document
        batches = document["micro_batches"]
        pieces = [piece for rank in step.micro_batches for piece in rank]
        assert [(batch["rank"], batch["number"]) for batch in batches] == [
            (rank, place) for rank in range(world) for place in range(len(step.micro_batches[rank]))
        ]
        assert [[row["row"] for row in batch["comparisons"]] for batch in batches] == [piece.tolist() for piece in pieces]
        costs = [plan.costs.of_micro_batch(piece) if len(piece) else 0 for piece in pieces]
        computed = [batch["tokens"] for batch in batches]
        assert all(tokens <= cost for tokens, cost in zip(computed, costs, strict=True))
        assert computed == costs or layout == "padded"
        assert document["tokens"] == sum(computed)
        assert max(costs) <= document["max_tokens"] == 300
        runs = [sum(tokens for row in batch["comparisons"] for _, tokens in row["runs"]) for batch in batches]
        assert runs == computed
        assert sum(batch["padding"] for batch in batches) <= 0.1 * document["tokens"]
        assert document["padded_tokens"] >= document["tokens"]
        names = [row["id"] for batch in batches for row in batch["comparisons"]]
        assert Counter(names) == Counter(data.ids[index] for index in step.indices.tolist())
        assert (document["epoch"], document["step_of_epoch"]) == divmod(number, plan.steps_per_epoch)
        seen += names if step.epoch == 0 else []
    assert Counter(seen) == Counter(data.ids), "an epoch has each comparison once"
    assert plan.total_steps == 11 > plan.steps_per_epoch, "guard: across epochs, and max_steps holds"


@pytest.mark.parametrize("layout", ["shared_prefix", "packed", "padded"])
def test_runs_are_those_of_the_layout(recipe: Recipe, data: TokenizedData, layout: Any) -> None:
    """The kinds of tokens are drawn in the order in which `lay_out` stores the tokens."""
    for batch in inspect_step(with_batching(recipe, layout=layout), world=2).document["micro_batches"]:
        laid_out = lay_out([data[row["row"]] for row in batch["comparisons"]], 0, layout)
        tokens = [tokens for row in batch["comparisons"] for _, tokens in row["runs"]]
        if laid_out.segments is not None:
            stored = zip(laid_out.segments.prefixes, laid_out.segments.responses, strict=True)
            assert tokens == [length for prefix, responses in stored for length in (prefix, *responses) if length]
        else:
            assert laid_out.attention_mask_RT is not None
            real = laid_out.attention_mask_RT.sum(1)[laid_out.sequence_N].tolist()
            assert [length for row in batch["comparisons"] for kind, length in row["runs"] if kind != "padding"] == real
            assert sum(tokens) == sum(part.input_ids_RT.numel() for part in laid_out.rectangles())
            assert len(set(real)) > 1, "guard: rows differ"


def test_plan_is_that_of_training_on_cpu(recipe: Recipe, data: TokenizedData) -> None:
    auto = with_batching(recipe, max_tokens="auto")
    tokenizer = load_tokenizer(auto.model, auto.data)
    prepared = prepare(auto.data, tokenizer)
    budget = token_budget(auto, prepared.train, "shared_prefix", tokenizer, Strategy(Accelerator(cpu=True)))
    theirs = make_plan(auto, prepared, "shared_prefix", budget, world=2)
    ours = step_plan(auto, data, "shared_prefix", world=2)
    assert (ours.total_steps, ours.max_tokens) == (theirs.total_steps, theirs.max_tokens) == (11, 8192)
    for number in range(11):
        step, other = ours.step(number), theirs.step(number)
        assert [[piece.tolist() for piece in rank] for rank in step.micro_batches] == [
            [piece.tolist() for piece in rank] for rank in other.micro_batches
        ]


def test_step_is_drawn_with_auto_resolved(recipe: Recipe, data: TokenizedData) -> None:
    result = inspect_step(recipe, world=2)
    document = result.document
    json.dumps(document)
    assert (document["layout"], document["layout_is_auto"]) == ("shared_prefix", True)
    assert document["max_tokens"] == 1024
    assert inspect_step(with_batching(recipe, max_tokens="auto")).document["max_tokens"] == 8192
    row = document["micro_batches"][0]["comparisons"][0]
    stored = data[row["row"]]
    assert row["prefix_length"] == stored.prefix_length == dict(row["runs"])["prefix"]
    assert row["response_lengths"] == [len(sequence) - stored.prompt_length for sequence in stored.sequences]
    text = shown(result)
    assert "rank 1 micro-batch 0" in text
    assert "░" in text
    assert "█" in text
    assert "▒" in text


def test_steps_beyond_the_run_are_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"^--step 11: .*\b11 steps, 0 to 10$"):
        inspect_step(recipe, 11)


def test_comparisons_above_the_budget_are_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"^batching.max_tokens: .*\btrain:\d+\b.*\b20\b"):
        inspect_step(with_batching(recipe, max_tokens=20))


def test_kinds_of_many_responses(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": f"answer {best}", "rejected": f"answer {worst}"} for best, worst in ((0, 1), (1, 2), (2, 3))
    ]
    source = {"path": str(write_rows(tmp_path / "many.jsonl", [*rows, *planted_rows(3)])), "group_by_prompt": True}
    recipe = tiny_recipe(tmp_path, data={"train": [source], "max_drop_fraction": 1.0})
    rows = inspect_step(recipe).document["micro_batches"][0]["comparisons"]
    (many,) = [row for row in rows if len(row["response_lengths"]) == 4]
    assert [kind for kind, _ in many["runs"]] == ["prefix", "chosen", "other", "other", "rejected"]
    assert "responses" in shown(inspect_step(recipe))


def test_packing_of_real_rows(shared_data: Path, tmp_path: Path) -> None:
    source = {"path": str(shared_data / "hh_harmless.jsonl.gz"), "messages": {"transcript": "hh"}, "limit": 200}
    data = {"train": [source], "eval": [], "max_length": 1024, "max_drop_fraction": 1.0, "chat_template": "simple_chat"}
    model = {"scratch": {"architecture": "llama", "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 1024}}
    recipe = tiny_recipe(tmp_path, data=data, model=model, batching={"max_tokens": "auto"}, training={"batch_size": 32})
    step = inspect_step(recipe, 1, 2).document
    assert step["tokens"] < 0.5 * step["padded_tokens"]
    assert sum(len(batch["comparisons"]) for batch in step["micro_batches"]) == 32
