from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rmtrain.data.comparison import BadRow
from rmtrain.data.rows.formats import preferences
from rmtrain.data.rows.labels import judge
from rmtrain.recipe.schema import RankedSource
from rmtrain.recipe.sources import Label

LABELS: TypeAdapter[Any] = TypeAdapter(Label)
SHP = {"by": "value", "column": "labels", "values": {1: "a", 0: "b"}}
ARENA = {"by": "value", "column": "winner", "values": {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "tie"}}
PANDALM = {"by": "value", "column": ["annotator1", "annotator2", "annotator3"], "values": {0: "tie", 1: "a", 2: "b"}}
TRUTH = {"by": "value", "column": "a_wins", "values": {"true": "a", "false": "b"}}
INDEX = {"by": "index", "column": "choice"}
ONE_HOT = {"by": "one_hot", "a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
SIGN = {"by": "sign", "column": "overall_preference", "positive": "b"}
SCORES = {"by": "scores", "a": "score_0", "b": "score_1"}


def hot(a: Any, b: Any, tie: Any) -> dict[str, Any]:
    return {"winner_model_a": a, "winner_model_b": b, "winner_tie": tie}


def votes(*values: Any) -> dict[str, Any]:
    return {f"annotator{number + 1}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("label", "row", "outcome"),
    [
        (SHP, {"labels": 1}, "a"),
        (SHP, {"labels": 0}, "b"),
        (SHP, {"labels": "1"}, "a"),
        (SHP, {"labels": " 0 "}, "b"),
        (SHP, {"labels": 1.0}, "a"),
        (SHP, {"labels": "0.0"}, "b"),
        (ARENA, {"winner": "model_b"}, "b"),
        (ARENA, {"winner": "tie (bothbad)"}, "tie"),
        (TRUTH, {"a_wins": True}, "a"),
        (TRUTH, {"a_wins": "True"}, "a"),
        (TRUTH, {"a_wins": "FALSE"}, "b"),
        (PANDALM, votes(1, 1, 2), "a"),
        (PANDALM, votes(2, 0, 2), "b"),
        (PANDALM, votes(1, 2, 0), "tie"),
        (PANDALM, votes(0, 0, 1), "tie"),
        (PANDALM, votes(1, 2, None), "tie"),
        (PANDALM, votes(1, None, None), "a"),
        (PANDALM, votes("2", "2", "1"), "b"),
        (INDEX, {"choice": 0}, "a"),
        (INDEX, {"choice": "1"}, "b"),
        (INDEX | {"first": 1}, {"choice": 1}, "a"),
        (INDEX | {"first": 1}, {"choice": 2.0}, "b"),
        (SHP, {"labels": True}, "a"),
        (SHP, {"labels": "False"}, "b"),
        (TRUTH, {"a_wins": 1}, "a"),
        (TRUTH, {"a_wins": "0"}, "b"),
        (INDEX, {"choice": False}, "a"),
        (INDEX, {"choice": "True"}, "b"),
        (SCORES, {"score_0": True, "score_1": False}, "a"),
        (SCORES, {"score_0": "false", "score_1": "TRUE"}, "b"),
        (SCORES, {"score_0": True, "score_1": 1}, "tie"),
        (ONE_HOT, hot(1, 0, 0), "a"),
        (ONE_HOT, hot("0", "1", "0"), "b"),
        (ONE_HOT, hot(False, False, True), "tie"),
        (ONE_HOT, hot(None, "true", ""), "b"),
        (SIGN, {"overall_preference": -3}, "a"),
        (SIGN, {"overall_preference": "2"}, "b"),
        (SIGN, {"overall_preference": 0}, "tie"),
        (SIGN | {"positive": "a"}, {"overall_preference": 1.5}, "a"),
        (SIGN | {"positive": "a"}, {"overall_preference": -1}, "b"),
        (SCORES, {"score_0": 0.5, "score_1": -0.5}, "a"),
        (SCORES, {"score_0": "1", "score_1": 2}, "b"),
        (SCORES, {"score_0": 0.0, "score_1": "0"}, "tie"),
        (SCORES | {"lower_is_better": True}, {"score_0": 1, "score_1": 4}, "a"),
    ],
)
def test_each_label_kind_names_the_better(label: dict[str, Any], row: dict[str, Any], outcome: str) -> None:
    assert judge(row, LABELS.validate_python(label)).outcome == outcome


def test_sign_and_scores_have_strength() -> None:
    strengths = [
        judge(row, LABELS.validate_python(SIGN)).strength for row in ({"overall_preference": -3}, {"overall_preference": 0})
    ]
    assert strengths == [3.0, 0.0]
    assert judge({"score_0": 0.3, "score_1": 0.1}, LABELS.validate_python(SCORES)).strength == 0.2
    assert judge({"labels": 1}, LABELS.validate_python(SHP)).strength == 0.0


@pytest.mark.parametrize(
    ("label", "row", "reason", "parts"),
    [
        (SHP, {}, "no_label", ["labels"]),
        (SHP, {"labels": None}, "no_label", ["labels"]),
        (SHP, {"labels": ""}, "no_label", ["labels"]),
        (SHP, {"labels": float("nan")}, "no_label", ["labels"]),
        (SHP, {"labels": 2}, "unknown_label", ["labels", "'2'", "1, 0", "label.values"]),
        (SHP | {"values": {1: "a", 2: "b"}}, {"labels": True}, "unknown_label", ["labels", "'True'", "1, 2"]),
        (SHP, {"labels": ["x" * 99]}, "unknown_label", ["labels", "1, 0"]),
        (PANDALM, votes(None, None, None), "no_label", ["annotator1", "annotator2", "annotator3"]),
        (PANDALM, votes(1, 1, 7), "unknown_label", ["annotator3", "'7'"]),
        (INDEX, {"choice": 2}, "unknown_label", ["choice", "'2'", "0 or 1"]),
        (INDEX, {"choice": None}, "no_label", ["choice"]),
        (INDEX | {"first": 1}, {"choice": True}, "unknown_label", ["choice", "'True'", "1 or 2"]),
        (ONE_HOT, hot(0, 0, 0), "no_label", ["winner_model_a", "winner_model_b", "winner_tie"]),
        (ONE_HOT, {}, "no_label", ["winner_model_a"]),
        (ONE_HOT, hot(1, 1, 0), "unknown_label", ["winner_model_a and winner_model_b"]),
        (ONE_HOT, hot(2, 0, 0), "unknown_label", ["winner_model_a", "'2'", "true or false"]),
        (SIGN, {"overall_preference": "better"}, "unknown_label", ["overall_preference", "'better'"]),
        (SIGN, {"overall_preference": float("inf")}, "unknown_label", ["'inf'"]),
        (SIGN, {"overall_preference": True}, "unknown_label", ["'True'", "by: value"]),
        (SIGN, {"overall_preference": None}, "no_label", ["overall_preference"]),
        (SCORES, {"score_0": 1}, "no_label", ["score_1"]),
        (SCORES, {"score_0": "N/A", "score_1": 1}, "unknown_label", ["score_0", "'N/A'"]),
        (SCORES, {"score_0": 10**400, "score_1": 1}, "unknown_label", ["score_0", "'1000"]),
    ],
)
def test_missing_or_unknown_label_has_reason(label: dict[str, Any], row: dict[str, Any], reason: str, parts: list[str]) -> None:
    with pytest.raises(BadRow) as problem:
        judge(row, LABELS.validate_python(label))
    assert problem.value.reason == reason
    assert all(part in problem.value.detail for part in parts)
    assert len(problem.value.detail) < 200, "the row's text is not repeated"


FIVE_SCORES = [2.0, 5.0, 3.0, 3.0, 1.0]


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
def test_policy_selects_pairs(policy: str, expected: list[tuple[int, int]]) -> None:
    assert pairs(FIVE_SCORES, policy=policy) == expected
    ranks = [6 - score for score in FIVE_SCORES]
    assert pairs(ranks, policy=policy, lower_is_better=True) == expected


def test_first_of_equal_bests_is_used() -> None:
    assert pairs([1.0, 4.0, 4.0, 1.0], policy="best_worst") == [(1, 0)]
    assert pairs([1.0, 4.0, 4.0, 1.0], policy="best_vs_rest") == [(1, 0), (1, 3)]


def test_min_gap_excludes_small_differences() -> None:
    assert pairs([0.7, 0.4, 0.1], min_gap=0.3) == [(0, 1), (0, 2), (1, 2)], "0.7 - 0.4 is 0.3"
    assert pairs([0.7, 0.4, 0.1], min_gap=0.31) == [(0, 2)]
    with pytest.raises(BadRow, match=r"^below_min_gap: .*\b4\b.*\b5$"):
        pairs(FIVE_SCORES, min_gap=5.0)
    with pytest.raises(BadRow, match=r"^tie: .*\b2\b.*\b3$"):
        pairs([3.0, 3.0])


def test_margin_from_score_is_the_difference() -> None:
    edges = preferences([0.3, 0.1, 0.2], source(margin_from_score=True), "x:0")
    assert [(edge.winner, edge.loser, edge.margin) for edge in edges] == [(0, 2, 0.1), (0, 1, 0.2), (2, 1, 0.1)]
    assert {edge.margin for edge in preferences([0.3, 0.1, 0.2], source(), "x:0")} == {0.0}
    with pytest.raises(BadRow, match=r"^bad_margin: "):
        preferences([-1.7e308, 1.7e308], source(margin_from_score=True), "x:0")


def test_max_pairs_draws_by_row_id() -> None:
    """`max_pairs` draws by the row id alone, keeps the order of the pairs, and draws each pair sometimes."""
    whole = pairs(FIVE_SCORES)
    drawn = {name: pairs(FIVE_SCORES, name=name, max_pairs=3) for name in (f"x:{number}" for number in range(200))}
    assert all(len(some) == 3 and [pair for pair in whole if pair in some] == some for some in drawn.values())
    assert drawn["x:7"] == pairs(FIVE_SCORES, name="x:7", max_pairs=3)
    chosen = [pair for some in drawn.values() for pair in some]
    counts = {pair: chosen.count(pair) for pair in whole}
    assert min(counts.values()) > 30, "guard: every pair is drawn sometimes; 67 times in the mean"
    assert pairs(FIVE_SCORES, max_pairs=9) == whole


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=2, max_size=7),
    policy=st.sampled_from(["all", "best_vs_rest", "best_worst", "adjacent"]),
    lower=st.booleans(),
)
def test_preferences_are_ordered_and_unique(scores: list[float], policy: str, lower: bool) -> None:
    """Each preference has the better score first, and no pair is repeated."""
    if len(set(scores)) == 1:
        with pytest.raises(BadRow, match=r"^tie: "):
            pairs(scores, policy=policy, lower_is_better=lower)
        return
    edges = pairs(scores, policy=policy, lower_is_better=lower)
    assert len(set(edges)) == len(edges) > 0
    assert all((scores[winner] < scores[loser]) is lower and scores[winner] != scores[loser] for winner, loser in edges)
    if policy == "all":
        assert len(edges) == sum(scores[one] != scores[other] for one, other in combinations(range(len(scores)), 2))
