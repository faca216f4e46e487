"""Preferences as arrays: those with a winner, in order."""

from rmtrain.data.comparison import Preference
from rmtrain.evaluation.diagnosis import scored_edges
from rmtrain.evaluation.scores_file import ScoredComparison

TIE = Preference(0, 1, 0.0, 0.5, 1.0)


def test_only_edges_with_a_winner_count() -> None:
    rows = [
        ScoredComparison("a", "s", (1.0, 2.0), (3, 4), (TIE,)),
        ScoredComparison("b", "s", (1.0, 3.0, 1.0), (5, 6, 7), (Preference(2, 1), Preference(0, 2))),
    ]
    edges = scored_edges(rows)
    assert len(edges) == 2
    assert edges.comparison_E.tolist() == [1, 1]
    assert edges.margin_E.tolist() == [-2.0, 0.0]
    assert edges.credit_E.tolist() == [0.0, 0.5]
    assert edges.winner_length_E is not None
    assert edges.loser_length_E is not None
    assert (edges.winner_length_E - edges.loser_length_E).tolist() == [1, -2]


def test_lengths_are_there_for_all_or_for_none() -> None:
    rows = [
        ScoredComparison("a", "s", (1.0, 2.0), (3, 4), (Preference(0, 1),)),
        ScoredComparison("b", "s", (1.0, 2.0), (), (TIE,)),
    ]
    assert scored_edges(rows).winner_length_E is None
    assert len(scored_edges(rows[1:])) == 0
