"""Rows with two candidates and a label to comparisons; the better one is response 0."""

import math

from rmtrain.data.comparison import Preference
from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.assemble import Parts, assemble
from rmtrain.data.rows.conversation import opening, read_side
from rmtrain.data.rows.labels import judge
from rmtrain.data.rows.margins import margin_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import AbSource

TIE = "tie"


def ab(row: Row, source: AbSource) -> Parts:
    """The parts of a row's comparison. Of a tie, unless it is dropped, a is response 0.

    Raises:
        BadRow: why there are none; `tie` where the label says so and `source.tie` is not `half`.
    """
    outcome, strength = judge(row, source.label)
    if outcome == TIE and source.tie != "half":
        raise BadRow(TIE, "the label says that neither is better")
    sides = [read_side(row, column, source) for column in (source.a, source.b)]
    opened = opening(row, source)
    opened.refuse_repeated(sides)
    conversations = [opened.conversation(side) for side in (reversed(sides) if outcome == "b" else sides)]
    if outcome == TIE:
        return assemble(conversations, [Preference(0, 1, probability=0.5)], source)
    parts = assemble(conversations, [Preference(0, 1)], source)
    margin = strength if source.margin_from_label else _margin(row, source, outcome == "b")
    if margin == math.inf:
        raise BadRow("bad_margin", "the difference of the scores is too large")
    return parts._replace(preferences=(Preference(0, 1, margin),))


def _margin(row: Row, source: AbSource, b_is_better: bool) -> float:
    columns = source.number_columns
    return margin_of(row, columns[::-1] if b_is_better else columns, source.margin_default)
