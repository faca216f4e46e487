"""`rmtrain preprocess`: tokenize and cache the data, and report on rows, findings and lengths."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmtrain.command_line.options import CommandResult
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks.findings import findings_of
from rmtrain.data.prepare import prepare
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks.measure import prompt_sources
from rmtrain.files import expanded
from rmtrain.recipe.load import as_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.report.console import KeyValues
from rmtrain.report.lengths import LengthDistribution, length_statistics, length_table, plot_lengths
from rmtrain.report.progress import ReadingProgress
from rmtrain.report.tables import findings_report, waterfall_table
from rmtrain.report.terminal import TerminalConsole

EXPORT_ROWS = 1000
EXPORT_SCHEMA = pa.schema(
    {
        "input_ids_chosen": pa.list_(pa.int32()),
        "attention_mask_chosen": pa.list_(pa.int8()),
        "input_ids_rejected": pa.list_(pa.int32()),
        "attention_mask_rejected": pa.list_(pa.int8()),
        "margin": pa.float64(),
        "id": pa.string(),
    }
)


def preprocess(
    recipe: Recipe | str | Path, console: Console | None = None, *, export: Path | None = None, plot: Path | None = None
) -> CommandResult:
    """Tokenize the data of a recipe, or take it from the cache, and report on it.

    Args:
        recipe: the recipe, or its file; its data and model sections are used.
        console: shows progress; None: stderr.
        export: directory for `train.parquet` and `eval.parquet` with the columns of `EXPORT_SCHEMA`.
        plot: PNG file for the token lengths; None: `lengths.png` next to the cached data, if that directory is writable.

    Raises:
        RecipeError, DataError, TryAgain: see `prepare` and `findings_of`.
    """
    recipe, console = as_recipe(recipe), console or TerminalConsole(stderr=True)
    export, plot = export and expanded(export, "--export"), plot and expanded(plot, "--plot")
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    with ReadingProgress(console) as progress:
        prepared = prepare(recipe.data, tokenizer, progress)
    findings = findings_of(prepared, recipe.data, tokenizer, prompt_sources(recipe.data.benchmarks))
    if plot is None and os.access(prepared.directory, os.W_OK):
        plot = prepared.directory / "lengths.png"
    if plot is not None:
        plot_lengths(_lengths(prepared.train), plot, recipe.data.max_length)

    exported: dict[str, str] = {}
    splits: dict[str, Any] = {}
    parts: list[RenderableType] = []
    for name, data in prepared.splits.items():
        if export is not None:
            exported[name] = str(export_columns(data, export / f"{name}.parquet"))
        lengths, waterfall, preferences = _lengths(data), data.waterfall.to_json(), int(data.preference_counts.sum())
        splits[name] = {
            "comparisons": len(data),
            "responses": len(data.lengths),
            "preferences": preferences,
            "targets": int(data.target_counts.sum()),
            "waterfall": waterfall,
            "lengths": {part: length_statistics(values) for part, values in lengths.items()},
            "tokens": int(data.total_tokens.sum()),
            "unique_tokens": int(data.unique_tokens.sum()),
        }
        parts += [Text(name, style="bold underline"), waterfall_table(waterfall)]
        fewest, most = data.response_counts.min(), data.response_counts.max()
        if most > 2:
            parts.append(Text(f"{len(data):,} comparisons of {fewest} to {most} responses, with {preferences:,} preferences"))
        parts += [Text(), findings_report(findings["splits"][name]), Text()]
        parts += [length_table(lengths), LengthDistribution(lengths), Text()]

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


def export_columns(data: TokenizedData, file: Path) -> Path:
    """Write pairs to a Parquet file with the columns of `EXPORT_SCHEMA`, and return the file. Its folder is created if it is missing.

    Raises:
        DataError: a comparison is not just a pair: it has more or fewer responses or preferences, a weight, or a probability.
    """
    weights = np.zeros(len(data))
    rows_E = np.repeat(np.arange(len(data)), data.preference_counts)
    np.add.at(weights, rows_E, data.values("weights"))
    probabilities = np.ones(len(data))
    np.minimum.at(probabilities, rows_E, data.values("probabilities"))
    others = (
        (data.response_counts != 2) | (data.preference_counts != 1) | (weights != 1) | (data.weights != 1) | (probabilities < 1)
    )
    if others.any():
        number = int(others.argmax())
        responses = data.response_counts[number]
        if responses != 2 or not data.preference_counts[number]:
            problem = f"{responses} responses" if responses != 2 else "targets"
        elif probabilities[number] < 1:
            problem = f"a preference with probability {probabilities[number]:g}"
        else:
            problem = f"preferences with a total weight of {weights[number] * data.weights[number]:g}"
        raise DataError(
            f"{data.ids[number]}: {problem}, but a chosen and a rejected column hold one pair; "
            "export pairs that are not grouped by prompt, ranked, soft or weighted"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, EXPORT_SCHEMA) as writer:
        for begin in range(0, len(data), EXPORT_ROWS):
            pairs = []
            for index in range(begin, min(begin + EXPORT_ROWS, len(data))):
                row = data[index]
                (edge,) = row.preferences
                chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
                pairs.append((chosen, [1] * len(chosen), rejected, [1] * len(rejected), edge.margin, row.id))
            columns = [pa.array(cells, field.type) for field, cells in zip(EXPORT_SCHEMA, zip(*pairs, strict=True), strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=EXPORT_SCHEMA))
    return file
