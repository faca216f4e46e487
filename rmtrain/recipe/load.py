"""A recipe file and its overrides become a `Recipe`, or a `RecipeError` with every mistake; and a `Recipe` becomes YAML again."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import explain, wanting_text
from rmtrain.recipe.output_dir import OUTPUT_DIR, escape_braces, fill_keys
from rmtrain.recipe.parts import MARKER as MARKER
from rmtrain.recipe.parts import MAX_FILES, read_parts, without_sections
from rmtrain.recipe.parts import RECIPE as RECIPE
from rmtrain.recipe.schema import (
    ComparedSource,
    EvaluatedBenchmark,
    EvaluationRecipe,
    OwnObjective,
    PretrainedModel,
    Recipe,
    ScratchModel,
    Source,
    UntrainedPrompts,
    objective_keys,
)
from rmtrain.recipe.section import Hook, KeyPath
from rmtrain.recipe.variables import escape_variables, insert_variables, put, texts
from rmtrain.recipe.yaml import Document, Place, Problem, dotted, parse_yaml, shorten, write_yaml
from rmtrain.redact import ADVICE, HIDDEN, asks_for_secret, is_secret

MAX_HOOK_BYTES = 2**20
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe | EvaluationRecipe)
AnyBenchmark = TypeVar("AnyBenchmark", EvaluatedBenchmark, UntrainedPrompts)


def load_recipe(path: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Of several files, later ones win; see `rmtrain.recipe.parts`. Overrides are `section.key=value`, applied in order; list entries by
    index, as in `data.train.0.path=rows.jsonl`. The directory of a run stands for its recipe, and is its `run.output_dir`, unless a later
    file or an override sets that.

    Raises:
        RecipeError: one line per mistake, all at once, each with its place: `path:line:column`, or `override a.b=v`.
    """
    paths = [path] if isinstance(path, str | Path) else path
    if not paths:
        raise RecipeError("expected the file of a recipe, got none")
    return _validated(Recipe, read_parts([Path(each) for each in paths]), overrides)


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe, or load it from its file."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return a recipe that means the same in every directory: its paths of files are absolute, Hub ids and `~` stay.

    Links are not followed, since the last part of a path names its source.
    """

    def absolute(path: str) -> str:
        return path if path.startswith("~") else str(Path(path).absolute())

    def local(path: str) -> str:
        return absolute(path) if os.path.exists(path) else path

    def benchmark_at(benchmark: AnyBenchmark) -> AnyBenchmark:
        return benchmark if benchmark.path is None else benchmark.model_copy(update={"path": absolute(benchmark.path)})

    def source_at(source: Source) -> Source:
        update: dict[str, Any] = {"path": local(source.path)}
        if isinstance(source, ComparedSource) and source.suspects is not None:
            update["suspects"] = source.suspects.model_copy(update={"file": absolute(source.suspects.file)})
        return source.model_copy(update=update)

    data, model = recipe.data, recipe.model
    places: dict[str, Any] = {name: tuple(map(source_at, getattr(data, name))) for name in ("train", "eval")}
    places |= {"benchmarks": tuple(map(benchmark_at, data.benchmarks)), "cache_dir": absolute(data.cache_dir)}
    if data.chat_template.endswith(".jinja"):
        places["chat_template"] = absolute(data.chat_template)
    source = {"path": local(model.path)} if isinstance(model, PretrainedModel) else {}
    if isinstance(model, ScratchModel) and model.tokenizer is not None:
        source["tokenizer"] = local(model.tokenizer)
    sections = {
        "run": recipe.run.model_copy(update={"output_dir": absolute(recipe.run.output_dir)}),
        "data": data.model_copy(update=places),
        "evaluation": recipe.evaluation.model_copy(update={"benchmarks": tuple(map(benchmark_at, recipe.evaluation.benchmarks))}),
        "model": model.model_copy(update=source),
    }
    return recipe.model_copy(update=sections)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate a recipe given as YAML text, like `load_recipe`; errors show `name` instead of a path. `prepare` needs a file."""
    document = parse_yaml(text, lambda line, column: Place(0, line, column, name))
    if problems := without_sections(document):
        raise RecipeError(*map(str, problems))
    return _validated(Recipe, document, overrides)


def data_overrides(data: str) -> list[str]:
    """Return the overrides that put `--data` in place of a recipe's data: a path, or a source in braces, as in a recipe.

    In place of the training data as well: rows that it holds out would be evaluated with the source, and its tags be taken.
    """
    source = data if data.lstrip().startswith("{") else json.dumps(escape_variables({"path": data}), ensure_ascii=False)
    return [f"data.train=[{source}]", f"data.eval=[{source}]"]


def evaluation_recipe(data: str, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Return the settings that evaluate a model on the source of `--data`; raises RecipeError like `load_recipe`."""
    place = Place(0, 0, 0, "--data")
    document = Document({"data": {}}, keys={(): place}, values={(): place})
    return _validated(EvaluationRecipe, document, [*data_overrides(data), *overrides])


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe, including defaults, as YAML; with its `hook_files` next to it, `load_recipe` reads an equal `Recipe`."""
    data = recipe.model_dump()
    data["run"]["output_dir"] = escape_braces(recipe.run.output_dir)
    return write_yaml(escape_variables(data))


def hook_files(recipe: Recipe) -> dict[str, bytes]:
    """Return the files with functions of the user that must be stored next to the recipe, by name."""
    hooks = [source.hook for source in (*recipe.data.train, *recipe.data.eval)]
    hooks += [part.hook for _, part in objective_keys(recipe.objective) if isinstance(part, OwnObjective)]
    return {hook.file.name: hook.code for hook in hooks if hook is not None}


def _validated(schema: type[AnyRecipe], document: Document, overrides: Sequence[str]) -> AnyRecipe:
    for order, override in enumerate(overrides, start=MAX_FILES):
        _override(document, override, order)
    contents = insert_variables(document)
    for path, text in texts(document.data):
        if is_secret(text):
            message = f"looks like a password or token; {ADVICE}"
            document.problems.append(Problem(document.value_place(path), path, message))
    try:
        recipe = _with_types(schema, document, contents)
    except ValidationError as error:
        raise _refusal([*document.problems, *explain(error, document)]) from None
    problems = [*document.problems, *_read_hooks(recipe, document)]
    if isinstance(recipe, Recipe):
        output_dir, wrong = fill_keys(recipe.run.output_dir, recipe.model_dump())
        problems += [Problem(document.value_place(OUTPUT_DIR), OUTPUT_DIR, message) for message in wrong]
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"output_dir": output_dir})})
    if problems:
        raise _refusal(problems)
    return recipe


def _with_types(schema: type[AnyRecipe], document: Document, contents: Mapping[KeyPath, str]) -> AnyRecipe:
    """Validate a recipe. A variable has its content as text where the key wants text, although YAML reads, say, a number."""
    adapter = TypeAdapter(schema)
    try:
        return adapter.validate_python(document.data)
    except ValidationError as error:
        wanted = contents.keys() & wanting_text(error, document)
        if not wanted:
            raise
    for path in wanted:
        put(document.data, path, contents[path])
    return adapter.validate_python(document.data)


def _refusal(problems: Sequence[Problem]) -> RecipeError:
    ordered = sorted(problems, key=lambda problem: problem.place[:3])
    return RecipeError(*dict.fromkeys(map(str, ordered)))  # the same override may come twice


def _override(document: Document, text: str, order: int) -> None:
    """Set one key of `document`, in place; mistakes in the override are added to its `problems`.

    Errors come in the `order` of the overrides, after those of the files.
    """
    name, equals, written = text.partition("=")
    shown = f"={HIDDEN if asks_for_secret(name) else shorten(written)}" if equals else ""
    place = Place(order, 0, 0, f"override {shorten(name)}{shown}", document.keys[()].directory)
    parts = name.split(".")
    if not equals or not all(part.strip() for part in parts):
        document.problems.append(Problem(place, (), "expected a key path, =, and a value, such as optimizer.lr=1e-5"))
        return
    value = parse_yaml(written, lambda _line, _column: place)
    try:
        path = _set(document.data, parts, value.data)
    except ValueError as error:
        document.problems.append(Problem(place, tuple(parts), str(error)))
        return
    document.problems.extend(Problem(place, (*path, *problem.path), problem.message) for problem in value.problems)
    # Errors in the new value, and in sections created for it, are reported at the override.
    for places in (document.keys, document.values):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
        places.update({(*path, *inner): place for inner in value.values})
        for depth in range(1, len(path)):
            places.setdefault(path[:depth], place)


def _set(data: Any, parts: Sequence[str], value: Any) -> KeyPath:
    """Set the value at a dotted name, and create missing sections. Return its path, with a number where the recipe has a list.

    Raises:
        ValueError: there is no such place in the recipe, in one line.
    """
    path: list[str | int] = []
    for part, following in zip(parts, (*parts[1:], None), strict=True):
        key: str | int = part
        if isinstance(data, list):
            if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(data):
                here = dotted(tuple(path))
                raise ValueError(f"{here} is a list of {len(data)}; expected an index below {len(data)}, got {shorten(part)}")
            key = int(part)
        elif not isinstance(data, dict):
            raise ValueError(f"{dotted(tuple(path))} is not a section and has no key {shorten(part)}")
        path.append(key)
        if following is None:
            data[key] = value
        elif isinstance(data, dict) and data.get(part) is None:
            if following.isdigit():
                here = dotted(tuple(path))
                raise ValueError(f"{here} has no entries yet; set the whole list, such as {here}=[...]")
            data[part] = {}
        data = data[key]
    return tuple(path)


def _read_hooks(recipe: Recipe | EvaluationRecipe, document: Document) -> Iterator[Problem]:
    """Read the file of each function of the user, next to the recipe that names it, into the source or the objective."""
    named: list[tuple[KeyPath, str, Source | OwnObjective]] = [
        (("data", split, number, "prepare"), source.prepare, source)
        for split, sources in (("train", recipe.data.train), ("eval", recipe.data.eval))
        for number, source in enumerate(sources)
        if source.prepare is not None
    ]
    for key, part in objective_keys(recipe.objective):
        if isinstance(part, OwnObjective):
            named.append((("objective", *key, "path"), part.path.replace(".py:", ":"), part))
    read: dict[str, Hook] = {}
    for path, name, owner in named:
        place = document.value_place(path)
        try:
            hook = read_hook(name, place.directory)
        except ValueError as error:
            yield Problem(place, path, str(error))
            continue
        other = read.setdefault(hook.file.name, hook)
        if other.code != hook.code:  # the run directory has one file of a name
            yield Problem(place, path, f"{hook.file} differs from {other.file}, which this recipe also names; rename one of them")
        owner.take(hook)


def read_hook(name: str, directory: Path | None) -> Hook:
    """Read `module.py` for `module:function` from the directory of the recipe, None for a recipe without a file, and from nowhere else.

    Raises:
        ValueError: the file is missing, unreadable or too large; the message is one line.
    """
    file_name = f"{name.partition(':')[0]}.py"
    if directory is None:
        raise ValueError(f"{file_name} is read from the directory of the recipe file; load this recipe from a file")
    file = directory / file_name
    try:
        with file.open("rb") as stream:  # at most the limit: the name may lead to a device or a huge file
            code = stream.read(MAX_HOOK_BYTES + 1)
    except OSError as error:
        raise ValueError(f"expected {file_name} next to the recipe; {file}: {error.strerror}") from error
    if len(code) > MAX_HOOK_BYTES:
        raise ValueError(f"{file}: expected at most {MAX_HOOK_BYTES // 1024} KiB of code; move the rest into a package")
    return Hook(name, code, file)
