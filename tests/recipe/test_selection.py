"""Which rows a recipe asks for: each mistake has its line, and each key its place."""

from pathlib import Path

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.selection import Condition

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
BROKEN = [
    (
        "filter: [{column: a}]",
        f"4:34  data.train.0.filter.0: expected exactly one of {TESTS}, got none; for a range write two conditions",
    ),
    (
        "filter: [{column: a, at_least: 1, at_most: 2}]",
        f"4:69  data.train.0.filter.0.at_most: expected exactly one of {TESTS}, got at_least and at_most; "
        "for a range write two conditions",
    ),
    ("filter: [{column: a, is: 1}]", "4:46  data.train.0.filter.0.is: unknown key; did you mean equals?"),
    ("filter: [{column: a, gte: 1}]", "4:46  data.train.0.filter.0.gte: unknown key; did you mean at_least?"),
    (
        "filter: [{column: a, at_least: high}]",
        '4:56  data.train.0.filter.0.at_least: expected a number, or null, got "high"',
    ),
    ("fraction: 0", "4:35  data.train.0.fraction: expected a number above 0 and at most 1, or null, got 0"),
    ("fraction: 1.5", "4:35  data.train.0.fraction: expected a number above 0 and at most 1, or null, got 1.5"),
    ("weight: 0.5", "4:25  data.train.0.weight: unknown key; did you mean fraction?"),
    ("cap: {by: post}", "4:30  data.train.0.cap.rows: missing; expected a whole number above 0"),
    ("dedup: yes", '4:32  data.train.0.dedup: expected true or false, got "yes"; write true'),
    (
        "streaming: true",
        "4:36  data.train.0.streaming: missing `limit`; a stream is read up to a number of rows, so set it, too",
    ),
    ("prepare: clean", '4:34  data.train.0.prepare: expected text such as module:function, or null, got "clean"'),
    (
        "prepare: '../clean:rows'",
        '4:34  data.train.0.prepare: expected text such as module:function, or null, got "../clean:rows"',
    ),
    (
        "prepare: clean:rows",
        "4:34  data.train.0.prepare: expected clean.py beside the recipe; {folder}/clean.py: No such file or directory",
    ),
]


@pytest.mark.parametrize(("keys", "line"), BROKEN, ids=[keys for keys, _ in BROKEN])
def test_each_mistake_has_its_line(tmp_path: Path, keys: str, line: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, keys)
    assert raised.value.problems == (f"{tmp_path}/recipe.yaml:{line.format(folder=tmp_path)}",)


def test_a_condition_of_python_asks_what_it_says() -> None:
    assert Condition(column="a", equals=0).criteria == (("equals", 0),)
    assert Condition(column="a").criteria == ()
