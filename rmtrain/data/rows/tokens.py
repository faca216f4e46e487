"""Rows that are tokens already to comparisons."""

from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.margins import margin_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.prefix import common_prefix_length
from rmtrain.recipe.schema import TokenizedSource

TOKEN_COLUMNS = (
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),
    ("chosen_ids", "rejected_ids", None, None),
)


def tokenized(row: Row, source: TokenizedSource, row_id: str) -> TokenizedComparison:
    """The comparison of a row of tokens; its prompt is what both sides begin with.

    Raises:
        BadRow: why there is none.
    """
    for chosen, rejected, chosen_mask, rejected_mask in TOKEN_COLUMNS:
        absent = [column for column in (chosen, rejected) if row.get(column) is None]
        if len(absent) == 1:
            raise BadRow("one_response", f"no tokens in {absent[0]}; a comparison needs two responses")
        if not absent:
            sequences = (_tokens(row, chosen, chosen_mask), _tokens(row, rejected, rejected_mask))
            prefix = common_prefix_length(sequences)
            edge = Preference(0, 1, margin_of(row, source.number_columns, source.margin_default))
            return TokenizedComparison(row_id, source.title, sequences, prefix, prefix, (edge,))
    expected = " or ".join(f"{chosen}, {rejected}" for chosen, rejected, _, _ in TOKEN_COLUMNS)
    raise BadRow("missing_column", f"expected columns {expected}; it has: {', '.join(map(str, row))}")


def _tokens(row: Row, column: str, mask_column: str | None) -> list[int]:
    tokens, mask = row[column], row.get(mask_column or "")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise BadRow("not_tokens", f"{column}: expected a list of token ids")
    if mask is not None:
        if not isinstance(mask, list) or len(mask) != len(tokens) or not all(value in (0, 1) for value in mask):
            raise BadRow("not_tokens", f"{mask_column}: expected one 0 or 1 for each token of {column}")
        tokens = [token for token, real in zip(tokens, mask, strict=True) if real]
    if not tokens:
        raise BadRow("empty_response", f"{column} is empty")
    return tokens
