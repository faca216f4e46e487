"""What the shell offers after Tab: keys of a recipe and their values, names of configurations, benchmarks and sources.

Typer writes the scripts of bash, zsh and fish, and calls these functions with what was typed so far. Where they return nothing, the shell
offers files. An error would be printed into the command line that somebody is typing, so that whatever cannot be read offers nothing.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer

from rmtrain.errors import RmtrainError
from rmtrain.recipe.explain import entries
from rmtrain.recipe.library import recipes
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.public_benchmarks import BENCHMARK_NAMES
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import Section
from rmtrain.recipe.yaml import dotted

Offered = list[tuple[str, str]]
"""Words and their descriptions, which zsh and fish show."""
INDEX = re.compile(r"(?<=\.)\d+(?=\.)", re.ASCII)
CONFIGURATIONS = Path(__file__).resolve().parents[1] / "configs" / "accelerate"


def complete_overrides(ctx: typer.Context, incomplete: str) -> Offered:
    """Offer keys of a recipe, and after `=` their values; nothing where a file is typed."""
    before = ctx.params.get("arguments") or []
    if before[-1:] == ["="]:  # bash splits words at it
        return _beginning_with(incomplete, [(value, "") for value in _values(before[-2]).get(before[-2], [])])
    key, equals, written = incomplete.partition("=")
    if equals:
        return _beginning_with(written, [(value, "") for value in _values(key).get(key, [])], f"{key}=")
    if not incomplete or "/" in incomplete:
        return []
    keys = _beginning_with(incomplete, [(f"{name}=", text) for name, text in _keys(incomplete).items()])
    if len(keys) == 1:  # with a second word offered, the shell adds no space after the only one
        (name, _), *_ = keys
        keys += [(name + value, "") for value in _values(incomplete)[name[:-1]]]
    files = [(str(path), "") for path in sorted(Path().glob(f"{glob.escape(incomplete)}*.yaml"))]
    return [*files, *keys]


def complete_keys(incomplete: str) -> Offered:
    """Offer sections and keys of a recipe."""
    sections = {dotted(entry.path): _first_line(entry.section.__doc__) for entry in entries() if entry.path}
    return _beginning_with(incomplete, list({**sections, **_keys(incomplete)}.items()))


def complete_configurations(incomplete: str) -> Offered:
    """Offer the names of the accelerate configurations in the package."""
    return _beginning_with(incomplete, [(file.stem, "") for file in sorted(CONFIGURATIONS.glob("*.yaml"))])


def complete_recipes(incomplete: str) -> Offered:
    """Offer the names of the recipes in the package."""
    return _beginning_with(incomplete, [(name, "") for name in recipes()])


def complete_benchmarks(incomplete: str) -> Offered:
    """Offer the benchmarks that are not yet in a list with commas."""
    before, comma, written = incomplete.rpartition(",")
    listed = before.split(",")
    return _beginning_with(written, [(name, "") for name in BENCHMARK_NAMES if name not in listed], f"{before}{comma}")


def complete_sources(ctx: typer.Context, incomplete: str) -> Offered:
    """Offer the tags of the sources of the recipe on the command line: of all its files, with the overrides."""
    # An option without a value yet leaves the arguments unparsed. Bash splits words at `=`.
    given = [*filter(None, [ctx.params.get("recipe")]), *(ctx.params.get("arguments") or []), *ctx.args]
    words = "\0".join(map(str, given)).replace("\0=\0", "=").split("\0")
    overrides = [word for word in words if "=" in word and re.split(r"[.=]", word)[0] in Recipe.model_fields]
    files = [word for word in words if os.path.isfile(word) or os.path.isfile(os.path.join(word, "recipe.yaml"))]
    with suppress(RmtrainError):
        recipe = load_recipe(files, overrides)
        tags = dict.fromkeys(source.title for source in (*recipe.data.train, *recipe.data.eval))
        return _beginning_with(incomplete, [(tag, "") for tag in tags])
    return []


def one_of(*words: str) -> Callable[[str], Offered]:
    """Return a function that offers these words."""

    def complete(incomplete: str) -> Offered:
        return _beginning_with(incomplete, [(word, "") for word in words])

    return complete


def _beginning_with(typed: str, offered: Offered, before: str = "") -> Offered:
    return [(before + word, text) for word, text in offered if word.startswith(typed)]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _fields(typed: str) -> Iterator[tuple[str, Any]]:
    """Yield every key of a recipe; entries of lists have the indices that were typed."""
    for entry in entries():
        for name, field in entry.section.model_fields.items():
            if not _is_section(field.annotation):
                indices = chain(INDEX.findall(typed), repeat("0"))
                parts = (next(indices) if part == 0 else part for part in entry.path)
                yield dotted((*parts, name)), field


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _keys(typed: str) -> dict[str, str]:
    return {name: _first_line(field.description) for name, field in _fields(typed)}


def _values(typed: str) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, field in _fields(typed):
        known = values.setdefault(name, [])
        known += [value for value in _literals(field.annotation) if value not in known]
    return values


def _literals(annotation: Any) -> Iterator[str]:
    """Yield the values that an annotation lists: those of literals, true and false, and null."""
    if annotation is bool:
        yield from ("true", "false")
    elif annotation is NoneType:
        yield "null"
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for inner in get_args(annotation):
            yield from _literals(inner)
