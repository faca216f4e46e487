"""A recipe file and its overrides become a `Recipe`, or a `RecipeError` with everything that is wrong; and back to YAML."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import explain, show
from rmtrain.recipe.hook import read_hook
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
    return _overridden(read_yaml(Path(path)), overrides, Path(path).parent)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML text, as `load_recipe` has it of a file; `name` stands in errors where a path would. `prepare` needs a file."""
    return _overridden(parse_yaml(text, lambda line, column: Place(0, line, column, name)), overrides, None)


def _overridden(document: Document, overrides: Sequence[str], directory: Path | None) -> Recipe:
    if not isinstance(document.data, dict):
        message = (
            f"expected sections such as run, data and model, got {'nothing' if document.data is None else show(document.data)}"
        )
        raise RecipeError(str(Problem(document.keys[()], (), message)))
    for order, override in enumerate(overrides, start=1):
        apply_override(document, override, order)
    return _validate(document, directory)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal `Recipe`, beside its `hook_files`."""
    return write_yaml(recipe.model_dump())


def hook_files(recipe: Recipe) -> dict[str, bytes]:
    """The files that must lie beside the recipe for its `prepare` keys, by name."""
    hooks = [source.hook for source in (*recipe.data.train, *recipe.data.eval)]
    return {hook.file.name: hook.code for hook in hooks if hook is not None}


def _validate(document: Document, directory: Path | None) -> Recipe:
    document.problems.extend(_secrets(document))
    problems, recipe = document.problems, None
    try:
        recipe = Recipe.model_validate(document.data)
        problems = [*problems, *_hooks(recipe, document, directory)]
    except ValidationError as error:
        problems = [*problems, *explain(error, document)]
    if recipe is None or problems:
        ordered = sorted(problems, key=lambda problem: (problem.place.order, problem.place.line, problem.place.column))
        raise RecipeError(*dict.fromkeys(map(str, ordered)))
    return recipe


def _hooks(recipe: Recipe, document: Document, directory: Path | None) -> Iterator[Problem]:
    """Give each source with `prepare` its function's file."""
    for kind, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        for number, source in enumerate(sources):
            if source.prepare is not None:
                key = ("data", kind, number, "prepare")
                try:
                    source.take(read_hook(source.prepare, directory))
                except ValueError as error:
                    yield Problem(document.value_place(key), key, str(error))


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
