"""Tests of a row's cells, as `filter` has them."""

from typing import Any

from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.lookup import is_blank, require_cell, to_number
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.selection import Condition, Criterion

SHOWN_CHARACTERS = 40


def check_conditions(row: Row, conditions: tuple[Condition, ...]) -> None:
    """Hold a row to all conditions, in their order.

    Text that spells a number is a number where the condition has one, and `true` or `false` are what they say where it has one of these:
    cells of CSV files are text. Null passes `is_not` alone.

    Raises:
        BadRow: `filtered` where a condition does not hold; `missing_column` and `not_a_number` where it cannot be decided.
    """
    for condition in conditions:
        cell = require_cell(row, condition.column)
        for criterion in condition.criteria:
            if not _holds(cell, criterion, condition.column):
                raise BadRow("filtered", f"{condition.column} is {_shown(cell)}, expected {_in_words(criterion)}")


def _holds(cell: Any, criterion: Criterion, column: str) -> bool:
    name, value = criterion
    match name:
        case "equals":
            return _same(cell, value)
        case "is_not":
            return not _same(cell, value)
        case "one_of":
            assert isinstance(value, tuple), "the schema says so"
            return any(_same(cell, one) for one in value)
    number = _number(cell, column)
    assert isinstance(value, int | float), "the schema says so"
    return number is not None and (value <= number if name == "at_least" else number <= value)


def _same(cell: Any, value: Any) -> bool:
    if isinstance(cell, str) and isinstance(value, bool):
        return cell.strip().lower() == str(value).lower()
    if isinstance(cell, str) and not isinstance(value, str):
        return bool(to_number(cell) == value)
    return isinstance(cell, bool) == isinstance(value, bool) and bool(cell == value)


def _number(cell: Any, column: str) -> float | None:
    """The number of a cell; None where it says nothing, which is within no bounds."""
    if is_blank(cell):
        return None
    number = to_number(cell)
    if number is None:
        raise BadRow("not_a_number", f"{column} is {_shown(cell)}; a bound needs a number")
    return number


def _shown(cell: Any) -> str:
    if isinstance(cell, dict | list):
        return "an object" if isinstance(cell, dict) else "a list"
    return "null" if cell is None else repr(cell)[:SHOWN_CHARACTERS]


def _in_words(criterion: Criterion) -> str:
    name, value = criterion
    words = {"equals": "", "is_not": "anything but ", "one_of": "one of ", "at_least": "at least ", "at_most": "at most "}
    values = value if isinstance(value, tuple) else (value,)
    return words[name] + ", ".join(f"{one:g}" if type(one) is float else repr(one) for one in values)
