"""Commands and recipes on the pages are valid: options and keys exist, values are accepted, recipes exist or are placeholders."""

from itertools import pairwise
from typing import Any

import pytest
import yaml
from typer.main import get_command

from rmtrain.cli import OVERRIDE, app
from rmtrain.recipe.load import parse_recipe
from rmtrain.recipe.schema import EXTENDS, Recipe
from rmtrain.recipe.yaml import write_yaml
from tests.pages import PAGES, blocks, commands
from tests.runs import ROOT

RECIPE: dict[str, Any] = {
    "run": {"name": "page", "output_dir": "runs/page"},
    "data": {"train": [{"path": "pairs.jsonl", "holdout": 0.1}]},
    "model": {"path": "owner/model"},
    "optimizer": {"lr": 1e-5},
}
PLACEHOLDERS = {"recipe.yaml", "mine.yaml", "recipes/mine.yaml", "recipes/hh.yaml"}
TRAINED_ELSEWHERE = {"docs/DATASETS.md", "docs/OBJECTIVES.md", "docs/SELECTION.md"}
"""Pages whose blocks are read or trained by tests of their own, on rows of the right shape."""


def parsed(words: list[str]) -> dict[str, Any]:
    """Parse a command line as rmtrain does, and return the values of its options."""
    words = [word for word in words if word != "--help"]
    group: Any = get_command(app)
    group.make_context("rmtrain", list(words))  # explains options that do not exist
    verb, *rest = words
    if verb.startswith("-"):
        return {}
    values: dict[str, Any] = group.commands[verb].make_context(verb, rest).params
    return values


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_pages_are_valid(page: str) -> None:
    made = {file for words in commands(page, "rmtrain") for option, file in pairwise(words) if option in ("-o", "--output")}
    for words in commands(page, "rmtrain"):
        values = parsed(words)
        arguments = [str(value) for value in (*(values.get("arguments") or []), values.get("recipe")) if value is not None]
        parse_recipe(write_yaml(RECIPE), page, [argument for argument in arguments if OVERRIDE.match(argument)])
        for file in (argument for argument in arguments if argument.endswith(".yaml") and not OVERRIDE.match(argument)):
            assert file in PLACEHOLDERS | made or (ROOT / file).is_file(), words


def test_make_targets_of_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = {target for page in PAGES for words in commands(page, "make") for target in words}
    assert all(f"\n{target}:" in makefile for target in asked)
    assert len(asked) > 5, "guard"


@pytest.mark.parametrize("page", sorted(PAGES.keys() - TRAINED_ELSEWHERE))
def test_yaml_blocks_are_parts_of_recipes(page: str) -> None:
    for block in blocks(page, "yaml"):
        part = yaml.safe_load(block)
        part = {"data": {"train": part}} if isinstance(part, list) else part
        if "jobs" not in part:  # a workflow of CI
            part.pop(EXTENDS, None)
            assert part.keys() <= Recipe.model_fields.keys()
            whole = RECIPE | part | {"data": RECIPE["data"] | part.get("data", {})}
            parse_recipe(write_yaml(whole), page)


def test_commands_and_recipes_were_found() -> None:
    assert sum(len(commands(page, "rmtrain")) for page in PAGES) > 50
    assert {words[0] for page in PAGES for words in commands(page, "rmtrain")} >= {*get_command(app).commands}  # type: ignore[attr-defined]
    assert sum(len(blocks(page, "yaml")) for page in PAGES.keys() - TRAINED_ELSEWHERE) > 4
