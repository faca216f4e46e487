"""The cells of a nested row, each under the dotted path that a recipe names it by."""

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.preference_labels import NUMBER


def cells(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a row that is no list or object, and the empty ones, as `(path, cell)`, in order: `answers.0.text`."""
    if not value or not isinstance(value, Mapping | list):
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from cells(inner, f"{path}.{name}" if path else str(name))


INDEX_DIGITS = 9
_MISSING = object()


def lookup(row: Any, path: str) -> Any:
    """The cell at a dotted path such as `answers.0.text`; a name that itself holds dots is found too.

    Raises:
        KeyError: there is none.
    """
    if isinstance(row, dict) and path in row:
        return row[path]
    found = _descend(row, path.split("."))
    if found is _MISSING:
        raise KeyError(path)
    return found


def _descend(cell: Any, parts: Sequence[str]) -> Any:
    if not parts:
        return cell
    if isinstance(cell, dict):
        for size in range(len(parts), 0, -1):
            name = ".".join(parts[:size])
            if name in cell and (found := _descend(cell[name], parts[size:])) is not _MISSING:
                return found
    elif isinstance(cell, list) and parts[0].isdecimal() and len(parts[0]) <= INDEX_DIGITS and int(parts[0]) < len(cell):
        return _descend(cell[int(parts[0])], parts[1:])
    return _MISSING


def has_cell(row: Any, path: str) -> bool:
    """Whether there is a cell at a path, null or not."""
    return find_cell(row, path, _MISSING) is not _MISSING


def find_cell(row: Any, path: str, default: Any = None) -> Any:
    """The cell at a path, or `default` where there is none."""
    try:
        return lookup(row, path)
    except KeyError:
        return default


def require_cell(row: Row, column: str) -> Any:
    """The cell of a column; raises BadRow where there is none."""
    found = find_cell(row, column, _MISSING)
    if found is _MISSING:
        raise BadRow("missing_column", f'no column "{column}"; it has: {", ".join(map(str, row))}')
    return found


def is_blank(cell: Any) -> bool:
    """Whether a cell says nothing: null, text without a letter, or no number (NaN)."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def to_number(cell: Any) -> float | None:
    """A cell as a finite number, also one that is written as text; None: it is none. True and false are none."""
    if isinstance(cell, str):
        cell = cell.strip()
        return _finite(cell) if NUMBER.fullmatch(cell) else None
    return _finite(cell) if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool) else None


def _finite(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (OverflowError, ValueError):  # an integer that is too large, a signalling NaN
        return None
    return number if math.isfinite(number) else None
