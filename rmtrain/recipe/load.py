"""A recipe file and its overrides become a `Recipe`, or a `RecipeError` with everything that is wrong; and back to YAML."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rmtrain.errors import RecipeError
from rmtrain.recipe.evaluation import EvaluationRecipe
from rmtrain.recipe.explain import explain, show
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath, Section
from rmtrain.recipe.sources import read_hook
from rmtrain.recipe.yaml import Document, Place, Problem, dotted, parse_yaml, read_yaml, shorten, write_yaml
from rmtrain.redact import ADVICE, HIDDEN, asks_for_secret, is_secret


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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value`, applied in order; list entries by index, as in `data.train.0.path=rows.jsonl`.

    Raises:
        RecipeError: one line per problem, all at once, each with its place: `path:line:column`, or `override a.b=v`.
    """
    return _overridden(Recipe, read_yaml(Path(path)), overrides, Path(path).parent)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML text, as `load_recipe` has it of a file; `name` stands in errors where a path would. `prepare` needs a file."""
    return _overridden(Recipe, parse_yaml(text, lambda line, column: Place(0, line, column, name)), overrides, None)


def evaluation_recipe(data: str, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Return a recipe that evaluates on a file, directory or Hub dataset; raises RecipeError like `load_recipe`."""
    sources = [{"path": data}]
    text = write_yaml({"data": {"train": sources, "eval": sources}})  # `data.train` is required; nothing reads it
    return _overridden(EvaluationRecipe, parse_yaml(text, lambda line, column: Place(0, line, column, "--data")), overrides, None)


AnyRecipe = TypeVar("AnyRecipe", bound=Section)


def _overridden(schema: type[AnyRecipe], document: Document, overrides: Sequence[str], directory: Path | None) -> AnyRecipe:
    if not isinstance(document.data, dict):
        message = (
            f"expected sections such as run, data and model, got {'nothing' if document.data is None else show(document.data)}"
        )
        raise RecipeError(str(Problem(document.keys[()], (), message)))
    for order, override in enumerate(overrides, start=1):
        apply_override(document, override, order)
    return _validate(schema, document, directory)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal `Recipe`, beside its `hook_files`."""
    return write_yaml(recipe.model_dump())


def hook_files(recipe: Recipe) -> dict[str, bytes]:
    """The files that must lie beside the recipe for its `prepare` keys, by name."""
    hooks = [source.hook for source in (*recipe.data.train, *recipe.data.eval)]
    return {hook.file.name: hook.code for hook in hooks if hook is not None}


def _validate(schema: type[AnyRecipe], document: Document, directory: Path | None) -> AnyRecipe:
    document.problems.extend(_secrets(document))
    try:
        recipe = schema.model_validate(document.data)
        problems = [*document.problems, *_hooks(recipe, document, directory)]
        if not problems:
            return recipe
    except ValidationError as error:
        problems = [*document.problems, *explain(error, document)]
    ordered = sorted(problems, key=lambda problem: (problem.place.order, problem.place.line, problem.place.column))
    raise RecipeError(*dict.fromkeys(map(str, ordered)))


def _hooks(recipe: Any, document: Document, directory: Path | None) -> Iterator[Problem]:
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
