"""The schema as a tree to walk: every section and key, where a pydantic error belongs, and types in plain words."""

import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Tag, TypeAdapter
from pydantic.fields import FieldInfo

from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath

SectionType = type[BaseModel]
JsonSchema = dict[str, Any]

_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
_PATTERNS = {
    r"^[\w.-]+$": "text of letters, digits, `_`, `.` and `-`",
    r"^[A-Za-z_]\w*:[A-Za-z_]\w*$": "text such as module:function",
}


class Spot(NamedTuple):
    """Where an error belongs: the key path as a user writes it, the section that holds its last key, and the value's type.

    In a union, `sections` begins with the chosen kind; the other kinds follow.
    """

    path: KeyPath
    sections: tuple[SectionType, ...]
    annotation: Any


class Entry(NamedTuple):
    """A section and one place of it. 0 in `path` stands for any index; `kind` names it among the kinds of a union."""

    path: KeyPath
    section: SectionType
    kind: str | None


def entries() -> Iterator[Entry]:
    """Every section at every place it has, parents first, in the order of the schema."""
    return _entries((), Recipe)


@cache
def key_paths() -> dict[str, list[KeyPath]]:
    """Every key: its name, and its paths in the order of the schema."""
    found: dict[str, dict[KeyPath, None]] = {}
    for entry in entries():
        for name in entry.section.model_fields:
            found.setdefault(name, {})[*entry.path, name] = None
    return {name: list(paths) for name, paths in found.items()}


def field_type(field: FieldInfo) -> Any:
    """The type of a field with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def kinds(annotation: Any) -> dict[str | None, SectionType]:
    """The sections that a value of this type can be, by the name of their kind; a single section has none."""
    found = [option for option in _options(annotation) if _is_section(_bare(option))]
    return {(next(iter(_tags(option)), None) if len(found) > 1 else None): _bare(option) for option in found}


def discriminator(annotation: Any) -> str | None:
    """The key whose value names the kind, such as `format`; None where the kind shows by which keys are given."""
    named = [(name, field) for section in kinds(annotation).values() for name, field in section.model_fields.items()]
    return next((name for name, field in named if set(choices(field.annotation)) & set(kinds(annotation))), None)


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a value of this type may be, if it is a Literal or a union with one."""
    literals = [_bare(option) for option in _options(annotation)]
    return tuple(word for literal in literals if get_origin(literal) is Literal for word in get_args(literal))


def follow(location: tuple[int | str, ...]) -> Spot:
    """Follow pydantic's `loc` through the types. The tags and labels that it inserts for unions are no keys and left out."""
    path: list[str | int] = []
    sections: tuple[SectionType, ...] = (Recipe,)
    annotation: Any = Recipe  # of the value at `path`
    here: Any = Recipe  # the same after the kinds that `loc` has chosen so far
    names: Any = None
    for part in location:
        options = _options(here)
        if len(options) > 1:
            here = next((option for option in options if _is_chosen(option, str(part))), options[0])
        elif part == "[key]":
            annotation = names
        elif not _has_parts(_bare(options[0])):
            continue
        else:
            inside = _bare(options[0])
            if _is_section(inside):
                sections = (inside, *(section for section in kinds(annotation).values() if section is not inside))
            names = get_args(inside)[0] if get_origin(inside) is dict else None
            path.append(part)
            here = annotation = _part_type(inside, part)
    return Spot(tuple(path), sections, annotation)


def in_words(annotation: Any) -> str:
    """A type in plain words: `a whole number above 0, or null`."""
    if kinds(annotation):
        return "a section, or null" if type(None) in _members(annotation) else "a section"
    schema = TypeAdapter(annotation).json_schema()
    return _words(schema, schema.get("$defs", {}))


def listed(words: Iterable[str], conjunction: str) -> str:
    """`a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def either(words: Iterable[str]) -> str:
    """`a, b or c`."""
    return listed(words, "or")


def _entries(path: KeyPath, annotation: Any) -> Iterator[Entry]:
    for option in _options(annotation):
        if get_origin(_bare(option)) is tuple:
            yield from _entries((*path, 0), get_args(_bare(option))[0])
    for kind, section in kinds(annotation).items():
        yield Entry(path, section, kind)
        for name, field in section.model_fields.items():
            yield from _entries((*path, name), field.annotation)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (annotation,)


def _options(annotation: Any) -> tuple[Any, ...]:
    return tuple(member for member in _members(annotation) if member is not type(None))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_parts(annotation: Any) -> bool:
    return _is_section(annotation) or get_origin(annotation) in (tuple, dict)


def _tags(option: Any) -> list[str]:
    written = [item.tag for item in get_args(option)[1:] if isinstance(item, Tag)] if get_origin(option) is Annotated else []
    if written or not _is_section(_bare(option)):
        return written
    return [word for field in _bare(option).model_fields.values() for word in choices(field.annotation)]


def _is_chosen(option: Any, label: str) -> bool:
    bare = _bare(option)
    name = getattr(get_origin(bare) or bare, "__name__", "")
    return label in _tags(option) or (not _is_section(bare) and label.startswith(name.lower()))


def _part_type(annotation: Any, part: str | int) -> Any:
    if _is_section(annotation):
        field = annotation.model_fields.get(part)
        return field_type(field) if field else Any
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments[-1] is ... else arguments[min(int(part), len(arguments) - 1)]


def _words(schema: JsonSchema, definitions: JsonSchema) -> str:
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return ", or ".join(dict.fromkeys(_words(option, definitions) for option in options))
    if "$ref" in schema:
        return _words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return either(schema.get("enum") or [schema["const"]])
    simple = {"null": "null", "boolean": "true or false"}
    if schema["type"] in simple:
        return simple[schema["type"]]
    return {"string": _text_words, "array": _list_words, "object": _object_words}.get(schema["type"], _number_words)(
        schema, definitions
    )


def _text_words(schema: JsonSchema, _: JsonSchema) -> str:
    if "pattern" in schema:
        return _PATTERNS.get(schema["pattern"], f"text like {schema['pattern']}")
    return "non-empty text" if schema.get("minLength") else "text"


def _number_words(schema: JsonSchema, _: JsonSchema) -> str:
    bounds = [f"{words} {schema[bound]}" for bound, words in _BOUNDS.items() if bound in schema]
    return " ".join(["a whole number" if schema["type"] == "integer" else "a number", " and ".join(bounds)]).strip()


def _list_words(schema: JsonSchema, definitions: JsonSchema) -> str:
    items = schema.get("prefixItems") or [schema["items"]]
    each = " and ".join(dict.fromkeys(_words(item, definitions) for item in items))
    size = f" of {len(items)}" if "prefixItems" in schema else ""
    return f"a {'non-empty ' if schema.get('minItems') == 1 else ''}list{size}, each {each}"


def _object_words(schema: JsonSchema, definitions: JsonSchema) -> str:
    values = schema.get("additionalProperties")
    names = f" from {_words(schema['propertyNames'], definitions)}" if "propertyNames" in schema else ""
    return f"a mapping{names} to {_words(values, definitions)}" if values else "a section"
