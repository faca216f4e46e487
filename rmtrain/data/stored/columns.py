"""Tokenized data as the four columns that reward trainers of the field read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rmtrain.data.stored.artifact import TokenizedData
from rmtrain.errors import DataError

EXPORT_ROWS = 1000
SCHEMA = pa.schema(
    {
        "input_ids_chosen": pa.list_(pa.int32()),
        "attention_mask_chosen": pa.list_(pa.int8()),
        "input_ids_rejected": pa.list_(pa.int32()),
        "attention_mask_rejected": pa.list_(pa.int8()),
        "margin": pa.float64(),
        "id": pa.string(),
    }
)


def export_columns(data: TokenizedData, file: Path) -> Path:
    """Write pairs as `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected`, `attention_mask_rejected`, `margin`, and `id`.

    Args:
        data: comparisons of two responses.
        file: the Parquet file to write; its folder is made where it is missing.

    Returns:
        The file.

    Raises:
        DataError: a comparison is more than a pair: it has more responses or preferences, or a preference that weighs more.
    """
    _refuse_more_than_pairs(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for begin in range(0, len(data), EXPORT_ROWS):
            writer.write_batch(_batch(data, range(begin, min(begin + EXPORT_ROWS, len(data)))))
    return file


def _refuse_more_than_pairs(data: TokenizedData) -> None:
    larger = (data.response_counts > 2) | (data.preference_counts > 1)
    if not larger.any():
        larger = data.preference_weights() != 1
    if larger.any():
        number = int(larger.argmax())
        responses, weight = data.response_counts[number], sum(edge.weight for edge in data[number].preferences)
        found = f"{responses} responses" if responses > 2 else f"preferences that weigh {weight:g}"
        raise DataError(
            f"{data.ids[number]}: {found}; a chosen and a rejected column hold one pair, so export pairs, neither gathered nor ranked"
        )


def _batch(data: TokenizedData, indices: range) -> pa.RecordBatch:
    pairs = []
    for row in (data[index] for index in indices):
        edge = row.preferences[0]
        chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
        pairs.append(
            {
                "input_ids_chosen": chosen,
                "attention_mask_chosen": [1] * len(chosen),
                "input_ids_rejected": rejected,
                "attention_mask_rejected": [1] * len(rejected),
                "margin": edge.margin,
                "id": row.id,
            }
        )
    return pa.RecordBatch.from_pylist(pairs, schema=SCHEMA)
