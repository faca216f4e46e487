"""What a key of a recipe is, in words: for docs/recipe.md, and for `rmtrain schema KEY` in a terminal."""

import json
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import KIND_KEYS, PATTERNS, either, entries, suggest
from rmtrain.recipe.library import recipes
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath, Section
from rmtrain.recipe.yaml import dotted, one_line, read_yaml, shorten, write_value

BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
SECTIONS: dict[str, Any] = Recipe.model_json_schema()["$defs"]
INDEX = ("N", "0")
"""How the entry of a list is named, in docs and in overrides."""


class Key(NamedTuple):
    """A key of a section in words, and the kinds of the section that have it, if the section has kinds."""

    name: str
    value: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()


class Reference(NamedTuple):
    """A section with its keys, or one key with an example, which is an override."""

    path: str
    meaning: str
    keys: list[Key]
    example: str | None = None


def keys_of(section: type[Section]) -> list[Key]:
    """Return the keys of a section, in the order of the schema."""
    schemas = SECTIONS[section.__name__]["properties"]
    return [
        Key(name, in_words(schemas[name]), default_words(field, schemas[name]), paragraph(field.description))
        for name, field in section.model_fields.items()
    ]


def look_up(name: str) -> Reference:
    """Return what a dotted name means, such as `optimizer`, `optimizer.lr` or `data.train.0.path`, also with N for an index or none.

    Raises:
        RecipeError: a recipe has no such key; the line says what was meant.
    """
    path: KeyPath = tuple(0 if part in INDEX else part for part in name.split("."))
    sections = {(entry.path, entry.kind): entry.section for entry in entries()}
    spelled = {tuple(part for part in place if part != 0): place for place, _ in sections}
    plain = tuple(part for part in path if part != 0)
    if plain in spelled:
        here = {kind: section for (place, kind), section in sections.items() if place == spelled[plain]}
        meaning = " ".join(dict.fromkeys(paragraph(section.__doc__) for section in here.values()))
        return Reference(dotted(spelled[plain]), meaning, _with_kinds(here))
    if len(plain) > 1 and plain[:-1] in spelled:
        place = spelled[plain[:-1]]
        here = {kind: section for (other, kind), section in sections.items() if other == place}
        keys = [key for key in _with_kinds(here) if key.name == plain[-1]]
        if keys:
            return Reference(dotted((*place, plain[-1])), keys[0].meaning, keys, _example((*place, plain[-1]), keys[0]))
    raise RecipeError(one_line(f"{shorten(name)}: {suggest(path).message}"))


def _with_kinds(sections: dict[str | None, type[Section]]) -> list[Key]:
    """Merge the keys of the kinds of a section; a key that means something else in another kind comes once for each meaning.

    The key that chooses the kind comes once, with all kinds as its values and the default of the first.
    """
    merged: dict[Key, list[str]] = {}
    keys = {kind: keys_of(section) for kind, section in sections.items()}
    choices = [key for kind, own in keys.items() for key in own if key.name in KIND_KEYS and key.value == kind]
    for kind, own in keys.items():
        for each in own:
            key = choices[0]._replace(value=either([choice.value for choice in choices])) if each in choices else each
            merged.setdefault(key, []).extend([kind] if kind else [])
    everywhere = len(sections)
    return [key._replace(kinds=tuple(kinds) if len(kinds) < everywhere else ()) for key, kinds in merged.items()]


def _example(path: KeyPath, key: Key) -> str | None:
    """Return the key as an override with the value of the first recipe of the package that sets it, or its default."""
    for value in _shipped():
        for part in path:
            if isinstance(part, int):
                value = value[part] if isinstance(value, list) else None
            else:
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                break
        else:
            return f"{dotted(path)}={write_value(value)}"
    default = key.default.strip("`")
    return f"{dotted(path)}={default}" if key.default.startswith("`") and default != "null" else None


@cache
def _shipped() -> list[Any]:
    """Return the recipes of the package as plain data, the quickstart first."""
    files = sorted(recipes().values(), key=lambda file: (file.stem != "quickstart", file))
    return [read_yaml(file).data for file in files]


def in_words(schema: dict[str, Any]) -> str:
    """The JSON schema of a value in plain words: `a whole number above 0, or null`."""
    if schema.get("$ref", "").endswith("/JsonValue"):
        return "any value"
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return ", or ".join(dict.fromkeys(map(in_words, options)))
    if "enum" in schema or "const" in schema:
        return either(schema.get("enum") or [schema["const"]])
    match schema.get("type", "object"):
        case "string" if "pattern" in schema:
            return PATTERNS.get(schema["pattern"], f"text that matches {schema['pattern']}")
        case "string":
            return "non-empty text" if schema.get("minLength") else "text"
        case "array":
            items = schema.get("prefixItems") or [schema["items"]]
            size = f" of {len(items)}" if "prefixItems" in schema else ""
            each = " and ".join(dict.fromkeys(map(in_words, items)))
            return f"a {'non-empty ' if schema.get('minItems') == 1 else ''}list{size}, each {each}"
        case "object" if schema.get("additionalProperties"):
            names = f" from {in_words(schema['propertyNames'])}" if "propertyNames" in schema else ""
            return f"a mapping{names} to {in_words(schema['additionalProperties'])}"
        case "integer" | "number" as type_:
            bounds = " and ".join(f"{words} {schema[bound]}" for bound, words in BOUNDS.items() if bound in schema)
            return f"{'a whole number' if type_ == 'integer' else 'a number'} {bounds}".strip()
        case type_:
            return {"boolean": "true or false", "null": "null"}.get(type_, "a section")


def default_words(field: FieldInfo, schema: dict[str, Any]) -> str:
    """The default as it is written in YAML, or that the key is required."""
    if field.is_required():
        return "required"
    value: Any = schema["default"] if field.default_factory else field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def paragraph(text: str | None) -> str:
    """A docstring as one paragraph."""
    return " ".join((text or "").split())
