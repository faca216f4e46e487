"""Which rows a recipe asks for: each mistake has its line, and each key its place."""

from pathlib import Path

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.sources import Condition

RECIPE = """\
run: {{name: demo, output_dir: runs/demo}}
data:
  train:
    - {{path: pairs.jsonl, {keys}}}
model: {{path: some/model}}
optimizer: {{lr: 1e-5}}
"""


def load(folder: Path, keys: str, **files: str):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "recipe.yaml").write_text(RECIPE.format(keys=keys))
    return load_recipe(folder / "recipe.yaml")


def test_everything_is_said_and_survives_a_dump(tmp_path: Path) -> None:
    keys = (
        "filter: [{column: a.b, at_least: 2}, {column: status, is_not: tie}, {column: lang, one_of: [en, 5, true]}, "
        "{column: n, at_most: 0.5}, {column: ok, equals: false}], "
        "fraction: 0.25, cap: {by: post_id, rows: 5}, dedup: true, streaming: true, limit: 9"
    )
    recipe = load(tmp_path, keys)
    (source,) = recipe.data.train
    asked = [(condition.column, *condition.criteria[0]) for condition in source.filter]
    assert asked == [
        ("a.b", "at_least", 2.0),
        ("status", "is_not", "tie"),
        ("lang", "one_of", ("en", 5, True)),
        ("n", "at_most", 0.5),
        ("ok", "equals", False),
    ]
    assert [len(condition.criteria) for condition in source.filter] == [1] * 5
    assert type(source.filter[2].one_of[1]) is int, "guard: values keep their types"
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "copy.yaml") == recipe


TESTS = "equals, is_not, one_of, at_least, at_most"
ONE = f"expected exactly one of {TESTS}, got {{}}; for a range write two conditions"
NUMBER = "expected a number above 0 and at most 1, or null, got"
FUNCTION = "expected text such as module:function, or null, got"
BROKEN = [  # the keys, the part of them that the line points to, and the line
    ("filter: [{column: a}]", "{column", "filter.0: " + ONE.format("none")),
    ("filter: [{column: a, at_least: 1, at_most: 2}]", "2}", "filter.0.at_most: " + ONE.format("at_least and at_most")),
    ("filter: [{column: a, is: 1}]", "is:", "filter.0.is: unknown key; did you mean equals?"),
    ("filter: [{column: a, gte: 1}]", "gte", "filter.0.gte: unknown key; did you mean at_least?"),
    ("filter: [{column: a, at_least: high}]", "high", 'filter.0.at_least: expected a number, or null, got "high"'),
    ("filter: [{at_least: 1}]", "{at", "filter.0.column: missing; expected non-empty text"),
    ("fraction: 0", "0", f"fraction: {NUMBER} 0"),
    ("fraction: 1.5", "1.5", f"fraction: {NUMBER} 1.5"),
    ("weight: 0.5", "weight", "weight: unknown key; did you mean fraction?"),
    ("cap: {by: post}", "cap", "cap.rows: missing; expected a whole number above 0"),
    ("dedup: yes", "yes", 'dedup: expected true or false, got "yes"; write true'),
    ("streaming: true", "true", "streaming: missing `limit`; a stream is read up to a number of rows, so set it, too"),
    ("prepare: clean", "clean", f'prepare: {FUNCTION} "clean"'),
    ("prepare: '../clean:rows'", "'", f'prepare: {FUNCTION} "../clean:rows"'),
    (
        "prepare: clean:rows",
        "clean",
        "prepare: expected clean.py beside the recipe; {folder}/clean.py: No such file or directory",
    ),
]


@pytest.mark.parametrize(("keys", "part", "line"), BROKEN, ids=[keys for keys, _, _ in BROKEN])
def test_each_mistake_has_its_line(tmp_path: Path, keys: str, part: str, line: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, keys)
    column = RECIPE.format(keys=keys).splitlines()[3].index(keys) + keys.index(part) + 1
    assert raised.value.problems == (f"{tmp_path}/recipe.yaml:4:{column}  data.train.0.{line.format(folder=tmp_path)}",)


def test_a_condition_of_python_asks_what_it_says() -> None:
    assert Condition(column="a", equals=0).criteria == (("equals", 0),)
    assert Condition(column="a").criteria == ()
