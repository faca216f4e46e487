"""The base of all recipe sections: strict, closed and frozen, in several kinds where needed, with checks between keys."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a recipe to a value."""

Share = Annotated[float, Field(ge=0, lt=1)]
ShareOrSteps = Share | Annotated[int, Field(ge=0)]
"""A share of all steps, below 1, or a whole number of steps."""
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


@dataclass(frozen=True, slots=True)
class Hook:
    """The file of a function of the user, read once with the recipe: the code that is hashed, run and copied is the same.

    Two hooks are equal when their names, `module:function`, and bytes are, wherever the files are stored.
    """

    name: str
    code: bytes
    file: Path = field(compare=False)

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.name.partition(":")[2]


class Hooked(Section):
    """A section that can name a function of the user."""

    _hook: Hook | None = PrivateAttr(default=None)

    @property
    def hook(self) -> Hook | None:
        """The function with its file; only a recipe that was loaded from a file has one."""
        return self._hook

    def take(self, hook: Hook) -> None:
        """Set the file, once, when the recipe is loaded."""
        self._hook = hook


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


class CheckedSection(Section):
    """A section that is loaded as a whole. Its conflicts, and those of the sections in it, are one error with `depends_on` in its `ctx`.

    This check runs once, and not in a validator of each section, so that all conflicts are reported together.
    """

    # pydantic runs this only when every key is valid by itself.
    @model_validator(mode="after")
    def _check(self) -> Self:
        details = []
        for path, section in _sections((), self):
            for conflict in section.conflicts():
                context = {"message": conflict.message, "depends_on": (*path, *conflict.depends_on)}
                error = PydanticCustomError("conflict", "{message}", context)
                details.append(InitErrorDetails(type=error, loc=(*path, *conflict.key), input=None))
        if details:
            raise ValidationError.from_exception_data(type(self).__name__, details)
        return self


def _sections(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Section]]:
    if isinstance(value, Section):
        yield path, value
        # `vars`, since `getattr` would count as a read in the test that every key of the schema is read by a run.
        for name, inner in vars(value).items():
            yield from _sections((*path, name), inner)
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            yield from _sections((*path, number), inner)
