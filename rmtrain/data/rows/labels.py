"""Labels of two candidates: which one is better, by how much, and with what probability."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rmtrain.data.comparison import BadRow
from rmtrain.data.rows.messages import find_cell, is_blank, to_number
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.preference_labels import (
    IndexLabel,
    Label,
    OneHotLabel,
    Outcome,
    ProbabilityLabel,
    ScoresLabel,
    SignLabel,
    ValueLabel,
    VotesLabel,
    label_text,
    with_booleans,
)

SHOWN_CHARACTERS = 40
DIGITS = 9
"""Decimals that differences of scores are rounded to, so that 0.3 - 0.1 is 0.2."""
TIE: Literal["tie"] = "tie"


class Verdict(NamedTuple):
    """The outcome of a label. `strength` is the size of a signed number or the difference of scores, 0 where the label has neither.

    `probability` is that of the outcome, if the label is soft: at least 0.5, and 0.5 for a tie.
    """

    outcome: Outcome
    strength: float = 0.0
    probability: float = 1.0


def judge(row: Row, label: Label) -> Verdict:
    """Read the label of a row; raises BadRow `no_label` (null or missing) or `unknown_label` (a value that the recipe does not name)."""
    gap: float
    positive: Outcome
    match label:
        case ValueLabel():
            votes = _votes(row, label.columns, label.outcomes, f"one of {', '.join(label.values)}, see label.values")
            return _by_share(votes) if label.soft else _by_majority(votes)
        case IndexLabel():
            names: dict[str, Outcome] = {str(label.first): "a", str(label.first + 1): "b"}
            return _by_majority(_votes(row, (label.column,), with_booleans(names), " or ".join(names)))
        case VotesLabel():
            votes = _counted(row, label)
            return _by_share(votes) if label.soft else _by_majority(votes)
        case ProbabilityLabel():
            probability = _number(row, label.column, to_number, "a probability from 0 to 1")
            if not 0 <= probability <= 1:
                raise BadRow("bad_probability", f"{label.column} is {probability:g}; expected a probability from 0 to 1")
            return _by_share({"a": probability, "b": 1 - probability})
        case OneHotLabel():
            return Verdict(_one_hot(row, label))
        case SignLabel():
            # true and false have no sign: 0 would be a tie
            gap, positive = _number(row, label.column, to_number, "a number; for true and false set by: value"), label.positive
        case ScoresLabel():
            gap = round(_number(row, label.a, to_score) - _number(row, label.b, to_score), DIGITS)
            positive = "b" if label.lower_is_better else "a"
    if gap == 0:
        return Verdict(TIE)
    negative: Outcome = "b" if positive == "a" else "a"
    return Verdict(positive if gap > 0 else negative, abs(gap))


def _votes(row: Row, columns: Sequence[str], outcomes: Mapping[str, Outcome], expected: str) -> Mapping[Outcome, float]:
    """Count the votes of annotators who gave one."""
    votes: Counter[Outcome] = Counter()
    for column in columns:
        cell = find_cell(row, column)
        if is_blank(cell):
            continue
        vote = outcomes.get(label_text(cell))
        if vote is None:
            raise _unknown(column, cell, expected)
        votes[vote] += 1
    if not votes:
        raise _no_label(*columns)
    return votes


def _counted(row: Row, label: VotesLabel) -> Mapping[Outcome, float]:
    """Read numbers of votes; a cell that is null has none."""
    votes: dict[Outcome, float] = {}
    columns: dict[Outcome, str | None] = {"a": label.a, "b": label.b, "tie": label.tie}
    for outcome, column in columns.items():
        cell = None if column is None else find_cell(row, column)
        if column is None or is_blank(cell):
            continue
        number = to_number(cell)
        if number is None or number < 0:
            raise _unknown(column, cell, "a number of votes, 0 or more")
        votes[outcome] = number
    if not any(votes.values()):
        raise BadRow("no_label", f"no vote in {', '.join(label.columns)}")
    return votes


def _by_majority(votes: Mapping[Outcome, float]) -> Verdict:
    """Return the outcome with more than half of the votes, or a tie: two of four votes decide nothing."""
    outcome = max(votes, key=votes.__getitem__)
    return Verdict(outcome if 2 * votes[outcome] > sum(votes.values()) else TIE)


def _by_share(votes: Mapping[Outcome, float]) -> Verdict:
    """Return the side with more votes and its share of them; votes for a tie count half for each side."""
    half = votes.get(TIE, 0.0) / 2
    a, b = votes.get("a", 0.0) + half, votes.get("b", 0.0) + half
    if a == b:
        return Verdict(TIE, probability=0.5)
    return Verdict("a" if a > b else "b", probability=max(a, b) / (a + b))


def _one_hot(row: Row, label: OneHotLabel) -> Outcome:
    columns: dict[Outcome, str | None] = {"a": label.a, "b": label.b, "tie": label.tie}
    outcomes: dict[Outcome, str] = {}
    for outcome, column in columns.items():
        cell = None if column is None else find_cell(row, column)
        if column is None or is_blank(cell):
            continue
        text = label_text(cell)
        if text not in ("0", "1", "false", "true"):
            raise _unknown(column, cell, "0, 1, true or false")
        if text in ("1", "true"):
            outcomes[outcome] = column
    if not outcomes:
        raise BadRow("no_label", f"none of {', '.join(label.columns)} is set")
    if len(outcomes) > 1:
        raise BadRow("unknown_label", f"{' and '.join(outcomes.values())} are set; expected one")
    return next(iter(outcomes))


def _number(row: Row, column: str, read: Callable[[Any], float | None], expected: str = "a finite number") -> float:
    cell = find_cell(row, column)
    number = read(cell)
    if number is None:
        raise _no_label(column) if is_blank(cell) else _unknown(column, cell, expected)
    return number


def to_score(cell: Any) -> float | None:
    """Return a cell as a finite number, with 1 for true and 0 for false, also where they are written as text; None for anything else."""
    text = label_text(cell) if isinstance(cell, bool | str) else ""
    return float(text == "true") if text in ("true", "false") else to_number(cell)


def _no_label(*columns: str) -> BadRow:
    return BadRow("no_label", f"{' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} null, empty or missing")


def _unknown(column: str, cell: Any, expected: str) -> BadRow:
    return BadRow("unknown_label", f"{column} is {str(cell)[:SHOWN_CHARACTERS]!r}; expected {expected}")
