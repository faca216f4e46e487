"""The cells of a nested row by dotted path, such as `answers.0.text`, and their values as numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rmtrain.data.comparison import BadRow
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.sources import NUMBER

INDEX_DIGITS = 9  # int() raises for a text of more than 4,300 digits
MISSING = object()
"""Default of `find_cell` that no cell is equal to."""


def cells(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(path, cell)` for each leaf of a row in order; an empty list or object is a leaf."""
    if not value or not isinstance(value, Mapping | list):
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from cells(inner, f"{path}.{name}" if path else str(name))


def find_cell(row: Any, path: str, default: Any = None) -> Any:
    """Return the cell at a dotted path such as `answers.0.text`, or `default` where it is missing; names may contain dots themselves."""
    if isinstance(row, dict) and path in row:
        return row[path]
    cell = _descend(row, path.split("."))
    return default if cell is MISSING else cell


def _descend(cell: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return cell
    if isinstance(cell, dict):
        for size in range(len(parts), 0, -1):
            name = ".".join(parts[:size])
            if name in cell and (inner := _descend(cell[name], parts[size:])) is not MISSING:
                return inner
    elif isinstance(cell, list) and parts[0].isdecimal() and len(parts[0]) <= INDEX_DIGITS and int(parts[0]) < len(cell):
        return _descend(cell[int(parts[0])], parts[1:])
    return MISSING


def has_cell(row: Any, path: str) -> bool:
    """Return whether there is a cell at a path, null or not."""
    return find_cell(row, path, MISSING) is not MISSING


def require_cell(row: Row, column: str) -> Any:
    """Return the cell of a column; raises BadRow where it is missing."""
    cell = find_cell(row, column, MISSING)
    if cell is MISSING:
        raise BadRow("missing_column", f'no column "{column}"; it has: {", ".join(map(str, row))}')
    return cell


def is_blank(cell: Any) -> bool:
    """Return whether a cell holds nothing: null, text of spaces only, or NaN."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def to_number(cell: Any) -> float | None:
    """Return a cell as a finite number, also where the number is written as text; None for anything else, including true and false."""
    if isinstance(cell, str):
        cell = cell.strip()
        if not NUMBER.fullmatch(cell):
            return None
    elif isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
        return None
    try:
        number = float(cell)
    except (OverflowError, ValueError):  # an integer that is too large, a signalling NaN
        return None
    return number if math.isfinite(number) else None
