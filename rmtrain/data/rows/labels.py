"""Labels, scores and margins: the better of two candidates, the preferences among scored responses, and by how much."""

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations, groupby, pairwise, product
from typing import Any, NamedTuple

from rmtrain.data.comparison import BadRow, Preference
from rmtrain.data.rows.cells import find_cell, is_blank, to_number
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.schema import RankedSource
from rmtrain.recipe.sources import (
    IndexLabel,
    Label,
    OneHotLabel,
    Outcome,
    ScoresLabel,
    SignLabel,
    ValueLabel,
    label_text,
)

SHOWN_CHARACTERS = 40
DIGITS = 9
"""Decimals that differences of scores are rounded to, so that 0.3 - 0.1 is 0.2."""


class Verdict(NamedTuple):
    """The outcome of a label. `strength` is the size of a signed number or the difference of scores, 0 where the label has neither."""

    outcome: Outcome
    strength: float = 0.0


def judge(row: Row, label: Label) -> Verdict:
    """Read the label of a row.

    Raises:
        BadRow: `no_label`: its cells are null or missing; `unknown_label`: their values are not those that the recipe names.
    """
    match label:
        case ValueLabel():
            return Verdict(_majority(row, label))
        case IndexLabel():
            names: dict[str, Outcome] = {str(label.first): "a", str(label.first + 1): "b"}
            cell = _label_cell(row, label.column)
            outcome = names.get(label_text(cell))
            if outcome is None:
                raise _unknown(label.column, cell, " or ".join(names))
            return Verdict(outcome)
        case OneHotLabel():
            return Verdict(_one_hot(row, label))
        case SignLabel():
            number = _label_number(row, label.column)
            negative: Outcome = "b" if label.positive == "a" else "a"
            return Verdict("tie") if number == 0 else Verdict(label.positive if number > 0 else negative, abs(number))
        case ScoresLabel():
            a, b = _label_number(row, label.a), _label_number(row, label.b)
            gap = round(b - a if label.lower_is_better else a - b, DIGITS)
            return Verdict("tie") if gap == 0 else Verdict("a" if gap > 0 else "b", abs(gap))


def _majority(row: Row, label: ValueLabel) -> Outcome:
    """Return the outcome with more than half of the votes that were given, or a tie."""
    votes: Counter[Outcome] = Counter()
    for column in label.columns:
        cell = find_cell(row, column)
        if is_blank(cell):
            continue
        vote = label.outcomes.get(label_text(cell))
        if vote is None:
            raise _unknown(column, cell, f"one of {', '.join(label.values)}, see label.values")
        votes[vote] += 1
    if not votes:
        raise _no_label(*label.columns)
    outcome, count = votes.most_common(1)[0]
    return outcome if 2 * count > votes.total() else "tie"  # two of four votes decide nothing


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


def _label_cell(row: Row, column: str) -> Any:
    cell = find_cell(row, column)
    if is_blank(cell):
        raise _no_label(column)
    return cell


def _label_number(row: Row, column: str) -> float:
    cell = _label_cell(row, column)
    number = to_number(cell)
    if number is None:
        raise _unknown(column, cell, "a finite number")
    return number


def _no_label(*columns: str) -> BadRow:
    return BadRow("no_label", f"{' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} null, empty or missing")


def _unknown(column: str, cell: Any, expected: str) -> BadRow:
    return BadRow("unknown_label", f"{column} is {str(cell)[:SHOWN_CHARACTERS]!r}; expected {expected}")


def preferences(scores: Sequence[float], source: RankedSource, name: str) -> tuple[Preference, ...]:
    """Return the preferences that the source's policy makes of scores, those of the best responses first.

    Args:
        scores: the score of each response, finite.
        source: its policy, smallest gap, largest number of pairs, and whether margins are differences of scores.
        name: the row id, by which `max_pairs` draws.

    Raises:
        BadRow: `tie`: all scores are equal; `below_min_gap`: none differ enough; `bad_margin`: a difference is infinite.
    """
    pairs = _pairs(scores, source)
    if not pairs:
        raise BadRow("tie", f"all {len(scores)} responses have the score {scores[0]:g}")
    gaps = {(winner, loser): round(abs(scores[winner] - scores[loser]), DIGITS) for winner, loser in pairs}
    if source.min_gap is not None:
        pairs = [pair for pair in pairs if gaps[pair] >= source.min_gap]
        if not pairs:
            largest = max(gaps.values())
            raise BadRow("below_min_gap", f"the largest difference of scores is {largest:g}, less than {source.min_gap:g}")
    if source.margin_from_score and math.inf in gaps.values():
        raise BadRow("bad_margin", "the difference of two scores is infinite")
    if source.max_pairs is not None and len(pairs) > source.max_pairs:
        # drawn by hash, so that a row keeps its pairs wherever it is read
        hashes = {pair: blake2b(f"{name} {pair[0]} {pair[1]}".encode()).digest() for pair in pairs}
        drawn = set(sorted(pairs, key=hashes.__getitem__)[: source.max_pairs])
        pairs = [pair for pair in pairs if pair in drawn]
    return tuple(Preference(*pair, gaps[pair] if source.margin_from_score else 0.0) for pair in pairs)


def _pairs(scores: Sequence[float], source: RankedSource) -> list[tuple[int, int]]:
    """Return pairs of responses with different scores, the better one first; among equal bests or worsts, the first one listed."""
    numbers = sorted(range(len(scores)), key=lambda number: scores[number], reverse=not source.lower_is_better)
    levels = [list(level) for _, level in groupby(numbers, key=lambda number: scores[number])]
    if len(levels) == 1:
        return []
    match source.policy:
        case "best_worst":
            return [(levels[0][0], levels[-1][0])]
        case "best_vs_rest":
            return [(levels[0][0], worse) for level in levels[1:] for worse in level]
        case "adjacent":
            return [pair for better, worse in pairwise(levels) for pair in product(better, worse)]
        case "all":
            return [pair for better, worse in combinations(levels, 2) for pair in product(better, worse)]


def margin_of(row: Row, columns: Sequence[str], default: float | None) -> float:
    """Return the margin of a row, finite and not negative; 0 where no column is named.

    Args:
        row: the row.
        columns: none; the column of the margin; or the score columns of the better response and of the other.
        default: the margin where a cell is null or missing; None: that is an error.

    Raises:
        BadRow: `bad_margin`.
    """
    if not columns:
        return 0.0
    values: list[float] = []
    for column in columns:
        cell = find_cell(row, column)
        if cell is None:
            continue
        number = None if isinstance(cell, str) else to_number(cell)
        if number is None:
            raise BadRow("bad_margin", f"{column}: expected a finite number, got {str(cell)[:SHOWN_CHARACTERS]!r}")
        values.append(number)
    if len(values) < len(columns):
        if default is None:
            raise BadRow("bad_margin", f"no number in {' or '.join(columns)}; set margin_default, or remove the row")
        return default
    margin = values[0] if len(values) == 1 else values[0] - values[1]
    if not 0 <= margin < math.inf:
        raise BadRow("bad_margin", f"expected at least 0, got {margin:g}")
    return margin
