"""`rmtrain preprocess`: rows to tokens, with an account of every row and a look at the lengths."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmtrain.commands.outcome import Outcome
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks import find_repeats
from rmtrain.data.columns import export_columns
from rmtrain.data.prepare import prepare
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.recipe.schema import Recipe
from rmtrain.report.lengths import LengthDistribution, length_statistics, length_table
from rmtrain.report.plots import plot_lengths
from rmtrain.report.reading import ReadingDisplay
from rmtrain.report.waterfall import waterfall_table


def preprocess(recipe: Recipe, console: Console, *, export: Path | None = None, plot: Path | None = None) -> Outcome:
    """Tokenize the data of a recipe, or take it from the cache, and report on it.

    Args:
        recipe: its data and model sections are used.
        console: shows progress.
        export: directory for `train.parquet` and `eval.parquet` with the columns `input_ids_chosen`, `attention_mask_chosen`, ...
        plot: file of the PNG of lengths; None: `lengths.png` beside the tokenized data.

    Raises:
        RecipeError, DataError, TryAgain: as `prepare` says.
    """
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingDisplay(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    splits = {name: data for name, data in (("train", prepared.train), ("eval", prepared.eval)) if len(data)}
    picture = plot or prepared.directory / "lengths.png"
    plot_lengths(lengths_of(prepared.train), picture, recipe.data.max_length)
    written = {name: str(export_columns(data, export / f"{name}.parquet")) for name, data in splits.items()} if export else {}
    document = {
        "directory": str(prepared.directory),
        "lengths_png": str(picture),
        "export": written,
        "splits": {name: _document(data) for name, data in splits.items()},
    }
    parts: list[RenderableType] = []
    for name, data in splits.items():
        parts += [_report(name, data), Text()]
    parts += [Text(f"lengths       {picture}"), Text(f"tokenized     {prepared.directory}")]
    parts += [Text(f"exported      {file}") for file in written.values()]
    return Outcome(Group(*parts), document)


def lengths_of(data: TokenizedData) -> dict[str, NDArray[Any]]:
    """Token lengths of prompts, and of the winner and the loser of each preference, prompt not counted."""
    chosen, rejected = data.preference_lengths()
    return {"prompt": data.prompt_lengths, "chosen": chosen, "rejected": rejected}


def _document(data: TokenizedData) -> dict[str, Any]:
    repeats = find_repeats(data)
    return {
        "comparisons": len(data),
        "responses": len(data.lengths),
        "preferences": int(data.preference_counts.sum()),
        "waterfall": data.waterfall.to_json(),
        "lengths": {name: length_statistics(values) for name, values in lengths_of(data).items()},
        "tokens": int(data.total_tokens.sum()),
        "unique_tokens": int(data.unique_tokens.sum()),
        "duplicates": repeats.duplicates,
        "contradictions": repeats.contradictions,
    }


def _report(name: str, data: TokenizedData) -> RenderableType:
    repeats, lengths = find_repeats(data), lengths_of(data)
    found = {"duplicate pairs": repeats.duplicates, "contradictory pairs": repeats.contradictions}
    fewest, most = data.response_counts.min(), data.response_counts.max()
    sizes = f"{len(data):,} comparisons of {fewest} to {most} responses, with {data.preference_counts.sum():,} preferences"
    remarks = [f"{len(pairs):,} {what}, such as {pairs[0][0]} and {pairs[0][1]}; kept" for what, pairs in found.items() if pairs]
    return Group(
        Text(name, style="bold underline"),
        waterfall_table(data.waterfall.to_json()),
        *([Text(sizes)] if most > 2 else []),
        *(Text(f"! {remark}", style="yellow") for remark in remarks),
        Text(),
        length_table(lengths),
        LengthDistribution(lengths),
    )
