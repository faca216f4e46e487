"""How a dataset writes down which of two candidates is better, and with what probability: the kinds of `label`."""

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


def with_booleans(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Return outcomes of 0 and 1 also for false and true, and the reverse: a column of booleans is often stored as numbers."""
    for here, there in ((("0", "1"), ("false", "true")), (("false", "true"), ("0", "1"))):
        if all(value in outcomes for value in here):
            outcomes = dict(zip(there, (outcomes[value] for value in here), strict=True)) | outcomes
    return outcomes


def with_text_keys(values: Any) -> Any:
    """Return a mapping with its keys as `label_text`."""
    # Keys from YAML are text already; from Python they may be numbers.
    if not isinstance(values, dict):
        return values
    return {label_text(key) if isinstance(key, bool | int | float) else key: value for key, value in values.items()}


class LabelBase(Section):
    """How a dataset writes down which of two candidates is better. The keys `column`, `a`, `b` and `tie` name the columns of a label."""

    @property
    def is_soft(self) -> bool:
        """Whether the label is a probability, of which 0.5 is a value as any other and no tie."""
        return bool(getattr(self, "soft", False))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the label reads."""
        columns: list[str] = []
        for key in ("column", "a", "b", "tie"):
            value = getattr(self, key, None)
            columns += value if isinstance(value, tuple) else () if value is None else (value,)
        return tuple(columns)

    def conflicts(self) -> Iterator[Conflict]:
        """Each outcome, score and vote has its own column."""
        if len(set(self.columns)) < len(self.columns):
            key = "column" if hasattr(self, "column") else "b"
            yield Conflict((key,), f"expected different columns, got {', '.join(self.columns)}")


class ValueLabel(LabelBase):
    """A label with a word or number for each outcome; most datasets have this kind."""

    by: Literal["value"]
    """How the label is read."""
    column: Annotated[tuple[Column, ...], Field(strict=False, min_length=1)] | Column
    """Column of the label, or a list of columns, one for each annotator: the majority decides, and without a majority it is a tie."""
    values: Annotated[dict[str, Outcome], BeforeValidator(with_text_keys)]
    """Outcome of each value, such as `{1: a, 0: b}` or `{model_a: a, model_b: b, both: tie}`. Numbers, true and false may be text in the
    data, and true is 1. The values of a ClassLabel are its names or its numbers. A row with any other value is dropped."""
    soft: bool = False
    """The target probability of a preference is the share of annotators who agree; a tie is half a vote for each side."""

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """`values` by their `label_text`, see `with_booleans`."""
        return with_booleans({label_text(value): outcome for value, outcome in self.values.items()})

    def conflicts(self) -> Iterator[Conflict]:
        """Both sides must be able to win, and each value has one outcome."""
        yield from super().conflicts()
        absent = [outcome for outcome in ("a", "b") if outcome not in self.values.values()]
        if absent:
            yield Conflict(("values",), f"no value means {' or '.join(absent)}; add one")
        if self.soft and len(self.columns) == 1:
            yield Conflict(("soft",), "one annotator has no share of votes; list the columns of all, or remove it")
        first: dict[str, str] = {}
        for value in self.values:
            owner = first.setdefault(label_text(value), value)
            if owner != value:
                yield Conflict(("values", value), f'same value as "{owner}"; keep one of them')


class IndexLabel(LabelBase):
    """A label that is the index of the better candidate."""

    by: Literal["index"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    first: Annotated[int, Field(ge=0, le=1)] = 0
    """Number that means a; the next number means b. False is 0, and true is 1."""


class OneHotLabel(LabelBase):
    """One column for each outcome; one of them is 1 or true, the others are 0, false or empty."""

    by: Literal["one_hot"]
    """How the label is read."""
    a: Column
    """Column that is 1 where a is better."""
    b: Column
    """Column that is 1 where b is better."""
    tie: Column | None = None
    """Column that is 1 where neither is better."""


class SignLabel(LabelBase):
    """A number whose sign is the preference and whose size is its strength; 0 is a tie."""

    by: Literal["sign"]
    """How the label is read."""
    column: Column
    """Column of the number."""
    positive: Literal["a", "b"]
    """Better candidate where the number is above 0. There is no default, since the wrong one inverts the data."""


class ScoresLabel(LabelBase):
    """One score for each candidate; the higher one is better, and equal scores are a tie."""

    by: Literal["scores"]
    """How the label is read."""
    a: Column
    """Column of the score of a."""
    b: Column
    """Column of the score of b."""
    lower_is_better: bool = False
    """The lower score is better, as with ranks."""


class VotesLabel(LabelBase):
    """A number of votes for each candidate; the one with more than half of them is better, otherwise it is a tie."""

    by: Literal["votes"]
    """How the label is read."""
    a: Column
    """Column of the number of votes for a."""
    b: Column
    """Column of the number of votes for b."""
    tie: Column | None = None
    """Column of the number of votes for a tie."""
    soft: bool = False
    """The target probability of a preference is the share of its votes; a vote for a tie is half a vote for each side."""


class ProbabilityLabel(LabelBase):
    """The probability that a is better, such as the confidence of a judge: the target of the preference."""

    by: Literal["probability"]
    """How the label is read."""
    column: Column
    """Column of the probability, from 0 to 1."""

    @property
    def is_soft(self) -> bool:
        """It is a probability."""
        return True


Label = Annotated[
    Annotated[ValueLabel, kind("value")]
    | Annotated[IndexLabel, kind("index")]
    | Annotated[OneHotLabel, kind("one_hot")]
    | Annotated[SignLabel, kind("sign")]
    | Annotated[ScoresLabel, kind("scores")]
    | Annotated[VotesLabel, kind("votes")]
    | Annotated[ProbabilityLabel, kind("probability")],
    kind_by("by"),
]
