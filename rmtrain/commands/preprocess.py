"""`rmtrain preprocess`: tokenize and cache the data, and report on rows, findings and lengths."""

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmtrain.commands.options import CommandResult
from rmtrain.data.artifact import TokenizedData, export_columns
from rmtrain.data.checks.audit import audit
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.recipe.schema import Recipe
from rmtrain.report.console import KeyValues
from rmtrain.report.lengths import LengthDistribution, length_statistics, length_table, plot_lengths
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.tables import findings_report, waterfall_table


def preprocess(recipe: Recipe, console: Console, *, export: Path | None = None, plot: Path | None = None) -> CommandResult:
    """Tokenize the data of a recipe, or take it from the cache, and report on it.

    Args:
        recipe: its data and model sections are used.
        console: shows progress.
        export: directory for `train.parquet` and `eval.parquet` with the columns `input_ids_chosen`, `attention_mask_chosen`, ...
        plot: PNG file for the token lengths; None: `lengths.png` next to the cached data, if that directory is writable.

    Raises:
        RecipeError, DataError, TryAgain: see `prepare` and `audit`.
    """
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    findings = audit(prepared, recipe.data, tokenizer)
    if plot is None and os.access(prepared.directory, os.W_OK):
        plot = prepared.directory / "lengths.png"
    if plot is not None:
        plot_lengths(_lengths(prepared.train), plot, recipe.data.max_length)

    exported: dict[str, str] = {}
    splits: dict[str, Any] = {}
    parts: list[RenderableType] = []
    for name, data in (("train", prepared.train), ("eval", prepared.eval)):
        if not len(data):
            continue
        if export is not None:
            exported[name] = str(export_columns(data, export / f"{name}.parquet"))
        lengths, waterfall, preferences = _lengths(data), data.waterfall.to_json(), int(data.preference_counts.sum())
        splits[name] = {
            "comparisons": len(data),
            "responses": len(data.lengths),
            "preferences": preferences,
            "waterfall": waterfall,
            "lengths": {part: length_statistics(values) for part, values in lengths.items()},
            "tokens": int(data.total_tokens.sum()),
            "unique_tokens": int(data.unique_tokens.sum()),
        }
        parts += [Text(name, style="bold underline"), waterfall_table(waterfall)]
        fewest, most = data.response_counts.min(), data.response_counts.max()
        if most > 2:
            parts.append(Text(f"{len(data):,} comparisons of {fewest} to {most} responses, with {preferences:,} preferences"))
        parts += [
            Text(),
            findings_report(findings["splits"][name]),
            Text(),
            length_table(lengths),
            LengthDistribution(lengths),
            Text(),
        ]

    files = {
        "findings": str(findings["list"] or "not written: the directory is read-only"),
        "lengths": str(plot or "not drawn: the directory is read-only; set a file with --plot"),
        "tokenized": str(prepared.directory),
        **{f"exported {name}": file for name, file in exported.items()},
    }
    document = {
        "directory": str(prepared.directory),
        "lengths_png": None if plot is None else str(plot),
        "export": exported,
        "splits": splits,
        "findings": findings,
    }
    return CommandResult(Group(*parts, KeyValues(files)), document)


def _lengths(data: TokenizedData) -> dict[str, NDArray[Any]]:
    """Return the token lengths of prompts, and of the winner and the loser of each preference without the prompt."""
    chosen, rejected = data.preference_lengths()
    return {"prompt": data.prompt_lengths, "chosen": chosen, "rejected": rejected}
