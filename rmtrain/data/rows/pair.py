"""Rows with a chosen and a rejected side, or with several responses on a side, to comparisons."""

from itertools import product

from rmtrain.data.comparison import Preference
from rmtrain.data.raw.json_reader import Row
from rmtrain.data.rows.assemble import Parts, assemble
from rmtrain.data.rows.conversation import Side, opening, read_side
from rmtrain.data.rows.margins import margin_of
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import PairSource


def pair(row: Row, source: PairSource) -> Parts:
    """The parts of a row's comparison, chosen responses first.

    Raises:
        BadRow: why there are none.
    """
    chosen, rejected = (_sides(row, column, source) for column in (source.chosen, source.rejected))
    opened, sides = opening(row, source), [*chosen, *rejected]
    opened.refuse_repeated(sides)
    conversations = [opened.conversation(side) for side in sides]
    edges = product(range(len(chosen)), range(len(chosen), len(sides)))
    parts = assemble(conversations, [Preference(winner, loser) for winner, loser in edges], source)
    margin = margin_of(row, source.number_columns, source.margin_default)
    if not margin:
        return parts
    return parts._replace(preferences=tuple(_with_margin(edge, margin) for edge in parts.preferences))


def _with_margin(edge: Preference, margin: float) -> Preference:
    return Preference(edge.winner, edge.loser, margin, weight=edge.weight)


def _sides(row: Row, column: str, source: PairSource) -> list[Side]:
    side = read_side(row, column, source)
    if not source.lists or not isinstance(side.cell, list):
        return [side]
    if not side.cell:
        raise BadRow("empty_cell", f"{column} is an empty list")
    return [Side(f"{column}.{number}", item) for number, item in enumerate(side.cell)]
