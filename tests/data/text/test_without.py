from dataclasses import replace

import pytest

from rmtrain.data.comparison import BadRow, Preference, TokenizedComparison, common_prefix_length
from rmtrain.data.rows.conversation import merged
from rmtrain.data.text.encoder import without

A, B, C, D = [1, 2, 3, 9], [1, 2, 4, 9], [1, 5, 9], [1, 2, 3, 7, 9]
LONG = BadRow("too_long", "9 tokens, over max_length 8")


def row(*sequences: list[int], edges: tuple[Preference, ...]) -> TokenizedComparison:
    return TokenizedComparison("s:0", "s", sequences, common_prefix_length(sequences), 1, edges)


def edge(winner: int, loser: int, *rows: int, **keys: float) -> Preference:
    return Preference(winner, loser, rows=tuple(f"s:{number}" for number in rows), **keys)


GROUP = row(A, B, C, D, edges=(edge(0, 1, 0), edge(0, 2, 1, margin=0.5), edge(3, 1, 2)))


def test_comparison_without_faults_is_unchanged() -> None:
    checked = without(GROUP, {})
    assert checked.row is GROUP
    assert (list(checked.responses), checked.lost) == ([0, 1, 2, 3], ())


def test_faulty_response_takes_its_edges_along() -> None:
    """A faulty response is removed with its edges and with responses that have no edge left."""
    checked = without(GROUP, {1: LONG})
    assert checked.row is not None
    assert (checked.row.id, checked.row.sequences, list(checked.responses)) == ("s:1", (A, C), [0, 2])
    assert checked.row.preferences == (Preference(0, 1, margin=0.5),)
    assert checked.row.preferences[0].rows == ("s:1",)
    assert checked.row.prefix_length == common_prefix_length((A, C)) == 1
    assert [(lost.id, lost.reason, lost.detail) for lost in checked.lost] == [
        ("s:0", "too_long", "9 tokens, over max_length 8"), ("s:2", "too_long", "9 tokens, over max_length 8"),
    ]  # fmt: skip


def test_prefix_grows_with_fewer_responses() -> None:
    checked = without(GROUP, {2: LONG})
    assert checked.row is not None
    assert (checked.row.sequences, GROUP.prefix_length, checked.row.prefix_length) == ((A, B, D), 1, 2)
    assert checked.row.id == "s:0"
    assert [lost.id for lost in checked.lost] == ["s:1"]


def test_comparison_without_edges_is_lost() -> None:
    checked = without(GROUP, {0: LONG, 1: LONG})
    assert checked.row is None
    assert [lost.id for lost in checked.lost] == ["s:0", "s:1", "s:2"]
    pair = row(A, B, edges=(Preference(0, 1),))
    assert [(lost.id, lost.reason) for lost in without(pair, {1: LONG}).lost] == [("s:0", "too_long")]
    assert without(pair, {1: LONG}).row is None


def test_fault_of_longer_response_is_reported() -> None:
    pair = row(A, D, edges=(Preference(0, 1), Preference(1, 0)))
    faults = {0: BadRow("too_long", "short one"), 1: BadRow("too_long", "long one")}
    assert [lost.detail for lost in without(pair, faults).lost] == ["long one"]


def test_responses_with_same_tokens_are_merged() -> None:
    twice = row(A, B, list(A), C, edges=(edge(0, 1, 0), edge(2, 1, 1), edge(2, 3, 2), edge(0, 2, 3)))
    checked = without(twice, {})
    assert checked.row is not None
    assert (checked.row.sequences, list(checked.responses)) == ((A, B, C), [0, 1, 3])
    assert checked.row.preferences == (Preference(0, 1, weight=2.0), Preference(0, 2))
    assert checked.row.preferences[0].rows == ("s:0", "s:1")
    assert [(lost.id, lost.reason) for lost in checked.lost] == [("s:3", "identical")]


def test_row_is_lost_with_its_last_edge() -> None:
    """A row is lost only when all of its edges are; otherwise `left_out` counts the response."""
    ranked = TokenizedComparison("r:7", "r", (A, B, C), 1, 1, (Preference(0, 1), Preference(0, 2), Preference(1, 2)))
    checked = without(ranked, {2: LONG})
    assert checked.row == replace(ranked, sequences=(A, B), prefix_length=2, preferences=(Preference(0, 1),))
    assert checked.lost == ()
    assert checked.left_out == ("too_long",), "no row counts it"
    assert [lost.id for lost in without(ranked, {2: LONG, 1: LONG}).lost] == ["r:7"]


def test_equal_preferences_are_merged() -> None:
    edges = [edge(0, 1, 0), edge(1, 0, 1), edge(0, 1, 2, weight=0.5), edge(0, 1, 3, margin=1.0)]
    assert merged(edges) == (Preference(0, 1, weight=1.5), Preference(1, 0), Preference(0, 1, margin=1.0))
    assert merged(edges)[0].rows == ("s:0", "s:2")
    with pytest.raises(AttributeError):
        edges[0].weight = 2.0  # type: ignore[misc]
