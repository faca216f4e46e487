"""pydantic's errors in plain words: where, what was expected, what came, and what to change."""

import difflib
import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Tag, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rmtrain.recipe.key_aliases import OPTIONS, PEERS
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath, Section
from rmtrain.recipe.yaml import Document, Place, Problem, dotted, parse_yaml, shorten
from rmtrain.redact import asks_for_secret

SectionType = type[BaseModel]
JsonSchema = dict[str, Any]

_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "exclusiveMaximum": "below"}
_PATTERNS = {
    r"^[\w.-]+$": "text of letters, digits, `_`, `.` and `-`",
    r"^[A-Za-z_]\w*:[A-Za-z_]\w*$": "text such as module:function",
}


class ErrorLocation(NamedTuple):
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


def follow(location: tuple[int | str, ...]) -> ErrorLocation:
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
    return ErrorLocation(tuple(path), sections, annotation)


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


MERGE_KEY = "<<"
TRAIN, EVAL = ("data", "train"), ("data", "eval")


class Suggestion(NamedTuple):
    """What to say about an unknown key, and the key that was probably meant."""

    message: str
    meant: KeyPath | None = None


def suggest(path: KeyPath, sections: tuple[SectionType, ...]) -> Suggestion:
    """Explain the unknown key at `path`; `sections` are the kinds of section it stands in, the chosen one first."""
    name, where = str(path[-1]), path[:-1]
    advice = asks_for_secret(name)
    if advice:
        return Suggestion(f"unknown key; {advice}")
    if name == MERGE_KEY:
        return Suggestion("unknown key; merge keys are not followed, write the keys themselves")
    if name not in sections[0].model_fields and any(name in section.model_fields for section in sections[1:]):
        return Suggestion(_of_another_kind(name, sections))
    plain, here = name.lower().replace("-", "_"), _any_index(where)
    if plain in OPTIONS:
        return Suggestion(f"unknown key; {OPTIONS[plain]}")
    own = list(dict.fromkeys(key for section in sections for key in section.model_fields))
    everywhere = key_paths()
    peer = PEERS.get(f"{here[-1]}.{plain}" if here else plain) or PEERS.get(plain)
    if peer and plain not in own:
        return _did_you_mean(_of_same_split(peer, here), where)
    near = near_miss(plain, own, cutoff=0.85)
    if plain in everywhere and not near:
        return _belongs_under(everywhere[plain], here)
    near = near or near_miss(plain, own)
    if near:
        return _did_you_mean((*here, near), where)
    near = near_miss(plain, [*PEERS, *everywhere], cutoff=0.8)
    if near:
        return _did_you_mean(PEERS.get(near) or everywhere[near][0], where)
    return Suggestion(f"unknown key; expected {either(sections[0].model_fields)}")


def near_miss(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `words`, if one is similar enough, or the first that `word` abbreviates."""
    similar = difflib.get_close_matches(word, (words := list(words)), n=1, cutoff=cutoff)
    abbreviated = [longer for longer in words if len(word) >= 3 and longer.startswith(word)]
    return next(iter([*similar, *abbreviated]), None)


def _of_another_kind(name: str, sections: tuple[SectionType, ...]) -> str:
    kinds = {entry.section: str(entry.kind) for entry in entries()}
    others = either(kinds[section] for section in sections[1:] if name in section.model_fields)
    return f"not a key of the kind {kinds[sections[0]]}, only of {others}; remove it"


def _any_index(path: KeyPath) -> KeyPath:
    return tuple(0 if isinstance(part, int) else part for part in path)


def _of_same_split(peer: KeyPath, here: KeyPath) -> KeyPath:
    """Sources have the same keys in `data.eval` as in `data.train`, where the names of peers lead."""
    return (*here[:2], *peer[2:]) if peer[:2] == TRAIN and here[:2] == EVAL else peer


def _did_you_mean(meant: KeyPath, where: KeyPath) -> Suggestion:
    if meant[:-1] == _any_index(where):
        return Suggestion(f"unknown key; did you mean {meant[-1]}?", (*where, meant[-1]))
    return Suggestion(f"unknown key; did you mean {dotted(meant)}?")


def _belongs_under(paths: list[KeyPath], here: KeyPath) -> Suggestion:
    shared = {path: sum(1 for _ in _common(path, here)) for path in paths}
    nearest = [path[:-1] for path in paths if shared[path] == max(shared.values())]
    return Suggestion(
        f"unknown key; it belongs {'under ' + either(map(dotted, nearest)) if all(nearest) else 'at the top level'}"
    )


def _common(path: KeyPath, other: KeyPath) -> Iterable[str | int]:
    for part, counterpart in zip(path, other, strict=False):
        if part != counterpart:
            return
        yield part


MAX_PROBLEMS = 100

_UNKNOWN = "extra_forbidden"
_MISFIT = "misfit"
_ANSWERS = {"yes": True, "on": True, "no": False, "off": False}


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """One problem for each key that is wrong; what is told already or only follows from another problem is left out.

    Args:
        error: what `Recipe.model_validate(document.data)` raised.
        document: the recipe as it was read, for the places of its keys.
    """
    details = [(detail, _spot(detail)) for detail in error.errors(include_url=False)[:MAX_PROBLEMS]]
    unknown = {spot.path: (spot, suggest(spot.path, spot.sections)) for detail, spot in details if detail["type"] == _UNKNOWN}
    reported = {problem.path for problem in document.problems}
    problems: dict[KeyPath, Problem] = {}
    for detail, spot in details:
        told = detail["type"] not in (_UNKNOWN, "missing") and spot.path in reported
        if told or _follows_from_others(detail, spot, unknown) or any(_inside(other.path, spot.path) for _, other in details):
            continue
        message = unknown[spot.path][1].message if detail["type"] == _UNKNOWN else ""
        problem = Problem(document.key_place(spot.path), spot.path, message) if message else _explain_one(detail, spot, document)
        problems.setdefault(problem.path, problem)
    if error.error_count() > MAX_PROBLEMS:
        problems[()] = Problem(document.keys[()], (), f"and {error.error_count() - MAX_PROBLEMS} more problems")
    return list(problems.values())


def show(value: Any) -> str:
    """A value as it came, short."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _spot(detail: ErrorDetails) -> ErrorLocation:
    location = detail["loc"]
    if detail["type"] == _MISFIT:
        return ErrorLocation(location, (), None)
    if detail["type"] == "missing" and isinstance(location[-1], int):  # a list that is too short
        location = location[:-1]
    return follow(location)


def _inside(path: KeyPath, container: KeyPath) -> bool:
    return len(path) > len(container) and path[: len(container)] == container


def _follows_from_others(
    detail: ErrorDetails, spot: ErrorLocation, unknown: dict[KeyPath, tuple[ErrorLocation, Suggestion]]
) -> bool:
    """A key is missing, or belongs to another kind of section, because an unknown key beside it was misspelt."""
    for other, suggestion in unknown.values():
        if suggestion.meant is None or other.path[:-1] != spot.path[:-1] or other.path == spot.path:
            continue
        chooses_kind = _chooses_kind(str(suggestion.meant[-1]), other)
        if detail["type"] == "missing" and (chooses_kind or suggestion.meant == spot.path):
            return True
        if (
            detail["type"] == _UNKNOWN
            and chooses_kind
            and any(spot.path[-1] in section.model_fields for section in spot.sections)
        ):
            return True
    return False


def _chooses_kind(name: str, spot: ErrorLocation) -> bool:
    """Whether a key says which kind of section it stands in: only other kinds have it, or it means another word in each."""
    words = {choices(section.model_fields[name].annotation) for section in spot.sections if name in section.model_fields}
    return name not in spot.sections[0].model_fields or len(words) > 1


def _explain_one(detail: ErrorDetails, spot: ErrorLocation, document: Document) -> Problem:
    match detail["type"]:
        case "missing" if isinstance(detail["loc"][-1], str):
            return Problem(document.key_place(spot.path[:-1]), spot.path, f"missing; expected {_in_words(spot.annotation)}")
        case "misfit":
            written = spot.path if spot.path in document.values else detail["ctx"]["depends_on"]
            return Problem(document.value_place(written), spot.path, detail["msg"])
        case "literal_error" if detail["loc"][-1] == "[key]":
            message = f"unknown key; expected {_in_words(spot.annotation)}{_near_choice(detail['input'], spot.annotation)}"
            return Problem(document.key_place(spot.path), spot.path, message)
        case "union_tag_invalid" | "union_tag_not_found" if isinstance(detail["input"], dict):
            return _wrong_kind(detail["input"], spot, document)
        case _:
            value, annotation = detail["input"], spot.annotation
            hint = _near_choice(value, annotation) or next(_remedies(value, annotation), "")
            message = f"expected {_in_words(annotation)}, got {show(value)}{hint}"
            return Problem(document.value_place(spot.path), spot.path, message)


def _in_words(annotation: Any) -> str:
    required = [[n for n, field in kind.model_fields.items() if field.is_required()] for kind in kinds(annotation).values()]
    fewest = [keys for keys in required if keys and not any(set(other) < set(keys) for other in required)]
    return in_words(annotation) + (f" with {either(dict.fromkeys(listed(keys, 'and') for keys in fewest))}" if fewest else "")


def _wrong_kind(value: dict[str, Any], spot: ErrorLocation, document: Document) -> Problem:
    key, names = discriminator(spot.annotation), [str(name) for name in kinds(spot.annotation)]
    assert key is not None, spot
    if key not in value:
        return _no_kind(value, key, names, spot, document)
    came = value[key]
    near = near_miss(came, names) if isinstance(came, str) else None
    message = f"expected {either(names)}, got {show(came)}{f'; did you mean {near}?' if near else ''}"
    return Problem(document.value_place((*spot.path, key)), (*spot.path, key), message)


def _no_kind(value: dict[str, Any], key: str, names: list[str], spot: ErrorLocation, document: Document) -> Problem:
    known = {name for section in kinds(spot.annotation).values() for name in section.model_fields}
    misspelt = near_miss(key, [name for name in value if name not in known])
    if misspelt:
        path = (*spot.path, misspelt)
        return Problem(document.key_place(path), path, f"unknown key; did you mean {key}?")
    return Problem(document.key_place(spot.path), (*spot.path, key), f"missing; expected {either(names)}")


def _near_choice(value: Any, annotation: Any) -> str:
    near = near_miss(value, choices(annotation)) if isinstance(value, str) else None
    return f"; did you mean {near}?" if near else ""


def _remedies(value: Any, annotation: Any) -> Iterator[str]:
    """What would make `value` right, the likeliest first."""
    fits = create_model("Fits", __base__=Section, value=(annotation, ...))
    for candidate, remedy in _candidates(value):
        try:
            fits.model_validate({"value": candidate})
        except ValidationError:
            continue
        yield f"; {remedy}"


def _candidates(value: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(value, str):
        yield parse_yaml(value, lambda line, column: Place(0, line, column, "")).data, "remove the quotes"
        if value in _ANSWERS:
            yield _ANSWERS[value], f"write {show(_ANSWERS[value])}"
        yield {"path": value}, f"write {{path: {shorten(value)}}}"
        yield [{"path": value}], f"write [{{path: {shorten(value)}}}]"
    if isinstance(value, float) and value.is_integer():
        yield int(value), f"write {int(value)}"
    if isinstance(value, bool | int | float):
        yield show(value), "put it in quotes"
    if value is not None:
        yield [value], "put it in a list, between [ and ]"
