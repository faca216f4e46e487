from typing import Any

import pytest

from rmtrain.data.rows.messages import BadRow
from rmtrain.data.rows.select import check_conditions
from rmtrain.recipe.sources import Condition


def outcome(row: dict[str, Any], **test: Any) -> str:
    try:
        check_conditions(row, (Condition(**{"column": "a", **test}),))
    except BadRow as problem:
        return f"{problem.reason}: {problem.detail}"
    return "passes"


@pytest.mark.parametrize(
    ("cell", "test", "passes"),
    [
        (2, {"at_least": 2}, True),
        (1.99, {"at_least": 2}, False),
        ("2.5", {"at_least": 2}, True),
        ("1e-3", {"at_most": 0.01}, True),
        (" 7 ", {"at_most": 6}, False),
        (None, {"at_least": 0}, False),
        ("", {"at_most": 9}, False),
        (float("nan"), {"at_most": 9}, False),
        ("tie", {"is_not": "tie"}, False),
        ("Tie", {"is_not": "tie"}, True),
        (None, {"is_not": "tie"}, True),
        ({"x": 1}, {"is_not": "tie"}, True),
        ("en", {"equals": "en"}, True),
        (None, {"equals": "en"}, False),
        (["en"], {"equals": "en"}, False),
        ("3", {"equals": 3}, True),
        ("3.0", {"equals": 3}, True),
        (3.0, {"equals": 3}, True),
        (3, {"equals": "3"}, False),
        ("three", {"equals": 3}, False),
        (True, {"equals": True}, True),
        (1, {"equals": True}, False),
        (True, {"equals": 1}, False),
        ("True", {"equals": True}, True),
        ("false", {"equals": False}, True),
        ("no", {"equals": False}, False),
        (0, {"equals": False}, False),
        ("b", {"one_of": ["a", "b"]}, True),
        ("2", {"one_of": [1, 2]}, True),
        ("c", {"one_of": ["a", "b"]}, False),
        (None, {"one_of": ["a"]}, False),
    ],
)
def test_a_cell_passes_or_not(cell: Any, test: dict[str, Any], passes: bool) -> None:
    assert (outcome({"a": cell}, **test) == "passes") is passes
    assert passes or outcome({"a": cell}, **test).startswith("filtered: a is ")


def test_what_failed_is_said_without_much_of_the_text() -> None:
    assert outcome({"a": 1.5}, at_least=2) == "filtered: a is 1.5, expected at least 2"
    assert outcome({"a": "tie"}, is_not="tie") == "filtered: a is 'tie', expected anything but 'tie'"
    assert outcome({"a": None}, one_of=["x", 3]) == "filtered: a is null, expected one of 'x', 3"
    assert outcome({"a": {"b": []}}, equals=0.25) == "filtered: a is an object, expected 0.25"
    assert len(outcome({"a": "text " * 99}, equals="b")) < 80


def test_what_cannot_be_decided_is_a_fault_of_its_own() -> None:
    assert outcome({"b": 1, "c": 2}, at_least=2) == 'missing_column: no column "a"; it has: b, c'
    assert outcome({"a": "high"}, at_least=2) == "not_a_number: a is 'high'; a bound needs a number"
    assert outcome({"a": True}, at_most=2).startswith("not_a_number")
    assert outcome({"a": [1]}, at_most=2) == "not_a_number: a is a list; a bound needs a number"


def test_all_conditions_count_and_paths_reach_inside() -> None:
    row = {"meta": {"scores": [{"v": "4"}], "lang": "en"}, "a.b": 1}
    between = (Condition(column="meta.scores.0.v", at_least=3), Condition(column="meta.scores.0.v", at_most=5))
    check_conditions(row, (*between, Condition(column="a.b", equals=1), Condition(column="meta.lang", equals="en")))
    with pytest.raises(BadRow, match=r"^filtered: meta.lang is 'en', expected anything but 'en'$"):
        check_conditions(row, (*between, Condition(column="meta.lang", is_not="en")))
    check_conditions(row, ())
