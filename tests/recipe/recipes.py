"""Recipes for the tests of this folder, and a way to check errors without their wording."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import load_recipe, parse_recipe
from rmtrain.recipe.schema import Recipe

GOOD = """\
run: {name: demo, output_dir: runs/demo}
data:
  train:
    - path: pairs.jsonl
model: {path: some/model}
optimizer:
  lr: 1e-5
"""
SCRATCH = "model: {scratch: {architecture: llama, hidden_size: 64, layers: 2, heads: 4}}"
LABELS = {
    "value": "by: value, column: w, values: {1: a, 0: b}",
    "index": "by: index, column: w",
    "one_hot": "by: one_hot, a: v, b: w",
    "sign": "by: sign, column: w, positive: a",
    "scores": "by: scores, a: v, b: w",
    "votes": "by: votes, a: v, b: w",
    "probability": "by: probability, column: w",
}
KINDS = {
    "tokenized": "format: tokenized",
    "ranked": "format: ranked, responses: r, score: s",
    "scored": "format: scored, response: r, target: s",
    "ab": "format: ab, a: x, b: y, label: {by: index, column: w}",
    **{kind: f"format: ab, a: x, b: y, label: {{{label}}}" for kind, label in LABELS.items()},
}
"""The keys of a source of each format, and with each kind of label."""


def with_source(keys: str, more: str = "") -> str:
    """A recipe with one source of the given keys, which begin in column 8 of line 4."""
    return GOOD.replace("- path: pairs.jsonl", f"- {{{keys}}}") + more


def load(text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Write the text to recipe.yaml in the current directory, and load it."""
    Path("recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_recipe("recipe.yaml", overrides)


def problems(text: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The errors of a wrong recipe."""
    with pytest.raises(RecipeError) as raised:
        load(text, overrides)
    assert raised.value.exit_code == 2
    return raised.value.problems


def assert_problems(came: Sequence[str], expected: Sequence[str]) -> None:
    """Each problem is at its place and key, and names the given words.

    Args:
        came: the problems.
        expected: for each problem `place|key|word|word`; `key` may be empty. Words are keys, values or numbers, never sentences.
    """
    assert len(came) == len(expected), came
    for line, (place, key, *words) in zip(came, (one.split("|") for one in expected), strict=True):
        assert line.startswith(f"{place}  {key}: " if key else f"{place}  "), (line, place, key)
        message = line.removeprefix(f"{place}  ").removeprefix(f"{key}: ")
        assert all(word in message for word in words), (message, words)


def complete(kind_of_source: str, kind_of_model: str) -> dict[str, Any]:
    """A recipe as data, with every section written out."""
    return deepcopy(_complete(kind_of_source, kind_of_model))


@cache
def _complete(kind_of_source: str, kind_of_model: str) -> dict[str, Any]:
    text = GOOD if kind_of_model == "pretrained" else GOOD.replace("model: {path: some/model}", SCRATCH)
    overrides = ["data.eval=[{path: held.jsonl}]", "lora={}"]
    overrides += ["evaluation.benchmarks=[{name: rm_bench}]"]
    overrides += ["evaluation.every=5", "evaluation.early_stopping={metric: loss, patience: 2}"]
    if kind_of_source != "pair":
        overrides += [f"data.{side}.0={{path: {side}.jsonl, {KINDS[kind_of_source]}}}" for side in ("train", "eval")]
    selection = ["filter=[{column: c, equals: 1}]", "cap={by: c, rows: 2}"]
    overrides += [f"data.{side}.0.{key}" for side in ("train", "eval") for key in selection]
    overrides += ["data.train.0.repeat=2", "data.train.0.fold={number: 1, of: 2}"]
    if kind_of_source == "scored":
        overrides.append("objective={type: regression}")
    else:
        overrides.append("data.train.0.balance=longer")
        if kind_of_source != "tokenized":
            overrides.append("data.train.0.augment={other_prompts: 0.5}")
            overrides += [f"data.{side}.0.suspects={{file: suspects.jsonl}}" for side in ("train", "eval")]
    return parse_recipe(text, "recipe.yaml", overrides).model_dump(mode="json")


def every_path(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all keys and list entries in plain data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [*([path] if path else []), *(deeper for part, value in inner for deeper in every_path(value, (*path, part)))]
