"""A recipe file and its overrides become a `Recipe`, or a `RecipeError` with everything that is wrong; and back to YAML."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import explain, show
from rmtrain.recipe.overrides import apply_override
from rmtrain.recipe.redact import ADVICE, is_secret
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath
from rmtrain.recipe.yaml import Document, Place, Problem, parse_yaml, read_yaml, write_yaml


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value`, applied in order; list entries by index, as in `data.train.0.path=rows.jsonl`.

    Raises:
        RecipeError: one line per problem, all at once, each with its place: `path:line:column`, or `override a.b=v`.
    """
    return _overridden(read_yaml(Path(path)), overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML text, as `load_recipe` has it of a file; `name` stands in errors where a path would."""
    return _overridden(parse_yaml(text, lambda line, column: Place(0, line, column, name)), overrides)


def _overridden(document: Document, overrides: Sequence[str]) -> Recipe:
    if not isinstance(document.data, dict):
        message = (
            f"expected sections such as run, data and model, got {'nothing' if document.data is None else show(document.data)}"
        )
        raise RecipeError(str(Problem(document.keys[()], (), message)))
    for order, override in enumerate(overrides, start=1):
        apply_override(document, override, order)
    return _validate(document)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal `Recipe`."""
    return write_yaml(recipe.model_dump())


def _validate(document: Document) -> Recipe:
    document.problems.extend(_secrets(document))
    problems, recipe = document.problems, None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        problems = [*problems, *explain(error, document)]
    if recipe is None or problems:
        ordered = sorted(problems, key=lambda problem: (problem.place.order, problem.place.line, problem.place.column))
        raise RecipeError(*dict.fromkeys(map(str, ordered)))
    return recipe


def _secrets(document: Document) -> Iterator[Problem]:
    for path, text in _texts((), document.data):
        if is_secret(text):
            yield Problem(document.value_place(path), path, f"looks like a password or token; {ADVICE}")


def _texts(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in parts:
        yield from _texts((*path, part), inner)
