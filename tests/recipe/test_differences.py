"""The keys in which recipes differ, and their short names and values."""

from typing import Any

import pytest

from rmtrain.recipe.differences import differing_keys, short_names, short_values
from tests.runs import tiny_recipe


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ([{"a": {"x": 1}}, {"a": {"x": 1}}], {}),
        ([{"a": {"x": 1, "y": 2}}, {"a": {"x": 3, "y": 2}}], {"a.x": [1, 3]}),
        ([{"a": None}, {"a": {"x": 1, "y": 2}}], {"a": [None, {"x": 1, "y": 2}]}),
        ([{"a": None}, {"a": {"x": 1, "y": 2}}, {"a": {"x": 2, "y": 2}}], {"a.x": [None, 1, 2]}),
        ([{"a": {"type": "p", "u": 1}}, {"a": {"type": "q", "v": 2}}], {"a.type": ["p", "q"]}),
        ([{"m": {"path": "p"}}, {"m": {"scratch": {"x": 1}}}], {"m.path": ["p", None]}),
        ([{"l": [{"p": 1}]}, {"l": [{"p": 2}]}], {"l.0.p": [1, 2]}),
        ([{"l": [1]}, {"l": [1, 2]}], {"l": [[1], [1, 2]]}),
        ([{"run": {"name": "a", "output_dir": "x"}}, {"run": {"name": "b", "output_dir": "y"}}], {}),
        ([{"a": {"x": 1}}, {"a": {"x": 1}, "new": {"y": 2}}], {}),
    ],
)
def test_only_what_differs_is_named(recipes: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Sections that some lack are one key, kinds differ in their kind, and the names of runs do not count."""
    assert differing_keys(recipes) == expected


def test_real_recipes_differ_where_changed(tmp_path: Any) -> None:
    dumps = [
        tiny_recipe(tmp_path, optimizer={"lr": lr}, run={"name": "x", "output_dir": "y", "seed": seed}).model_dump(mode="json")
        for lr, seed in ((1e-3, 1), (1e-3, 2), (2e-3, 1))
    ]
    assert differing_keys(dumps) == {"run.seed": [1, 2, 1], "optimizer.lr": [1e-3, 1e-3, 2e-3]}


def test_short_names_are_unique_and_say_something() -> None:
    keys = ["optimizer.lr", "run.seed", "data.train.0.path", "model.path", "data.train.0.tag", "lora.rank", "x.rank", "lora"]
    names = short_names(keys)
    assert len(set(names.values())) == len(keys)
    assert names["optimizer.lr"] == "lr"
    assert names["model.path"] == "model.path"
    assert names["data.train.0.path"] == "train.0.path"
    assert (names["lora.rank"], names["x.rank"], names["lora"]) == ("lora.rank", "x.rank", "lora")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([3e-6, 1e-05, 0.001, 1e20, 1, True, None], ["3e-6", "1e-5", "1e-3", "1e20", "1", "true", "–"]),
        (["/a/one.jsonl", "/b/two.jsonl"], ["one.jsonl", "two.jsonl"]),
        (["/a/x", "/b/x"], ["/a/x", "/b/x"]),
        ([{"rank": 8, "alpha": 16, "more": 1}, None], ["rank 8, alpha 16", "–"]),
        ([[{"path": "/a/x"}, {"path": "hub/y"}], []], ["[x, hub/y]", "[]"]),
        (["x\x1b]0;y\n", "hf_" + "a" * 34], ["x\\x1b]0;y\\n", "<hidden>"]),
    ],
)
def test_short_values_tell_values_apart(values: list[Any], texts: list[str]) -> None:
    assert short_values(values) == texts
    assert len(short_values(["x" * 500])[0]) < 50, "guard: long text is cut"
