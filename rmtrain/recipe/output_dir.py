"""Keys in `run.output_dir`: in `runs/{run.name}-lr{optimizer.lr}` each `{key}` stands for the value of that key."""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rmtrain.recipe.explain import near_miss
from rmtrain.recipe.key_aliases import ALIASES
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.yaml import dotted, shorten

OUTPUT_DIR: KeyPath = ("run", "output_dir")
LONGEST = 100
"""Characters of a value in the name of a directory."""

_KEY_OR_BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}?")


def fill_keys(pattern: str, recipe: dict[str, Any]) -> tuple[str, list[str]]:
    """Replace each `{key}` in a path by its value in a whole recipe, and `{{` and `}}` by braces.

    A number is written the shorter way: 0.000003 as 3e-6, 0.05 as 0.05. Of a text only letters, digits and `_.+-` stay, so that it is the
    name of one directory: `Qwen/Qwen3-0.6B` becomes `Qwen-Qwen3-0.6B`.

    Returns:
        The path, and a line for each key that has no value to write.
    """
    problems: list[str] = []

    def replaced(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        try:
            if not found[0].endswith("}"):
                raise ValueError("a brace is not closed; write {run.name} for the value of a key, or {{ for a brace")
            return _directory_name(found[0][1:-1], recipe)
        except ValueError as error:
            problems.append(str(error))
            return ""

    path = _KEY_OR_BRACES.sub(replaced, pattern)
    return path, problems


def escape_braces(path: str) -> str:
    """Return the pattern that `fill_keys` turns into `path`."""
    return path.replace("{", "{{").replace("}", "}}")


def _directory_name(key: str, recipe: dict[str, Any]) -> str:
    shown = f"{{{shorten(key)}}}"
    value = _value(key, recipe)
    if key == dotted(OUTPUT_DIR):
        raise ValueError(f"{shown} stands for this key itself; name another key")
    if isinstance(value, dict | list | tuple):
        what = "a section" if isinstance(value, dict) else "a list"
        raise ValueError(f"{shown} is {what}; expected a key with one value, such as {{optimizer.lr}}")
    if value is None:
        raise ValueError(f"{shown} is null; expected a key with a value")
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, float):
        return short_number(value)
    name = re.sub(r"[^\w.+-]+", "-", str(value)).strip(".-")
    if not name or len(name) > LONGEST:
        has = "has no letters or digits" if not name else f"has {len(name)} characters, more than {LONGEST}"
        raise ValueError(f"{shown} {has}; name another key")
    return name


def _value(key: str, recipe: dict[str, Any]) -> Any:
    value: Any = recipe
    parts = key.split(".")
    for number, part in enumerate(parts):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and re.fullmatch("[0-9]{1,9}", part) and int(part) < len(value):
            value = value[int(part)]
        elif value is None:
            raise ValueError(f"{{{shorten(key)}}} has no value, since {shorten('.'.join(parts[:number]))} is null")
        else:
            raise ValueError(f"{{{shorten(key)}}} is not a key of this recipe{_did_you_mean(key, recipe)}")
    return value


def _did_you_mean(key: str, recipe: dict[str, Any]) -> str:
    keys = list(_keys(recipe, ""))
    by_name = {name: dotted(path) for name, path in ALIASES.items() if dotted(path) in keys}
    by_name |= {known.rpartition(".")[2]: known for known in reversed(keys)}
    near = near_miss(key.rpartition(".")[2], by_name)
    return f"; did you mean {{{by_name[near]}}}?" if near else "; write {{ for a brace that is part of the path"


def _keys(value: Any, path: str) -> Iterator[str]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if inner is None:
        yield path
    for part, below in inner or ():
        yield from _keys(below, f"{path}.{part}" if path else str(part))


def short_number(value: float) -> str:
    """Return the shorter way to write a number: `3e-6`, `0.05`."""
    number = Decimal(repr(value)).normalize()
    return min(f"{number:f}", f"{number:e}".replace("e+", "e"), key=len)
