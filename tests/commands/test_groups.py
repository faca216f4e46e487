"""Rows gathered by prompt, in `preprocess` and `inspect`."""

import json
import random
import re

import pytest
from rich.console import Console

from rmtrain.command_line.options import CommandResult, InspectOptions
from rmtrain.commands.inspect import inspect
from rmtrain.commands.preprocess import preprocess
from rmtrain.errors import DataError
from rmtrain.recipe.schema import Recipe
from tests.runs import planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("groups")
    rows = planted_rows(24, seed=3)
    for row in rows[12:]:
        row["prompt"] = rows[random.Random(row["prompt"]).randrange(6)]["prompt"]
    file = write_rows(folder / "groups.jsonl", rows)
    source = {"path": str(file), "group_by_prompt": True}
    return tiny_recipe(folder, data={"train": [source], "processes": 2, "max_drop_fraction": 1.0})


def shown(result: CommandResult) -> str:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(result.report)
    return " ".join(capture.get().split())


def test_preprocess_counts_gathered_rows(recipe: Recipe) -> None:
    result = preprocess(recipe, QUIET)
    train = result.document["splits"]["train"]
    counts = train["waterfall"]["groups"]
    assert counts["kept"] + counts["gathered"] == counts["read"] == 24
    assert (train["comparisons"], train["preferences"]) == (12, 24)
    assert train["responses"] <= 48
    text = shown(result)
    assert re.search(r"gathered +12 +50\.0 %", text)
    assert re.search(r"\b12 comparisons\b.*\b24 preferences\b", text)
    json.dumps(result.document)


def test_inspect_shows_responses_and_preferences(recipe: Recipe) -> None:
    documents = [inspect(recipe, QUIET, InspectOptions(row=str(number))).document for number in range(12)]
    document = max(documents, key=lambda document: len(document["responses"]))
    assert len(document["responses"]) > 2, "guard: rows were gathered"
    assert [response["name"] for response in document["responses"]][:2] == ["response 0", "response 1"]
    assert {"winner", "loser", "margin", "probability", "weight"} == document["preferences"][0].keys()
    json.dumps(documents)
    text = shown(inspect(recipe, QUIET, InspectOptions(row=document["id"])))
    assert "0 over 1, 2 over 3" in text
    pair = next(document for document in documents if len(document["responses"]) == 2)
    assert [response["name"] for response in pair["responses"]] == ["chosen", "rejected"]
    assert "margin 0 " in shown(inspect(recipe, QUIET, InspectOptions(row=pair["id"])))


def test_inspect_names_the_comparison_of_a_row(recipe: Recipe) -> None:
    """A row that was gathered into a comparison is found there."""
    with pytest.raises(DataError, match=r"^--row groups:23: .*groups:\d"):
        inspect(recipe, QUIET, InspectOptions(row="groups:23"))
