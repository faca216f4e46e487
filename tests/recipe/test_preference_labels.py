"""Labels of two candidates: what is wrong with one is reported at the key to change, and equal values are equal."""

from typing import Any

import pytest

from rmtrain.recipe.load import dump_recipe, parse_recipe
from rmtrain.recipe.preference_labels import ValueLabel, label_text
from rmtrain.recipe.schema import AbSource
from tests.recipe.recipes import assert_problems, load, problems, with_source

VALUES = "{by: value, column: winner, values: {1: a, 0: b}}"
SIGN = "{by: sign, column: strength, positive: b}"
ALL_KINDS = "value, index, one_hot, sign, scores, votes or probability"


def ab(label: str, more: str = "") -> str:
    """The recipe of a source with a label."""
    return with_source(f"path: x, format: ab, a: left, b: right, label: {label}{more}")


BROKEN = [  # the label and further keys of its source, and the key and words of the problem
    ("{by: vote, column: w}", "", f'label.by|{ALL_KINDS}|got "vote"'),
    ("{by: values, column: w}", "", f'label.by|{ALL_KINDS}|got "values"|mean value?'),
    ("{column: w}", "", f"label.by|missing|{ALL_KINDS}"),
    ("{byy: value, column: w}", "", "label.byy|unknown|mean by?"),
    ("winner", "", 'label|section|got "winner"'),
    ("{by: value, column: w, values: {1: a}}", "", "label.values|b"),
    ("{by: value, column: w, values: {}}", "", "label.values|a or b"),
    ("{by: value, column: w, values: {1: a, '1.0': b}}", "", 'label.values.1.0|"1"'),
    ("{by: value, column: w, values: {1: a, 0: b, 2: neither}}", "", "label.values.2|'a', 'b' or 'tie'|got \"neither\""),
    ("{by: value, column: [w, w], values: {1: a, 0: b}}", "", "label.column|w, w"),
    ("{by: value, column: [], values: {1: a, 0: b}}", "", "label.column|list of 0"),
    ("{by: value, column: [w, 1], values: {1: a, 0: b}}", "", "label.column.1|string|got 1|quotes"),
    ("{by: index, column: w, first: 2}", "", "label.first|<= 1|got 2"),
    ("{by: index, column: w, positive: a}", "", "label.positive|kind index|only of sign"),
    ("{by: sign, column: w}", "", "label.positive|missing"),
    ("{by: scores, a: s, b: s}", "", "label.b|s, s"),
    ("{by: one_hot, a: s, b: t, tie: s}", "", "label.b|s, t, s"),
    (VALUES, ", tie: keep", "tie|'drop', 'half' or 'error'|got \"keep\""),
    (VALUES, ", margin_from_label: true", "margin_from_label|value|sign or scores"),
    (SIGN, ", margin_from_label: true, margin: m", "margin_from_label|margin"),
]


@pytest.mark.parametrize(("label", "more", "expected"), BROKEN)
def test_a_wrong_label_is_one_problem(label: str, more: str, expected: str) -> None:
    (line,) = problems(ab(label, more))
    place, _, _ = line.partition("  ")
    assert place.startswith("recipe.yaml:4:")
    assert_problems([line], [f"{place}|data.train.0.{expected}"])


def test_candidates_need_different_columns_and_a_label() -> None:
    (line,) = problems(ab(VALUES).replace("right", "left"))
    assert '  data.train.0.b: "left"' in line
    (line,) = problems(with_source("path: x, format: ab, a: left, b: right"))
    assert "  data.train.0.label: missing" in line


def test_all_mistakes_of_a_source_come_together() -> None:
    lines = problems(ab("{by: value, column: w, values: {1: a, '1': a}}", ", tie: keep, margin_from_label: 3"))
    assert len(lines) == 3
    lines = problems(ab("{by: value, column: [w, w], values: {1: a, '1.0': a}}", ", margin_from_label: true"))
    assert {line.split("  ")[1].partition(": ")[0].removeprefix("data.train.0.") for line in lines} == {
        "label.values",
        "label.values.1.0",
        "label.column",
        "margin_from_label",
    }


@pytest.mark.parametrize(
    "label",
    [
        "{by: value, column: [x, y, z], values: {1: a, 2: b, 0: tie, true: a, A wins: b}}",
        "{by: index, column: best.id, first: 1}",
        "{by: one_hot, a: x, b: y, tie: z}",
        SIGN,
        "{by: scores, a: score_0, b: score_1, lower_is_better: true}",
    ],
)
def test_a_label_survives_a_dump(label: str) -> None:
    recipe = load(ab(label))
    assert parse_recipe(dump_recipe(recipe), "again.yaml") == recipe


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, "1", 1.0, " 1.0 ", "01", "1e0", "+1"], "1"),
        ([-3, "-3", "-3.0"], "-3"),
        ([0, "0", 0.0, -0.0, "-0"], "0"),
        ([0.5, "0.5", ".5", "5e-1"], "0.5"),
        ([True, "true", "True", "TRUE "], "true"),
        ([False, "false"], "false"),
        (["model_a", " model_a\n"], "model_a"),
        (["Model_A"], "Model_A"),
        ([None], "None"),
    ],
)
def test_labels_of_different_types_are_equal(values: list[Any], text: str) -> None:
    assert {label_text(value) for value in values} == {text}


def test_values_of_any_type_in_python() -> None:
    values: dict[Any, Any] = {1: "a", 0.5: "b", "x": "tie", False: "b"}
    label = ValueLabel(by="value", column="w", values=values)
    assert label.values == {"1": "a", "0.5": "b", "x": "tie", "false": "b"}
    assert label.outcomes == label.values
    source = AbSource(path="x", format="ab", a="l", b="r", label=label)
    assert source.columns == ("l", "r", "w")
    assert source.title == "x"
