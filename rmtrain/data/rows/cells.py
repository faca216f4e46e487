"""The cells of a nested row, each under the dotted path that a recipe names it by."""

from collections.abc import Iterator, Mapping
from typing import Any


def cells(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a row that is no list or object, and the empty ones, as `(path, cell)`, in order: `answers.0.text`."""
    if not value or not isinstance(value, Mapping | list):
        yield path, value
        return
    for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from cells(inner, f"{path}.{name}" if path else str(name))
