"""How a row of two candidates says which of them is better: the kinds of `label` of `format: ab`."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from rmtrain.recipe.section import KeyPath, Misfit, Section

Outcome = Literal["a", "b", "tie"]
Column = Annotated[str, Field(min_length=1)]
WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def label_text(value: Any) -> str:
    """What a label says, whatever its type: `1`, `1.0` and `"1"` are the same, and so are `true` and `"True"`."""
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
    """Keys that are no text, as Python may have them; YAML's are text already."""
    if not isinstance(values, dict):
        return values
    return {label_text(key) if isinstance(key, bool | int | float) else key: value for key, value in values.items()}


class ValueLabel(Section):
    """A label with a word or number for each outcome, as most datasets have it."""

    by: Literal["value"]
    """How the label is read."""
    column: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column
    """Column of the label; of several, one for each annotator, the majority counts, and where there is none it is a tie."""
    values: Annotated[dict[str, Outcome], BeforeValidator(_with_text_keys)]
    """What each value says, such as `{1: a, 0: b}` or `{model_a: a, model_b: b, both: tie}`. Numbers, true and false may be text in the
    data. A row with any other value is dropped."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,) if isinstance(self.column, str) else self.column

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """`values` by their `label_text`."""
        return {label_text(value): outcome for value, outcome in self.values.items()}


class IndexLabel(Section):
    """A label that counts: one number means a, the next one b."""

    by: Literal["index"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    first: Annotated[int, Field(ge=0, le=1)] = 0
    """The number that means a; the next one means b."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class OneHotLabel(Section):
    """A column for each outcome, of which one is 1 or true and the others are 0, false or empty."""

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
        """The columns it reads."""
        return (self.a, self.b) if self.tie is None else (self.a, self.b, self.tie)


class SignLabel(Section):
    """A number whose sign says who is better and whose size says by how much; 0 is a tie."""

    by: Literal["sign"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    positive: Literal["a", "b"]
    """Which one is better where the number is above 0. There is no default: a wrong one inverts the data."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)


class ScoresLabel(Section):
    """A score for each of the two; the higher one is better, equal ones are a tie."""

    by: Literal["scores"]
    """How the label is read."""
    a: Column
    """Column of the score of a."""
    b: Column
    """Column of the score of b."""
    lower_is_better: bool = False
    """The lower one is better, as of ranks."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.a, self.b)


def _kind(value: Any) -> str | None:
    kind = value.get("by") if isinstance(value, dict) else getattr(value, "by", None)
    return kind if isinstance(kind, str) else None


Label = Annotated[
    Annotated[ValueLabel, Tag("value")]
    | Annotated[IndexLabel, Tag("index")]
    | Annotated[OneHotLabel, Tag("one_hot")]
    | Annotated[SignLabel, Tag("sign")]
    | Annotated[ScoresLabel, Tag("scores")],
    Discriminator(_kind),
]


def label_misfits(label: Label, at: KeyPath) -> Iterator[Misfit]:
    """What is wrong with a label that is at `at` in the recipe."""
    if isinstance(label, ValueLabel):
        yield from _value_misfits(label, (*at, "values"))
    elif len(set(label.columns)) < len(label.columns):
        yield Misfit((*at, "b"), f'expected a column for each, got "{label.columns[0]}" twice', at)


def _value_misfits(label: ValueLabel, at: KeyPath) -> Iterator[Misfit]:
    absent = [outcome for outcome in ("a", "b") if outcome not in label.values.values()]
    if absent:
        yield Misfit(at, f"no value means {' or '.join(absent)}; expected one at least for each of a and b", at[:-1])
    first: dict[str, str] = {}
    for value in label.values:
        owner = first.setdefault(label_text(value), value)
        if owner != value:
            yield Misfit((*at, value), f'the same value as "{owner}"; keep one', at)
    columns = label.columns
    if len(set(columns)) < len(columns):
        yield Misfit((*at[:-1], "column"), "a column is there twice; each votes once", at[:-1])
