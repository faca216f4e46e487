"""The base of all recipe sections: strict, closed and frozen, in several kinds where needed, with checks between keys."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a recipe to a value."""

Share = Annotated[float, Field(ge=0, lt=1)]
Column = Annotated[str, Field(min_length=1)]
"""Name of a column; dots reach into nested cells."""


class Conflict(NamedTuple):
    """A value that contradicts another one.

    Both paths start at the section that reports the conflict. Where the default of `key` conflicts, errors point to `depends_on`.
    """

    key: KeyPath
    message: str
    depends_on: KeyPath = ()


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values keep their YAML type, and nothing changes after loading."""

    # Strict, since YAML has types of its own: "1" is not 1. Frozen, since recipes are hashed and compared with those of older runs.
    # Tuples are `strict=False` in all sections, since YAML has lists only; their items stay strict.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the values of this section, or of the sections in it, that contradict each other."""
        return iter(())


def kind(name: str) -> Tag:
    """Name one kind of a section that has several.

    pydantic inserts the tag into the `loc` of errors; the brackets keep it apart from keys of the same name.
    """
    return Tag(f"<{name}>")


def kind_by(key: str, default: str | None = None) -> Discriminator:
    """Choose the kind of a section by the value of `key`, or `default` where the key is missing."""

    def tag(value: Any) -> str | None:
        name = value.get(key, default) if isinstance(value, dict) else getattr(value, key, None)
        return f"<{name}>" if isinstance(name, str) else None

    return Discriminator(
        tag, custom_error_type="kind", custom_error_message="unknown or missing kind", custom_error_context={"key": key}
    )


class Entry(NamedTuple):
    """A section at one of its places. 0 in `path` stands for any index; `kind` is its name if the place has several kinds."""

    path: KeyPath
    section: type[Section]
    kind: str | None


def sections_in(annotation: Any, path: KeyPath = ()) -> Iterator[Entry]:
    """Yield every section in a type at every place it has, parents first, in the order of the schema."""
    annotated = get_origin(annotation) is Annotated
    kinds = [item.tag.strip("<>") for item in get_args(annotation)[1:] if isinstance(item, Tag)] if annotated else []
    bare = get_args(annotation)[0] if annotated else annotation
    if isinstance(bare, type) and issubclass(bare, Section):
        yield Entry(path, bare, kinds[0] if kinds else None)
        for name, field in bare.model_fields.items():
            yield from sections_in(field.annotation, (*path, name))
    else:
        for inner in get_args(bare):
            yield from sections_in(inner, (*path, 0) if get_origin(bare) is tuple else path)


def raise_conflicts(section: Section) -> None:
    """Raise all conflicts of a section and of the sections in it as one pydantic error, with `depends_on` in its `ctx`.

    This runs once on the whole recipe, and not in a validator of each section, so that all conflicts are reported together.

    Raises:
        ValidationError: there is at least one conflict.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError(
                "conflict", "{message}", {"message": conflict.message, "depends_on": (*path, *conflict.depends_on)}
            ),
            loc=(*path, *conflict.key),
            input=None,
        )
        for path, inner in _values((), section)
        for conflict in inner.conflicts()
    ]
    if details:
        raise ValidationError.from_exception_data(type(section).__name__, details)


def _values(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Section]]:
    if isinstance(value, Section):
        yield path, value
        # `vars`, since `getattr` would count as a read in the test that every key of the schema is read by a run.
        for name, inner in vars(value).items():
            yield from _values((*path, name), inner)
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            yield from _values((*path, number), inner)
