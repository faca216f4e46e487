"""Hand-written preferences as the arrays that checks use, and small prepared data, for tests."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import PreferenceEdges, mix
from rmtrain.data.prepare import PreparedData, prepare
from rmtrain.recipe.schema import Data
from tests.helpers import data_of, write_jsonl


class Edge(NamedTuple):
    """Row `row` prefers response `winner` to `loser` of a prompt; all are numbers."""

    row: int
    prompt: int
    winner: int
    loser: int
    probability: float = 1.0


def edges_from(*edges: tuple[Any, ...]) -> PreferenceEdges:
    """Return edges as arrays, in this order."""
    rows = [Edge(*edge) for edge in edges]
    prompts, winners, losers = (np.array([row[place] for row in rows], np.uint64) for place in (1, 2, 3))
    return PreferenceEdges(
        comparisons=np.array([row.row for row in rows], np.int64),
        winners=winners.astype(np.int64),
        losers=losers.astype(np.int64),
        winner_nodes=mix(prompts, winners),
        loser_nodes=mix(prompts, losers),
        margins=np.zeros(len(rows)),
        probabilities=np.array([row.probability for row in rows]),
    )


def row(prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    """Return a pair as a row."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def prepared_rows(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **settings: Any
) -> tuple[PreparedData, Data]:
    """Write rows to a training file, prepare it, and return the prepared data and its recipe section."""
    folder.mkdir(parents=True, exist_ok=True)
    data = data_of(write_jsonl(folder / "rows.jsonl", rows), folder / "cache", **settings)
    return prepare(data, tokenizer), data
