"""The label of a row of two candidates: which of them is better, and by how much where it says so."""

from collections import Counter
from typing import Any, NamedTuple

from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.lookup import find_cell, is_blank, to_number
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.labels import IndexLabel, Label, OneHotLabel, Outcome, ScoresLabel, SignLabel, ValueLabel, label_text

SHOWN_CHARACTERS = 40
DIGITS = 9
"""Decimals of a difference of scores, so that 0.3 - 0.1 is 0.2."""


class Verdict(NamedTuple):
    """What a label says. `strength` is the size of a signed number or the difference of scores, and 0 where there is none."""

    outcome: Outcome
    strength: float = 0.0


def judge(row: Row, label: Label) -> Verdict:
    """What the label of a row says.

    Raises:
        BadRow: `no_label`: its cells are null or not there; `unknown_label`: they hold something else than the recipe says.
    """
    match label:
        case ValueLabel():
            return Verdict(_by_vote(row, label))
        case IndexLabel():
            return Verdict(_by_index(row, label))
        case OneHotLabel():
            return Verdict(_by_column(row, label))
        case SignLabel():
            return _by_sign(_number(row, label.column), label)
        case ScoresLabel():
            return _by_scores(_number(row, label.a), _number(row, label.b), label)


def _by_vote(row: Row, label: ValueLabel) -> Outcome:
    votes: Counter[Outcome] = Counter()
    for column in label.columns:
        cell = find_cell(row, column)
        if is_blank(cell):
            continue
        outcome = label.outcomes.get(label_text(cell))
        if outcome is None:
            raise _unknown(column, cell, f"one of {', '.join(label.values)}, as label.values has it")
        votes[outcome] += 1
    if not votes:
        raise _absent(*label.columns)
    outcome, count = votes.most_common(1)[0]
    return outcome if 2 * count > votes.total() else "tie"


def _by_index(row: Row, label: IndexLabel) -> Outcome:
    cell = find_cell(row, label.column)
    if is_blank(cell):
        raise _absent(label.column)
    names: dict[str, Outcome] = {str(label.first): "a", str(label.first + 1): "b"}
    outcome = names.get(label_text(cell))
    if outcome is None:
        raise _unknown(label.column, cell, " or ".join(names))
    return outcome


def _by_column(row: Row, label: OneHotLabel) -> Outcome:
    columns: dict[Outcome, str | None] = {"a": label.a, "b": label.b, "tie": label.tie}
    outcomes = [outcome for outcome, column in columns.items() if column is not None and _is_set(row, column)]
    if not outcomes:
        raise BadRow("no_label", f"none of {', '.join(label.columns)} is set")
    if len(outcomes) > 1:
        raise BadRow("unknown_label", f"{' and '.join(str(columns[outcome]) for outcome in outcomes)} are set; expected one")
    return outcomes[0]


def _is_set(row: Row, column: str) -> bool:
    cell = find_cell(row, column)
    if is_blank(cell):
        return False
    text = label_text(cell)
    if text not in ("0", "1", "false", "true"):
        raise _unknown(column, cell, "0, 1, true or false")
    return text in ("1", "true")


def _by_sign(number: float, label: SignLabel) -> Verdict:
    if number == 0:
        return Verdict("tie")
    other: Outcome = "b" if label.positive == "a" else "a"
    return Verdict(label.positive if number > 0 else other, abs(number))


def _by_scores(a: float, b: float, label: ScoresLabel) -> Verdict:
    gap = round(b - a if label.lower_is_better else a - b, DIGITS)
    if gap == 0:
        return Verdict("tie")
    return Verdict("a" if gap > 0 else "b", abs(gap))


def _number(row: Row, column: str) -> float:
    cell = find_cell(row, column)
    if is_blank(cell):
        raise _absent(column)
    number = to_number(cell)
    if number is None:
        raise _unknown(column, cell, "a finite number")
    return number


def _absent(*columns: str) -> BadRow:
    return BadRow("no_label", f"{' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} null, empty or not there")


def _unknown(column: str, cell: Any, expected: str) -> BadRow:
    return BadRow("unknown_label", f"{column} is {str(cell)[:SHOWN_CHARACTERS]!r}; expected {expected}")
