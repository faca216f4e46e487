"""Which rows of a source are used: tests of columns, and how many rows a value may have."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import Field, PositiveInt

from rmtrain.recipe.labels import Column
from rmtrain.recipe.section import KeyPath, Misfit, Section

Value = str | bool | int | float
Bound = Annotated[float, Field(allow_inf_nan=False)]
TESTS = ("equals", "is_not", "one_of", "at_least", "at_most")


class Criterion(NamedTuple):
    """What a condition asks of a cell: one of `TESTS`, and what it is compared with."""

    name: str
    value: Value | tuple[Value, ...]


class Condition(Section):
    """A test of one column. A row without the column is dropped as faulty; a null cell passes `is_not` only."""

    column: Column
    """Column to look at; dots reach into nested cells."""
    equals: Value | None = None
    """The cell is this. Text that spells a number, as in CSV, equals the number."""
    is_not: Value | None = None
    """The cell is anything but this."""
    one_of: Annotated[tuple[Value, ...], Field(strict=False, min_length=1)] | None = None
    """The cell is one of these."""
    at_least: Bound | None = None
    """The cell is a number, or text that spells one, not below this."""
    at_most: Bound | None = None
    """The cell is a number, or text that spells one, not above this."""

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What it asks: one criterion, in a recipe that was accepted."""
        given = {name: getattr(self, name) for name in TESTS}
        return tuple(Criterion(name, value) for name, value in given.items() if value is not None)


class Cap(Section):
    """How many rows there may be for each value of a column."""

    by: Column
    """The column, such as the id of a post or of a prompt; dots reach into nested cells."""
    rows: PositiveInt
    """Most rows kept for one value: the first ones."""


def condition_misfits(conditions: tuple[Condition, ...], at: KeyPath) -> Iterator[Misfit]:
    """Conditions of the list at `at` that do not ask exactly one thing."""
    for number, condition in enumerate(conditions):
        names = [test.name for test in condition.criteria]
        if len(names) != 1:
            came = " and ".join(names) or "none"
            message = f"expected exactly one of {', '.join(TESTS)}, got {came}; for a range write two conditions"
            yield Misfit((*at, number, *names[1:2]), message, (*at, number))
