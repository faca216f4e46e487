"""The label of a source with two candidates: five ways in which datasets write down which one is better."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rmtrain.recipe.section import Column, Conflict, Section, kind, kind_by

Outcome = Literal["a", "b", "tie"]
WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def label_text(value: Any) -> str:
    """Return a label as text, whatever its type: `1`, `1.0` and `"1"` are equal, and so are `true` and `"True"`."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if WHOLE.fullmatch(text):
        return str(int(text))
    if NUMBER.fullmatch(text):
        number = float(text)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return text.lower() if text.lower() in ("true", "false") else text


def _with_text_keys(values: Any) -> Any:
    # Keys from YAML are text already; from Python they may be numbers.
    if not isinstance(values, dict):
        return values
    return {label_text(key) if isinstance(key, bool | int | float) else key: value for key, value in values.items()}


class ValueLabel(Section):
    """A label with a word or number for each outcome; most datasets have this kind."""

    by: Literal["value"]
    """How the label is read."""
    column: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column
    """Column of the label, or a list of columns, one for each annotator: the majority decides, and without a majority it is a tie."""
    values: Annotated[dict[str, Outcome], BeforeValidator(_with_text_keys)]
    """Outcome of each value, such as `{1: a, 0: b}` or `{model_a: a, model_b: b, both: tie}`. Numbers, true and false may be text in the
    data. A row with any other value is dropped."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        return (self.column,) if isinstance(self.column, str) else self.column

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """`values` by their `label_text`."""
        return {label_text(value): outcome for value, outcome in self.values.items()}

    def conflicts(self) -> Iterator[Conflict]:
        """Both sides must be able to win, each value has one outcome, and each annotator one vote."""
        absent = [outcome for outcome in ("a", "b") if outcome not in self.values.values()]
        if absent:
            yield Conflict(("values",), f"no value means {' or '.join(absent)}; add one")
        first: dict[str, str] = {}
        for value in self.values:
            owner = first.setdefault(label_text(value), value)
            if owner != value:
                yield Conflict(("values", value), f'same value as "{owner}"; keep one of them')
        if len(set(self.columns)) < len(self.columns):
            yield Conflict(("column",), "the same column is listed twice; each column has one vote")


class IndexLabel(Section):
    """A label that is the index of the better candidate."""

    by: Literal["index"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    first: Annotated[int, Field(ge=0, le=1)] = 0
    """Number that means a; the next number means b."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        return (self.column,)


class OneHotLabel(Section):
    """One column for each outcome; one of them is 1 or true, the others are 0, false or empty."""

    by: Literal["one_hot"]
    """How the label is read."""
    a: Column
    """Column that is 1 where a is better."""
    b: Column
    """Column that is 1 where b is better."""
    tie: Column | None = None
    """Column that is 1 where neither is better."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        return (self.a, self.b) if self.tie is None else (self.a, self.b, self.tie)

    def conflicts(self) -> Iterator[Conflict]:
        """Each outcome has its own column."""
        if len(set(self.columns)) < len(self.columns):
            yield Conflict(("b",), f"expected a different column for each outcome, got {', '.join(self.columns)}")


class SignLabel(Section):
    """A number whose sign is the preference and whose size is its strength; 0 is a tie."""

    by: Literal["sign"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    positive: Literal["a", "b"]
    """Better candidate where the number is above 0. There is no default, since the wrong one inverts the data."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        return (self.column,)


class ScoresLabel(Section):
    """One score for each candidate; the higher one is better, and equal scores are a tie."""

    by: Literal["scores"]
    """How the label is read."""
    a: Column
    """Column of the score of a."""
    b: Column
    """Column of the score of b."""
    lower_is_better: bool = False
    """The lower score is better, as with ranks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        return (self.a, self.b)

    def conflicts(self) -> Iterator[Conflict]:
        """Each candidate has its own score."""
        if self.a == self.b:
            yield Conflict(("b",), f"expected a different column for each score, got {self.a} twice")


Label = Annotated[
    Annotated[ValueLabel, kind("value")]
    | Annotated[IndexLabel, kind("index")]
    | Annotated[OneHotLabel, kind("one_hot")]
    | Annotated[SignLabel, kind("sign")]
    | Annotated[ScoresLabel, kind("scores")],
    kind_by("by"),
]
