"""The margin of a row: a column, or a difference of scores."""

import math
from collections.abc import Sequence

from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.lookup import find_cell, to_number
from rmtrain.data.rows.messages import BadRow


def margin_of(row: Row, columns: Sequence[str], default: float | None) -> float:
    """The margin, finite and not negative; 0 where no column is named.

    Args:
        row: its columns.
        columns: none, that of the margin, or the scores of the better side and of the other.
        default: what it is where a cell is null or not there; None: that is an error.

    Raises:
        BadRow: `bad_margin`.
    """
    if not columns:
        return 0.0
    values = [value for value in (_number(row, column) for column in columns) if value is not None]
    if len(values) < len(columns):
        if default is None:
            raise BadRow("bad_margin", f"no number in {' or '.join(columns)}; set margin_default, or remove the row")
        return default
    margin = values[0] if len(values) == 1 else values[0] - values[1]
    if not 0 <= margin < math.inf:
        raise BadRow("bad_margin", f"expected at least 0, got {margin:g}")
    return margin


def _number(row: Row, column: str) -> float | None:
    cell = find_cell(row, column)
    if cell is None:
        return None
    number = None if isinstance(cell, str) else to_number(cell)
    if number is None:
        raise BadRow("bad_margin", f"{column}: expected a finite number, got {str(cell)[:40]!r}")
    return number
