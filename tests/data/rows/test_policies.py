from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.rows.labels import preferences
from rmtrain.data.rows.messages import BadRow
from rmtrain.recipe.schema import RankedSource

SCORES = [2.0, 5.0, 3.0, 3.0, 1.0]


def source(**keys: Any) -> RankedSource:
    return RankedSource(**{"path": "x", "format": "ranked", "responses": "r", "score": "s", **keys})


def pairs(scores: list[float], name: str = "x:0", **keys: Any) -> list[tuple[int, int]]:
    return [(edge.winner, edge.loser) for edge in preferences(scores, source(**keys), name)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("best_worst", [(1, 4)]),
        ("best_vs_rest", [(1, 2), (1, 3), (1, 0), (1, 4)]),
        ("adjacent", [(1, 2), (1, 3), (2, 0), (3, 0), (0, 4)]),
        ("all", [(1, 2), (1, 3), (1, 0), (1, 4), (2, 0), (3, 0), (2, 4), (3, 4), (0, 4)]),
    ],
)
def test_a_policy_says_which_pairs_are_preferences(policy: str, expected: list[tuple[int, int]]) -> None:
    assert pairs(SCORES, policy=policy) == expected
    ranks = [6 - score for score in SCORES]
    assert pairs(ranks, policy=policy, lower_is_better=True) == expected


def test_of_equal_bests_and_worsts_the_first_is_taken() -> None:
    assert pairs([1.0, 4.0, 4.0, 1.0], policy="best_worst") == [(1, 0)]
    assert pairs([1.0, 4.0, 4.0, 1.0], policy="best_vs_rest") == [(1, 0), (1, 3)]


def test_differences_that_are_too_small_make_no_preference() -> None:
    assert pairs([0.7, 0.4, 0.1], min_gap=0.3) == [(0, 1), (0, 2), (1, 2)], "0.7 - 0.4 is 0.3"
    assert pairs([0.7, 0.4, 0.1], min_gap=0.31) == [(0, 2)]
    with pytest.raises(BadRow, match=r"^below_min_gap: no difference of scores is at least 5, the largest is 4$"):
        pairs(SCORES, min_gap=5.0)
    with pytest.raises(BadRow, match=r"^tie: all 2 responses have the score 3$"):
        pairs([3.0, 3.0])


def test_margins_are_differences_where_the_recipe_says_so() -> None:
    edges = preferences([0.3, 0.1, 0.2], source(margin_from_score=True), "x:0")
    assert [(edge.winner, edge.loser, edge.margin) for edge in edges] == [(0, 2, 0.1), (0, 1, 0.2), (2, 1, 0.1)]
    assert {edge.margin for edge in preferences([0.3, 0.1, 0.2], source(), "x:0")} == {0.0}
    with pytest.raises(BadRow, match=r"^bad_margin: "):
        preferences([-1.7e308, 1.7e308], source(margin_from_score=True), "x:0")


def test_some_of_many_pairs_are_drawn_by_the_row_id_and_by_nothing_else() -> None:
    whole = pairs(SCORES)
    drawn = {name: pairs(SCORES, name=name, max_pairs=3) for name in (f"x:{number}" for number in range(200))}
    assert all(len(some) == 3 and [pair for pair in whole if pair in some] == some for some in drawn.values())
    assert drawn["x:7"] == pairs(SCORES, name="x:7", max_pairs=3)
    chosen = [pair for some in drawn.values() for pair in some]
    counts = {pair: chosen.count(pair) for pair in whole}
    assert min(counts.values()) > 30, "guard: every pair is drawn sometimes; 67 times in the mean"
    assert pairs(SCORES, max_pairs=9) == whole


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=2, max_size=7),
    policy=st.sampled_from(["all", "best_vs_rest", "best_worst", "adjacent"]),
    lower=st.booleans(),
)
def test_every_preference_has_the_better_score_first_and_none_is_there_twice(
    scores: list[float], policy: str, lower: bool
) -> None:
    if len(set(scores)) == 1:
        with pytest.raises(BadRow, match=r"^tie: "):
            pairs(scores, policy=policy, lower_is_better=lower)
        return
    found = pairs(scores, policy=policy, lower_is_better=lower)
    assert len(set(found)) == len(found) > 0
    assert all((scores[winner] < scores[loser]) is lower and scores[winner] != scores[loser] for winner, loser in found)
    if policy == "all":
        assert len(found) == sum(scores[one] != scores[other] for one, other in combinations(range(len(scores)), 2))
