"""`rmtrain inspect`: comparisons as the model sees them, rows that are not used, and what an optimizer step holds."""

from rich.console import Console

from rmtrain.commands.inspect_dropped import inspect_dropped
from rmtrain.commands.inspect_rows import inspect_rows
from rmtrain.commands.inspect_step import inspect_step
from rmtrain.commands.outcome import Outcome
from rmtrain.commands.query import Query
from rmtrain.data.stored.prepare import prepare, prepare_unchecked
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.recipe.schema import Recipe
from rmtrain.report.reading import ReadingDisplay

FIRST_ROW = Query()


def inspect(recipe: Recipe, console: Console, query: Query = FIRST_ROW) -> Outcome:
    """Show what a recipe makes of its data.

    Args:
        recipe: its data and model sections are used, and for a step those that the plan follows from.
        console: shows progress.
        query: what to show.

    Raises:
        RecipeError: options that do not go together, or a step, source or reason that there is not.
        DataError: no such row, or the data is refused; rows that are dropped can be looked at nevertheless.
    """
    query.check()
    if query.step is not None:
        return inspect_step(recipe, console, query)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    read = prepare if query.dropped is None else prepare_unchecked
    with ReadingDisplay(console) as progress:
        prepared = read(recipe.data, tokenizer, progress)
    if query.dropped is not None:
        return inspect_dropped(recipe.data, prepared, query, query.dropped)
    return inspect_rows(prepared, tokenizer, query, console)
