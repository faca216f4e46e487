"""What does not go together in the keys of a format or a label: one line each, at the key to change."""

from typing import Any

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe, parse_recipe
from rmtrain.recipe.schema import AbSource, Recipe
from rmtrain.recipe.sources import ValueLabel, label_text

RECIPE = """\
run: {{name: demo, output_dir: runs/demo}}
model: {{path: some/model}}
optimizer: {{lr: 1e-5}}
data:
  train:
    - {source}
"""
AB = "{{path: x, format: ab, a: left, b: right, label: {label}{more}}}"
RANKED = "{{path: x, format: ranked, score: s{more}}}"
VALUES = "{by: value, column: winner, values: {1: a, 0: b}}"
SIGN = "{by: sign, column: strength, positive: b}"


def load(source: str) -> Recipe:
    return parse_recipe(RECIPE.format(source=source), "recipe.yaml")


def problems(source: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(source)
    return [problem.partition("  ")[2] for problem in error.value.problems]


def ab(label: str, more: str = "") -> str:
    return AB.format(label=label, more=more)


def ranked(more: str) -> str:
    return RANKED.format(more=more)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (ab("{by: vote, column: w}"), 'label.by: expected value, index, one_hot, sign or scores, got "vote"'),
        (ab("{by: values, column: w}"), 'label.by: expected value, index, one_hot, sign or scores, got "values"; did you mean value?'),
        (ab("{column: w}"), "label.by: missing; expected value, index, one_hot, sign or scores"),
        (ab("{byy: value, column: w}"), "label.byy: unknown key; did you mean by?"),
        (ab("winner"), 'label: expected a section with by and column or by, a and b, got "winner"'),
        (ab("{by: value, column: w, values: {1: a}}"), "label.values: no value means b; expected one at least for each of a and b"),
        (ab("{by: value, column: w, values: {}}"), "label.values: no value means a or b; expected one at least for each of a and b"),
        (ab("{by: value, column: w, values: {1: a, '1.0': b}}"), 'label.values.1.0: the same value as "1"; keep one'),
        (ab("{by: value, column: w, values: {1: a, 0: b, 2: neither}}"), 'label.values.2: expected a, b or tie, got "neither"'),
        (ab("{by: value, column: [w, w], values: {1: a, 0: b}}"), "label.column: a column is there twice; each votes once"),
        (ab("{by: value, column: [], values: {1: a, 0: b}}"), "label.column: expected a non-empty list, each non-empty text"),
        (ab("{by: index, column: w, first: 2}"), "label.first: expected a whole number at least 0 and at most 1, got 2"),
        (ab("{by: index, column: w, positive: a}"), "label.positive: not a key of the kind index, only of sign; remove it"),
        (ab("{by: sign, column: w}"), "label.positive: missing; expected a or b"),
        (ab("{by: scores, a: s, b: s}"), 'label.b: expected a column for each, got "s" twice'),
        (ab("{by: one_hot, a: s, b: t, tie: s}"), 'label.b: expected a column for each, got "s" twice'),
        (ab(VALUES, ", tie: keep"), 'tie: expected drop, half or error, got "keep"'),
        (ab(VALUES, ", margin_from_label: true"), "margin_from_label: a label by value has no strength, only those by sign or scores"),
        (ab(SIGN, ", margin_from_label: true, margin: m"), "margin_from_label: margin says where the margin is; remove one of them"),
        (ab(VALUES).replace("right", "left"), 'b: "left" is the column of the other candidate too'),
        ("{path: x, format: ab, a: left, b: right}", "label: missing; expected a section with by and column or by, a and b"),
        ("{path: x, chosen: c, rejected: c}", 'rejected: "c" is the column of the chosen side too'),
        ("{path: x, prompt: [question, auto]}", 'prompt: "auto" stands alone, not in a list of columns; write prompt: auto'),
        ("{path: x, messages: {json: true}}", "messages.json: unknown key; did you mean decode_json?"),
        (ranked(""), "responses: missing; name the column of the list of responses, or set group_by where each row is one response"),
        (
            ranked(", responses: r, group_by: g, response: t"),
            "group_by: rows hold a list of responses, or are one response each; remove group_by or responses",
        ),
        (ranked(", group_by: prompt"), "response: missing; with group_by it names the column of the response"),
        (
            ranked(", responses: r, policy: best_worst, max_pairs: 3"),
            "max_pairs: no effect: policy best_worst gives one pair; remove it, or take policy all",
        ),
        (ranked(", responses: r, policy: best"), 'policy: expected all, best_vs_rest, best_worst or adjacent, got "best"'),
        (ranked(", responses: r, min_gap: 0"), "min_gap: expected a number above 0, or null, got 0"),
        (ranked(", responses: r").replace("score: s", "score: {}"), "score: expected a "),
        ("{path: x, format: ranked, responses: r}", "score: missing; expected "),
        ("{path: x, lists: true, format: ranked, responses: r, score: s}", "lists: not a key of the kind ranked, only of pair; remove it"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_at_its_key(source: str, line: str) -> None:
    (problem,) = problems(source)
    assert problem.startswith(f"data.train.0.{line}")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (ab(VALUES, ", margin: m"), "margin: plackett_luce has no margins; remove it, or take bradley_terry"),
        (ab(SIGN, ", margin_from_label: true"), "margin_from_label: plackett_luce has no margins"),
        (ab(VALUES, ", tie: half"), "tie: plackett_luce has no half preferences; take drop, or bradley_terry"),
        (ranked(", responses: r, margin_from_score: true"), "margin_from_score: plackett_luce has no margins"),
        (ranked(", responses: r, policy: adjacent"), "policy: plackett_luce learns whole rankings; take all, or bradley_terry"),
        (
            ranked(", responses: r, max_pairs: 2"),
            "max_pairs: plackett_luce learns whole rankings; remove it, or take bradley_terry",
        ),
        ("{path: x, margin: m}", "margin: plackett_luce has no margins"),
    ],
)
def test_rankings_have_no_margins_and_no_halves(source: str, line: str) -> None:
    assert load(source), "guard: it is right for bradley_terry"
    with pytest.raises(RecipeError) as error:
        parse_recipe(RECIPE.format(source=source) + "objective: {type: plackett_luce}\n", "recipe.yaml")
    (problem,) = error.value.problems
    assert problem.partition("  ")[2].startswith(f"data.train.0.{line}")


def test_all_mistakes_of_a_source_are_told_at_once() -> None:
    lines = problems(ab("{by: value, column: w, values: {1: a, '1': a}}", ", tie: keep, margin_from_label: 3"))
    assert len(lines) == 3


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
def test_a_label_says_the_same_whatever_its_type(values: list[Any], text: str) -> None:
    assert {label_text(value) for value in values} == {text}


def test_values_may_be_of_any_type_in_python() -> None:
    values: dict[Any, Any] = {1: "a", 0.5: "b", "x": "tie", False: "b"}
    label = ValueLabel(by="value", column="w", values=values)
    assert label.values == {"1": "a", "0.5": "b", "x": "tie", "false": "b"}
    assert label.outcomes == label.values
    source = AbSource(path="x", format="ab", a="l", b="r", label=label)
    assert source.columns == ("l", "r", "w")
    assert source.title == "x"
