"""What all sections of a recipe share: their strictness, and how values that do not go together are told."""

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a recipe to a value."""
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values keep their YAML type, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class CrossFieldError(NamedTuple):
    """A value that does not go with another: the key to change, what is wrong with it, and the key it depends on."""

    key: KeyPath
    message: str
    depends_on: KeyPath


def refuse(misfits: Iterable[CrossFieldError]) -> None:
    """Raise all misfits as one pydantic error, each at its own key, with `depends_on` in its `ctx`.

    Raises:
        ValidationError: there is a misfit.
    """
    details = [
        InitErrorDetails(
            type=PydanticCustomError("misfit", "{message}", {"message": misfit.message, "depends_on": misfit.depends_on}),
            loc=misfit.key,
            input=None,
        )
        for misfit in misfits
    ]
    if details:
        raise ValidationError.from_exception_data("Recipe", details)
