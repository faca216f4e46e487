"""pydantic's errors in plain words: where, what was expected, what came, and what to change."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_core import ErrorDetails

from rmtrain.recipe.section import KeyPath, Section
from rmtrain.recipe.suggest import Suggestion, near_miss, suggest
from rmtrain.recipe.vocabulary import Spot, choices, discriminator, either, follow, in_words, kinds, listed
from rmtrain.recipe.yaml import Document, Place, Problem, parse_yaml, shorten

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


def _spot(detail: ErrorDetails) -> Spot:
    location = detail["loc"]
    if detail["type"] == _MISFIT:
        return Spot(location, (), None)
    if detail["type"] == "missing" and isinstance(location[-1], int):  # a list that is too short
        location = location[:-1]
    return follow(location)


def _inside(path: KeyPath, container: KeyPath) -> bool:
    return len(path) > len(container) and path[: len(container)] == container


def _follows_from_others(detail: ErrorDetails, spot: Spot, unknown: dict[KeyPath, tuple[Spot, Suggestion]]) -> bool:
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


def _chooses_kind(name: str, spot: Spot) -> bool:
    """Whether a key says which kind of section it stands in: only other kinds have it, or it means another word in each."""
    words = {choices(section.model_fields[name].annotation) for section in spot.sections if name in section.model_fields}
    return name not in spot.sections[0].model_fields or len(words) > 1


def _explain_one(detail: ErrorDetails, spot: Spot, document: Document) -> Problem:
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


def _wrong_kind(value: dict[str, Any], spot: Spot, document: Document) -> Problem:
    key, names = discriminator(spot.annotation), [str(name) for name in kinds(spot.annotation)]
    assert key is not None, spot
    if key not in value:
        return _no_kind(value, key, names, spot, document)
    came = value[key]
    near = near_miss(came, names) if isinstance(came, str) else None
    message = f"expected {either(names)}, got {show(came)}{f'; did you mean {near}?' if near else ''}"
    return Problem(document.value_place((*spot.path, key)), (*spot.path, key), message)


def _no_kind(value: dict[str, Any], key: str, names: list[str], spot: Spot, document: Document) -> Problem:
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
