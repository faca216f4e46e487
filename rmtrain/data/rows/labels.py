"""The label of a row of two candidates: which of them is better, and by how much where it says so."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby, pairwise, product
from typing import Any, NamedTuple

from rmtrain.data.comparison import Preference
from rmtrain.data.rows.cells import find_cell, is_blank, to_number
from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.readers import Row
from rmtrain.recipe.preference_labels import (
    IndexLabel,
    Label,
    OneHotLabel,
    Outcome,
    ScoresLabel,
    SignLabel,
    ValueLabel,
    label_text,
)
from rmtrain.recipe.schema import RankedSource

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


Levels = list[list[int]]
"""Responses of equal scores together, the best first."""


def preferences(scores: Sequence[float], source: RankedSource, name: str) -> tuple[Preference, ...]:
    """The preferences that the source's policy makes of scores, those of the best responses first.

    Args:
        scores: of each response, finite.
        source: policy, smallest gap, most pairs, and whether margins are differences of scores.
        name: the row id, by which `max_pairs` draws.

    Raises:
        BadRow: `tie`: all scores are equal; `below_min_gap`: none differ enough; `bad_margin`: a difference is too large.
    """
    levels = _levels(scores, source.lower_is_better)
    if len(levels) == 1:
        raise BadRow("tie", f"all {len(scores)} responses have the score {scores[0]:g}")
    gaps = {pair: _gap(scores, *pair) for pair in _pairs(levels, source)}
    kept = [pair for pair, gap in gaps.items() if source.min_gap is None or gap >= source.min_gap]
    if not kept:
        raise BadRow(
            "below_min_gap", f"no difference of scores is at least {source.min_gap:g}, the largest is {max(gaps.values()):g}"
        )
    if source.margin_from_score and math.inf in gaps.values():
        raise BadRow("bad_margin", "the difference of two scores is too large")
    return tuple(
        Preference(winner, loser, gaps[winner, loser] if source.margin_from_score else 0.0)
        for winner, loser in _drawn(kept, source.max_pairs, name)
    )


def _levels(scores: Sequence[float], lower_is_better: bool) -> Levels:
    sign = 1.0 if lower_is_better else -1.0
    numbers = sorted(range(len(scores)), key=lambda number: sign * scores[number])
    return [list(level) for _, level in groupby(numbers, key=lambda number: scores[number])]


def _pairs(levels: Levels, source: RankedSource) -> Iterator[tuple[int, int]]:
    """Pairs of responses with different scores, the better one first; of the best, and of the worst, the one that is listed first."""
    if source.policy == "best_worst":
        yield levels[0][0], levels[-1][0]
    elif source.policy == "best_vs_rest":
        for level in levels[1:]:
            yield from product(levels[0][:1], level)
    elif source.policy == "adjacent":
        for better, worse in pairwise(levels):
            yield from product(better, worse)
    else:
        for place, better in enumerate(levels):
            for worse in levels[place + 1 :]:
                yield from product(better, worse)


def _gap(scores: Sequence[float], winner: int, loser: int) -> float:
    return round(abs(scores[winner] - scores[loser]), DIGITS)


def _drawn(pairs: list[tuple[int, int]], count: int | None, name: str) -> list[tuple[int, int]]:
    """At most `count` of the pairs, in their order: those whose hashes, with the name, are the smallest."""
    if count is None or len(pairs) <= count:
        return pairs
    hashes = {pair: blake2b(f"{name} {pair[0]} {pair[1]}".encode()).digest() for pair in pairs}
    drawn = set(sorted(pairs, key=hashes.__getitem__)[:count])
    return [pair for pair in pairs if pair in drawn]


def margin_of(row: Row, columns: Sequence[str], default: float | None) -> float:
    """The margin, finite and not negative; 0 where no column is named.

    Args:
        row: its columns.
        columns: none, that of the margin, or the scores of the better side and of the other.
        default: what it is where a cell is null or not there; None: that is an error.

    Raises:
        BadRow: `bad_margin`.
    """
    if not columns:
        return 0.0
    values = [value for value in (_margin_number(row, column) for column in columns) if value is not None]
    if len(values) < len(columns):
        if default is None:
            raise BadRow("bad_margin", f"no number in {' or '.join(columns)}; set margin_default, or remove the row")
        return default
    margin = values[0] if len(values) == 1 else values[0] - values[1]
    if not 0 <= margin < math.inf:
        raise BadRow("bad_margin", f"expected at least 0, got {margin:g}")
    return margin


def _margin_number(row: Row, column: str) -> float | None:
    cell = find_cell(row, column)
    if cell is None:
        return None
    number = None if isinstance(cell, str) else to_number(cell)
    if number is None:
        raise BadRow("bad_margin", f"{column}: expected a finite number, got {str(cell)[:40]!r}")
    return number
