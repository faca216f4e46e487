"""`rmtrain preprocess`: rows to tokens, with an account of every row, what is wrong with them, and a look at the lengths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmtrain.commands.result import CommandResult
from rmtrain.data.artifact import TokenizedData, export_columns
from rmtrain.data.checks.audit import audit
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.recipe.schema import Recipe
from rmtrain.report.lengths import LengthDistribution, length_statistics, length_table
from rmtrain.report.plots import plot_lengths
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.tables import findings_report, waterfall_table


def preprocess(recipe: Recipe, console: Console, *, export: Path | None = None, plot: Path | None = None) -> CommandResult:
    """Tokenize the data of a recipe, or take it from the cache, and report on it.

    Args:
        recipe: its data and model sections are used.
        console: shows progress.
        export: directory for `train.parquet` and `eval.parquet` with the columns `input_ids_chosen`, `attention_mask_chosen`, ...
        plot: file of the PNG of lengths; None: `lengths.png` beside the tokenized data, where that may be written.

    Raises:
        RecipeError, DataError, TryAgain: as `prepare` and `audit` say.
    """
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    findings = audit(prepared, recipe.data, tokenizer)
    splits = {name: data for name, data in (("train", prepared.train), ("eval", prepared.eval)) if len(data)}
    picture = plot or (prepared.directory / "lengths.png" if os.access(prepared.directory, os.W_OK) else None)
    if picture is not None:
        plot_lengths(lengths_of(prepared.train), picture, recipe.data.max_length)
    written = {name: str(export_columns(data, export / f"{name}.parquet")) for name, data in splits.items()} if export else {}
    document = {
        "directory": str(prepared.directory),
        "lengths_png": None if picture is None else str(picture),
        "export": written,
        "splits": {name: _document(data) for name, data in splits.items()},
        "findings": findings,
    }
    parts: list[RenderableType] = []
    for name, data in splits.items():
        parts += [_report(name, data, findings["splits"][name]), Text()]
    parts += [Text(f"findings      {findings['list'] or 'not written: the directory is read-only'}")]
    parts += [
        Text(f"lengths       {picture or 'not drawn: the directory is read-only; name a file with --plot'}"),
        Text(f"tokenized     {prepared.directory}"),
    ]
    parts += [Text(f"exported      {file}") for file in written.values()]
    return CommandResult(Group(*parts), document)


def lengths_of(data: TokenizedData) -> dict[str, NDArray[Any]]:
    """Token lengths of prompts, and of the winner and the loser of each preference, prompt not counted."""
    chosen, rejected = data.preference_lengths()
    return {"prompt": data.prompt_lengths, "chosen": chosen, "rejected": rejected}


def _document(data: TokenizedData) -> dict[str, Any]:
    return {
        "comparisons": len(data),
        "responses": len(data.lengths),
        "preferences": int(data.preference_counts.sum()),
        "waterfall": data.waterfall.to_json(),
        "lengths": {name: length_statistics(values) for name, values in lengths_of(data).items()},
        "tokens": int(data.total_tokens.sum()),
        "unique_tokens": int(data.unique_tokens.sum()),
    }


def _report(name: str, data: TokenizedData, findings: Mapping[str, Any]) -> RenderableType:
    lengths = lengths_of(data)
    fewest, most = data.response_counts.min(), data.response_counts.max()
    sizes = f"{len(data):,} comparisons of {fewest} to {most} responses, with {data.preference_counts.sum():,} preferences"
    return Group(
        Text(name, style="bold underline"),
        waterfall_table(data.waterfall.to_json()),
        *([Text(sizes)] if most > 2 else []),
        Text(),
        findings_report(findings),
        Text(),
        length_table(lengths),
        LengthDistribution(lengths),
    )
