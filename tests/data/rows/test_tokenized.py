from typing import Any

import pytest

from rmtrain.data.comparison import Dropped, TokenizedComparison
from rmtrain.data.rows.formats import adapt
from rmtrain.recipe.schema import TokenizedSource

TOKENS = TokenizedSource(path="tokens.parquet", format="tokenized")


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids_chosen": [5, 6, 7, 2], "input_ids_rejected": [5, 6, 8, 9, 2]},
        {"chosen_ids": [5, 6, 7, 2], "rejected_ids": [5, 6, 8, 9, 2], "chosen": "text", "rejected": "text"},
        {
            "input_ids_chosen": [5, 6, 7, 2, 0, 0],
            "attention_mask_chosen": [1, 1, 1, 1, 0, 0],
            "input_ids_rejected": [0, 5, 6, 8, 9, 2],
            "attention_mask_rejected": [0, 1, 1, 1, 1, 1],
        },
    ],
    ids=["seed page", "trl", "padded"],
)
def test_token_rows_are_used_unchanged(row: dict[str, Any]) -> None:
    result = adapt(row, "tokens:0", TOKENS)
    assert isinstance(result, TokenizedComparison)
    assert result.sequences == ([5, 6, 7, 2], [5, 6, 8, 9, 2])
    assert (result.id, result.prefix_length) == ("tokens:0", 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids_chosen": [1.0], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [True], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [-1], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [2**31], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": "1 2", "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [], "input_ids_rejected": [1]}, "empty_response"),
        ({"input_ids_chosen": [1], "attention_mask_chosen": [1, 1], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [1], "attention_mask_chosen": [2], "input_ids_rejected": [1]}, "not_tokens"),
        ({"input_ids_chosen": [1]}, "one_response"),
        ({"input_ids_chosen": None, "input_ids_rejected": [1]}, "one_response"),
        ({"chosen_ids": None, "rejected_ids": None}, "missing_column"),
        ({"tokens": [1]}, "missing_column"),
    ],
)
def test_invalid_tokens_are_dropped(row: dict[str, Any], reason: str) -> None:
    result = adapt(row, "tokens:0", TOKENS)
    assert isinstance(result, Dropped)
    assert (result.id, result.reason) == ("tokens:0", reason)


def test_token_rows_may_have_margins() -> None:
    row = {"chosen_ids": [1, 2], "rejected_ids": [3, 2], "margin": 0.5}
    result = adapt(row, "tokens:0", TokenizedSource(path="tokens", format="tokenized", margin="margin"))
    assert isinstance(result, TokenizedComparison)
    assert result.preferences[0].margin == 0.5
