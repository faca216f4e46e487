"""`a.b=v` on the command line: a value for one key of the recipe, read by the rules of the file."""

from typing import Any

from rmtrain.recipe.redact import HIDDEN, asks_for_secret
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.yaml import Document, Place, Problem, dotted, parse_yaml, shorten


def apply_override(document: Document, text: str, order: int) -> None:
    """Set one key of `document`, in place; whatever is wrong with the override is added to its `problems`.

    Args:
        document: the recipe as read; `document.data` must be a mapping.
        text: `optimizer.lr=1e-5`, or `data.train.0.path=rows.jsonl` with a list index.
        order: 1 for the first override, 2 for the second, ...: its errors come in this order, after those of the file.
    """
    name, equals, written = text.partition("=")
    shown = f"={HIDDEN if asks_for_secret(name) else shorten(written)}" if equals else ""
    place = Place(order, 0, 0, f"override {shorten(name)}{shown}")
    path = _key_path(document.data, name)
    if not equals or path is None:
        document.problems.append(Problem(place, (), "expected a key path, =, and a value, such as optimizer.lr=1e-5"))
        return
    value = parse_yaml(written, lambda _line, _column: place)
    document.problems.extend(Problem(place, (*path, *problem.path), problem.message) for problem in value.problems)
    if not value.readable:
        return
    complaint = _set(document.data, path, value.data)
    if complaint:
        document.problems.append(Problem(place, path, complaint))
        return
    _move(document, path, place, value)


def _key_path(data: Any, name: str) -> KeyPath | None:
    """The parts of a dotted name, with a number where the recipe has a list; None if a part is empty."""
    path: list[str | int] = []
    for part in name.split("."):
        if not part.strip():
            return None
        index = isinstance(data, list) and part.isascii() and part.isdigit() and len(part) < 10
        path.append(int(part) if index else part)
        data = _child(data, path[-1])
    return tuple(path)


def _child(data: Any, part: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None


def _set(data: Any, path: KeyPath, value: Any) -> str | None:
    """Set the value at `path`, making the sections that are not there yet. Returns what is wrong, if something is."""
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(data, list):
            if not isinstance(part, int) or part >= len(data):
                return f"{dotted(path[:depth])} is a list of {len(data)}; expected an index below {len(data)}, got {part}"
        elif not isinstance(data, dict):
            return f"{dotted(path[:depth])} is no section and has no key {part}"
        elif not last and data.get(str(part)) is None:
            if str(path[depth + 1]).isdigit():
                return f"{dotted(path[: depth + 1])} has no entries yet; give the whole list, such as {dotted(path[: depth + 1])}=[...]"
            data[str(part)] = {}
        if last:
            data[part] = value
        else:
            data = data[part]
    return None


def _move(document: Document, path: KeyPath, place: Place, value: Document) -> None:
    """Whatever stands at and below `path` now comes from the override, as do sections that it made."""
    for places in (document.keys, document.values):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
        for new in ((*path, *inner) for inner in value.values):
            places[new] = place
        for depth in range(1, len(path)):
            places.setdefault(path[:depth], place)
