"""Mistakes in a recipe, one line each: pydantic's message, the place in the file, and what was probably meant."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import takewhile
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from rmtrain.recipe.key_aliases import ALIASES, HINTS, OTHER_VALUES
from rmtrain.recipe.preference_labels import NUMBER
from rmtrain.recipe.public_benchmarks import BENCHMARK_GATE
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import KeyPath, Section
from rmtrain.recipe.yaml import Document, Problem, dotted, shorten
from rmtrain.redact import asks_for_secret

MAX_PROBLEMS = 100
KIND_KEYS = ("format", "by", "type")
"""Keys whose value chooses the kind of their section."""

_EXPECTED = {
    "model_type": "a section",
    "kind": "a section",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "too_long": "at most {max_length} entries",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "string_too_short": "non-empty text",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""Own words where pydantic's message is about Python's types, or does not fit after "expected"."""

PATTERNS = {
    r"^[\w.-]+$": "text of letters, digits, `_`, `.` and `-`",
    r"^[\w.-]+/[\w.-]+$": "text such as owner/name",
    r"^[A-Za-z_]\w*:[A-Za-z_]\w*$": "text such as module:function",
    BENCHMARK_GATE: "a benchmark such as rm_bench or a section of one such as rm_bench.chat",
}
"""Patterns of texts in words."""

_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


class Suggestion(NamedTuple):
    """The message for an unknown key, the key that was probably meant, and whether that one chooses the kind of its section."""

    message: str
    meant: KeyPath | None = None
    chooses_kind: bool = False


class Entry(NamedTuple):
    """A section at one of its places. 0 in `path` stands for any index; `kind` is its name if the place has several kinds."""

    path: KeyPath
    section: type[Section]
    kind: str | None


@cache
def entries() -> tuple[Entry, ...]:
    """Return every section of a recipe at every place it has, parents first, in the order of the schema."""
    return tuple(_sections_in(Recipe, ()))


def _sections_in(annotation: Any, path: KeyPath) -> Iterator[Entry]:
    annotated = get_origin(annotation) is Annotated
    kinds = [item.tag.strip("<>") for item in get_args(annotation)[1:] if isinstance(item, Tag)] if annotated else []
    bare = get_args(annotation)[0] if annotated else annotation
    if isinstance(bare, type) and issubclass(bare, Section):
        yield Entry(path, bare, kinds[0] if kinds else None)
        for name, field in bare.model_fields.items():
            yield from _sections_in(field.annotation, (*path, name))
    else:
        for inner in get_args(bare):
            yield from _sections_in(inner, (*path, 0) if get_origin(bare) is tuple else path)


@cache
def key_paths() -> dict[str, list[KeyPath]]:
    """Return the paths of every key by its name, in the order of the schema."""
    paths: dict[str, dict[KeyPath, None]] = {}
    for entry in entries():
        for name in entry.section.model_fields:
            paths.setdefault(name, {})[*entry.path, name] = None
    # A key such as `path` that entries of benchmarks have as well is seldom meant there.
    return {name: [path for path in found if "benchmarks" not in path[:-1]] or list(found) for name, found in paths.items()}


def sections_at(path: KeyPath) -> dict[str | None, type[Section]]:
    """Return the sections that can be at `path`, by the name of their kind."""
    return {entry.kind: entry.section for entry in entries() if entry.path == _any_index(path)}


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """Return one problem for each wrong key in the error of a recipe. Errors that only follow from another problem are left out."""
    reported = {problem.path for problem in document.problems}  # by the YAML reader, which left the value empty or as text
    details: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False)[:MAX_PROBLEMS]:
        details.setdefault(_key_path(detail, document.data), []).append(detail)
    unknown = {
        path: suggest(path, str(group[0]["loc"][-2]).strip("<>") if path[:-1] else None)
        for path, group in details.items()
        if group[0]["type"] == "extra_forbidden"
    }
    problems = []
    for path, group in details.items():
        type_ = group[0]["type"]
        # In a union such as `text | list of texts`, the error within the list says more than "neither text nor a list".
        nested = type_ != "conflict" and any(len(other) > len(path) and other[: len(path)] == path for other in details)
        known = path in reported and type_ not in ("extra_forbidden", "missing")
        if nested or known or _follows_from_misspelt_key(type_, path, unknown):
            continue
        if path in unknown:
            problems.append(Problem(document.key_place(path), path, unknown[path].message))
        else:
            problems.append(_problem(path, group, document))
    if error.error_count() > MAX_PROBLEMS:
        problems.append(Problem(document.keys[()], (), f"and {error.error_count() - MAX_PROBLEMS} more problems"))
    return problems


def wanting_text(error: ValidationError, document: Document) -> set[KeyPath]:
    """Return the paths of values that are no text, of keys that take text."""
    details = error.errors(include_url=False)
    return {_key_path(detail, document.data) for detail in details if detail["type"] == "string_type"}


def _key_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """Return the keys in pydantic's `loc`, without the labels that it inserts for unions (`<pair>`, `str`) and keys (`[key]`)."""
    if detail["type"] == "conflict":
        return detail["loc"]
    path: list[str | int] = []
    for part in detail["loc"]:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            continue
        path.append(part)
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
        path.append(detail["loc"][-1])
    if detail["type"] == "kind" and isinstance(data, dict):
        path.append(detail["ctx"]["key"])
    return tuple(path)


def _follows_from_misspelt_key(type_: str, path: KeyPath, unknown: dict[KeyPath, Suggestion]) -> bool:
    """A key is missing, or does not fit the kind of its section, because an unknown key of the same section was misspelt."""
    kinds = sections_at(path[:-1]).values() if type_ in ("missing", "extra_forbidden") else ()
    is_key = any(path[-1] in section.model_fields for section in kinds)
    siblings = (suggestion for other, suggestion in unknown.items() if other[:-1] == path[:-1] and other != path)
    return is_key and any(sibling.meant == path or sibling.chooses_kind for sibling in siblings)


def _problem(path: KeyPath, group: list[ErrorDetails], document: Document) -> Problem:
    """Explain the errors of one key; there are several for a union, one for each of its types."""
    detail, value = group[0], group[0]["input"]
    match detail["type"]:
        case "missing":
            return Problem(document.key_place(path[:-1]), path, "missing; this key is required")
        case "conflict":
            place = document.value_place(path if path in document.values else detail["ctx"]["depends_on"])
            return Problem(place, path, detail["msg"])
        case "kind" if isinstance(value, dict):
            return _wrong_kind(path, value, document)
    expected = " or ".join(dict.fromkeys(map(_expected, group)))
    hint = next(filter(None, (_remedy(each, path) for each in group)), "")
    if "[key]" in detail["loc"]:  # last, unless the key may be of several types
        return Problem(document.key_place(path), path, f"unknown key; expected {expected}{hint}")
    return Problem(document.value_place(path), path, f"expected {expected}, got {show(value)}{hint}")


def _expected(detail: ErrorDetails) -> str:
    own = PATTERNS.get(detail.get("ctx", {}).get("pattern", "")) or _EXPECTED.get(detail["type"])
    # pydantic has the bound 1 of a float as 1.0
    context = detail.get("ctx", {}).items()
    bounds = {name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound for name, bound in context}
    return own.format(**bounds) if own else detail["msg"].removeprefix("Input should be ")


def _wrong_kind(path: KeyPath, section: dict[str, Any], document: Document) -> Problem:
    key, kinds = str(path[-1]), sections_at(path[:-1])
    names = [str(name) for name in kinds]
    if key in section:
        message = f"expected {either(names)}, got {show(section[key])}{_did_you_mean(section[key], names)}"
        return Problem(document.value_place(path), path, message)
    unknown = [name for name in section if not any(name in kind.model_fields for kind in kinds.values())]
    misspelt = near_miss(key, unknown)
    if misspelt:
        path = (*path[:-1], misspelt)
        return Problem(document.key_place(path), path, f"unknown key; did you mean {key}?")
    return Problem(document.key_place(path[:-1]), path, f"missing; expected {either(names)}")


_BEYOND_ONE = {
    ("repeat", "greater_than_equal"): "; set fraction to keep a share of its prompts",
    ("fraction", "less_than_equal"): "; set repeat to use rows several times",
}
"""What to set where a source is to have less or more weight than its key allows."""


def _remedy(detail: ErrorDetails, path: KeyPath) -> str:
    value = detail["input"]
    match detail["type"], value:
        case "literal_error", str():  # pydantic gives the choices as text only
            return _did_you_mean(value, re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
        case "int_type" | "float_type", str() if NUMBER.fullmatch(value):
            return "; remove the quotes"
        case "int_type", float() if value.is_integer():
            return f"; write {int(value)}"
        case "bool_type", str() if value in _BOOLEANS:
            return f"; write {_BOOLEANS[value]}"
        case "string_type", bool() | int() | float():
            return "; put it in quotes"
        case type_, _ if advice := _BEYOND_ONE.get((str(path[-1]), type_)):
            return advice
        case "tuple_type", "none":
            return "; write []"
        case "tuple_type", str():
            return "; put it in a list, between [ and ]"
        case "model_type" | "kind", str() if any("path" in section.model_fields for section in sections_at(path).values()):
            return f"; write {{path: {shorten(value)}}}"
    return ""


def _did_you_mean(value: Any, words: Iterable[str]) -> str:
    if isinstance(value, str) and value in OTHER_VALUES:
        return f"; {OTHER_VALUES[value]}"
    near = near_miss(value, words) if isinstance(value, str) else None
    return f"; did you mean {near}?" if near else ""


def show(value: Any) -> str:
    """Return a value for a message, shortened."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f'"{shorten(value)}"' if isinstance(value, str) else json.dumps(value)


def either(words: Iterable[str]) -> str:
    """Return `a, b or c`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def near_miss(word: str, words: Iterable[str], cutoff: float | None = None) -> str | None:
    """Return the shortest of `words` that `word` abbreviates, or else the most similar one, if one is similar enough."""
    candidates = list(words)
    cutoff = cutoff or (0.6 if len(word) < 6 else 0.75)  # a long word that shares half its letters means something else
    similar = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
    abbreviated = [longer for longer in candidates if len(word) >= 3 and longer.startswith(word)]
    return min(abbreviated, key=len) if abbreviated else next(iter(similar), None)


def suggest(path: KeyPath, kind: str | None = None) -> Suggestion:
    """Explain the unknown key at `path`, in a section of the given kind.

    Names of other trainers come before small typing errors, and keys of the same section before those of others.
    """
    name, section = str(path[-1]), path[:-1]
    advice = asks_for_secret(name)
    if advice:
        return Suggestion(f"unknown key; {advice}")
    if name == "<<":
        return Suggestion("unknown key; YAML merge keys are not supported, write the keys themselves")
    sections, here = sections_at(section), _any_index(section)
    owners = [str(other) for other, fields in sections.items() if name in fields.model_fields]
    if owners:
        return Suggestion(f"not a key of kind {kind}, only of {either(owners)}; remove it")
    plain = name.lower().replace("-", "_")
    hint = HINTS.get(f"{here[-1]}.{plain}" if here else plain) or HINTS.get(plain)
    if hint:
        return Suggestion(f"unknown key; {hint}")
    own = list(dict.fromkeys(key for fields in sections.values() for key in fields.model_fields))
    alias = ALIASES.get(f"{here[-1]}.{plain}" if here else plain) or ALIASES.get(plain)
    if alias and plain not in own:
        # Aliases lead to data.train; in data.eval they mean the same key there.
        meant = (*here[:2], *alias[2:]) if alias[:2] == ("data", "train") and here[:2] == ("data", "eval") else alias
        return _suggested(meant, section, kind)
    near = near_miss(plain, own, cutoff=0.85)
    if plain in key_paths() and not near:
        return Suggestion(f"unknown key; {_belongs_under(key_paths()[plain], here)}")
    near = near or near_miss(plain, own)
    if near:
        return _suggested((*here, near), section, kind)
    near = near_miss(plain, [*ALIASES, *HINTS, *key_paths()], cutoff=0.8)
    if near in HINTS:
        return Suggestion(f"unknown key; {HINTS[near]}")
    if near:
        return _suggested(ALIASES.get(near) or key_paths()[near][0], section, kind)
    chosen = sections.get(kind) or next(iter(sections.values()))
    return Suggestion(f"unknown key; expected {either(chosen.model_fields)}")


def explain_option(option: str, known: Iterable[str], takes_keys: bool) -> str:
    """Explain an unknown option of the command line, such as `--learning_rate`.

    Args:
        known: the options of the verb.
        takes_keys: the verb takes overrides of the recipe, so that the option may mean a key.
    """
    name = option.lstrip("-").lower().replace("-", "_")
    if takes_keys and name in HINTS:
        return f"not an option; {HINTS[name]}"
    paths = [ALIASES[name]] if name in ALIASES else [(name,)] if name in Recipe.model_fields else key_paths().get(name, [])
    if takes_keys and paths:
        return f"not an option; set {either(map(_as_override, paths))}, without dashes"
    near = near_miss(option, known, cutoff=0.75)
    return f"not an option; did you mean {near}?" if near else "not an option; see --help"


def _as_override(path: KeyPath) -> str:
    if path in (("data", "train"), ("data", "eval")):
        return f"{dotted(path)}=[{{path: ...}}]"
    return f"{dotted(path)}={{...}}" if sections_at(path) else f"{dotted(path)}=..."


def _suggested(meant: KeyPath, section: KeyPath, kind: str | None) -> Suggestion:
    if meant[:-1] != _any_index(section):
        return Suggestion(f"unknown key; did you mean {dotted(meant)}?")
    name, sections = str(meant[-1]), sections_at(section)
    chooses_kind = (name in KIND_KEYS and len(sections) > 1) or (kind in sections and name not in sections[kind].model_fields)
    return Suggestion(f"unknown key; did you mean {name}?", (*section, name), chooses_kind)


def _belongs_under(paths: list[KeyPath], here: KeyPath) -> str:
    """Name the sections that have the key; of several, those that share the longest path with this one."""
    shared = [len(list(takewhile(lambda pair: pair[0] == pair[1], zip(path, here, strict=False)))) for path in paths]
    nearest = [path[:-1] for path, length in zip(paths, shared, strict=True) if length == max(shared)]
    return f"it belongs under {either(map(dotted, nearest))}" if all(nearest) else "it belongs at the top level"


def _any_index(path: KeyPath) -> KeyPath:
    return tuple(0 if isinstance(part, int) else part for part in path)
