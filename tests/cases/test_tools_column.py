"""A column of tools that the chat template could write: it is a finding until the recipe names it, and then it is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forks import rmtrain

SET, LONGER = "data.train.0.tools=tools", "data.max_length=512"


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("tools_column")


def report(folder: Path, *arguments: str) -> dict[str, Any]:
    ended = rmtrain(*arguments, LONGER, "--json", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


@pytest.mark.parametrize("recipe", ["r.yaml", "p.yaml"])
def test_unnamed_tools_are_a_finding(folder: Path, recipe: str) -> None:
    """From JSON Lines and from Parquet."""
    train = report(folder, "preprocess", recipe)["findings"]["splits"]["train"]
    found = train["found"]["unset_variable"]
    assert (found["found"], found["rows"]) == (1, train["comparisons"])
    assert "tools: tools" in found["examples"][0]["detail"]
    named = report(folder, "preprocess", recipe, SET)
    assert named["findings"]["splits"]["train"]["found"].keys() == train["found"].keys() - {"unset_variable"}


@pytest.mark.parametrize("recipe", ["r.yaml", "p.yaml"])
def test_named_tools_reach_the_template(folder: Path, recipe: str) -> None:
    without, named = (report(folder, "inspect", recipe, "--row", "0", *sets) for sets in ((), (SET,)))
    assert '"lookup"' in named["prompt"]
    assert named["prompt"].startswith("<|im_start|>system\nTOOLS [")
    assert "TOOLS" not in without["prompt"], "guard"
    assert without["responses"][0]["own_text"] == named["responses"][0]["own_text"]
