"""The keys in which recipes differ, with short names and values for a table. The recipes are plain data, and may be of older versions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmtrain.recipe.output_dir import short_number
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.yaml import dotted, one_line, shorten

OWN = ("run.name", "run.output_dir", "data.cache_dir")
"""Keys by which runs of one recipe differ anyway."""
VAGUE = ("path", "name", "type", "format", "by", "every", "split")
"""Last parts of keys that say too little without the part before them."""
MAX_VALUE = 32


def differing_keys(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys in which recipes differ, in the order of the schema, each with its value in every recipe.

    A value is None where the recipe does not have the key. A section or list that only some recipes have is one key: its value is the
    whole section. Sections of different kinds differ in their kind, and not in each key that only one of them has.
    """
    return {dotted(path): list(values) for path, values in _differing(recipes, ())}


def _differing(values: Sequence[Any], path: KeyPath) -> Iterator[tuple[KeyPath, Sequence[Any]]]:
    given = [value for value in values if value is not None]
    if dotted(path) in OWN or all(value == values[0] for value in values):
        return
    if all(isinstance(value, list | tuple) and len(value) == len(given[0]) for value in given):
        values = [None if value is None else dict(enumerate(value)) for value in values]
        given = [value for value in values if value is not None]
    if not all(isinstance(value, Mapping) for value in given):
        yield path, values
        return
    found = not path
    for key in dict.fromkeys(key for value in given for key in value):
        own = [value[key] for value in given if key in value]
        if any(other != own[0] for other in own):
            column = [None if value is None else value.get(key) for value in values]
            for one in _differing(column, (*path, key)):
                found = True
                yield one
    if not found:
        yield from _presence(values, given, path)


def _presence(values: Sequence[Any], given: Sequence[Any], path: KeyPath) -> Iterator[tuple[KeyPath, Sequence[Any]]]:
    """Yield the key of a section that some recipes lack, or the first value that only some of the sections have."""
    if len(given) < len(values):
        yield path, values
        return
    lacking = [key for key in dict.fromkeys(key for value in given for key in value) if any(key not in value for value in given)]
    columns = [((*path, key), [value.get(key) for value in values]) for key in lacking if dotted((*path, key)) not in OWN]
    columns.sort(key=lambda column: any(isinstance(value, Mapping | list) for value in column[1]))
    yield from (column for column in columns[:1] if any(value is not None for value in column[1]))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for each key its shortest end that no other key has and that says something: `lr`, `model.path`."""
    names = {}
    for key in keys:
        parts = key.split(".")
        length = 2 if parts[-1] in VAGUE or parts[-1].isdigit() else 1
        while length < len(parts) and (
            parts[-length].isdigit() or sum(other.split(".")[-length:] == parts[-length:] for other in keys) > 1
        ):
            length += 1
        names[key] = ".".join(parts[-length:])
    return names


def short_values(values: Sequence[Any]) -> list[str]:
    """Return values as short text; of absolute paths only the last part, if it distinguishes them."""
    shown = [_short(value) for value in values]
    ends = [value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value for value in shown]
    texts = ends if len(set(ends)) == len(set(shown)) else shown
    return [shorten(one_line(text), MAX_VALUE) for text in texts]


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short_number(value)
    if isinstance(value, Mapping):
        scalars = [(key, inner) for key, inner in value.items() if not isinstance(inner, Mapping | list | None)]
        return ", ".join(f"{key} {_short(inner)}" for key, inner in scalars[:2]) or "set"
    if isinstance(value, list | tuple):
        named = [inner.get("path") if isinstance(inner, Mapping) else inner for inner in value]
        return f"[{', '.join(short_values(named))}]"
    return str(value)
