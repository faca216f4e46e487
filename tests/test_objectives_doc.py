"""docs/OBJECTIVES.md and the recipes that it names: each block trains a tiny model on rows of the described shape."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.runs import ROOT, planted_rows, tiny_recipe, write_recipe, write_rows

DOCUMENT = (ROOT / "docs/OBJECTIVES.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]
SOURCES = [source for block in BLOCKS if isinstance(block, list) for source in block]
OBJECTIVES = [block["objective"] for block in BLOCKS if isinstance(block, dict)]
QUIET = Console(quiet=True)
OF_FORMAT = {"rating": {"type": "regression", "huber": 1.0}, "is_correct": {"type": "binary"}}


def rows_of_all_shapes(count: int) -> list[dict[str, Any]]:
    """Rows with every column that the page names."""
    return [
        {
            **row,
            "answer_a": row["chosen"],
            "answer_b": row["rejected"],
            "judge_says_a": 0.6 + number % 4 / 10,
            "votes_a": 3,
            "votes_b": number % 3,
            "votes_tie": 1,
            "quality": 1 + number % 2,
            "question": row["prompt"],
            "answer": row["chosen"],
            "rating": number % 5,
            "problem": row["prompt"],
            "solutions": [row["chosen"], row["rejected"]],
            "is_correct": [True, False],
        }
        for number, row in enumerate(planted_rows(count, seed=3))
    ]


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize(
    "source", SOURCES, ids=lambda source: str(source.get("label", source.get("target", source.get("weight"))))
)
def test_documented_sources_train(source: dict[str, Any], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows_of_all_shapes(24))
    data = {"train": [source | {"path": str(file), "holdout": 0.3}], "eval": ()}
    objective = OF_FORMAT.get(source.get("target", ""), {"type": "bradley_terry"})
    summary = train(tiny_recipe(tmp_path, data=data, objective=objective, training={"max_steps": 2}), QUIET).document[
        "evaluation"
    ]
    assert summary["loss"] > 0
    assert (summary["targets"] > 0) == (source.get("format") == "scored")


@pytest.mark.usefixtures("no_reload")
def test_documented_objectives_train(tmp_path: Path) -> None:
    """The mixture on three sources of its tags, and the function of the page."""
    file = write_rows(tmp_path / "rows.jsonl", rows_of_all_shapes(24))
    (tmp_path / "my_loss.py").write_text(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[0])
    rated = {
        "path": str(file),
        "format": "scored",
        "prompt": "question",
        "response": "answer",
        "target": "rating",
        "tag": "ratings",
    }
    checked = {"path": str(file), "format": "scored", "prompt": "problem", "responses": "solutions", "target": "is_correct"}
    sources = [{"path": str(file), "holdout": 0.3, "tag": "pairs"}, rated, checked | {"tag": "verifier"}]
    for objective in OBJECTIVES:
        data = {"train": sources if objective["type"] == "by_source" else sources[:1], "eval": (), "allow_overlap": True}
        folder = tmp_path / objective["type"]
        recipe = tiny_recipe(tmp_path, run={"output_dir": str(folder)}, data=data, objective=objective, training={"max_steps": 2})
        assert train(load_recipe(write_recipe(tmp_path, recipe)), QUIET).document["evaluation"]["loss"] > 0
    assert {objective["type"] for objective in OBJECTIVES} == {"by_source", "function"}, "guard"


def helpsteer(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "response": row[side], "helpfulness": number % 5, "correctness": 3}
        for number, row in enumerate(planted_rows(count, seed=3))
        for side in ("chosen", "rejected")
    ]


def preferred(count: int) -> list[dict[str, Any]]:
    return [
        {
            "context": [{"role": "user", "content": row["prompt"]}],
            "response1": row["chosen"],
            "response2": row["rejected"],
            "overall_preference": (-3, -2, -1, 0, 1, 2, 3)[number % 7],
        }
        for number, row in enumerate(planted_rows(count, seed=4))
    ]


def solved(count: int) -> list[dict[str, Any]]:
    return [
        {
            "problem": row["prompt"],
            "generations": [row["chosen"], row["rejected"]],
            "correctness_math_verify": [number % 3 > 0, False],
        }
        for number, row in enumerate(planted_rows(count, seed=5))
    ]


def annotated(count: int) -> list[dict[str, Any]]:
    votes = ("A-is-clearly-better", "A-is-slightly-better", "Tie", "B-is-slightly-better", "B-is-clearly-better")
    return [
        {
            "text": row["prompt"],
            "completion_a": row["chosen"],
            "completion_b": row["rejected"],
            "normal_worker_annotations": [{"overall_pref": votes[number % 5]}, {"overall_pref": votes[0]}],
            "expert_worker_annotations": [{"overall_pref": votes[(number + 1) % 5]}, {"overall_pref": votes[2]}],
        }
        for number, row in enumerate(planted_rows(count, seed=6))
    ]


def shrunk(name: str, rows: list[dict[str, Any]], folder: Path, model: dict[str, Any] | None = None) -> Recipe:
    """The recipe with a tiny model, on a local file in place of its dataset, for two steps."""
    recipe = load_recipe(ROOT / f"recipes/{name}.yaml")
    sections = recipe.model_dump()
    tiny = tiny_recipe(folder, test_rows=1).model_dump()
    for split in ("train", "eval"):
        for source in sections["data"][split]:
            file = write_rows(folder / f"{name}-{split}.jsonl", rows if split == "train" else rows[:8])
            source |= {"path": str(file), "name": None, "split": None, "limit": None, "holdout": source["holdout"] and 0.3}
    for part in ("cache_dir", "chat_template", "max_length"):
        sections["data"][part] = tiny["data"][part]
    sections["run"]["output_dir"] = str(folder / name)
    sections |= {"model": model or tiny["model"], "training": sections["training"] | {"max_steps": 2, "batch_size": 8}}
    sections["evaluation"]["gates"], sections["data"]["allow_overlap"] = {}, True
    return Recipe.model_validate(sections)


@pytest.mark.usefixtures("no_reload")
def test_recipes_of_the_page_train(tmp_path: Path) -> None:
    """Both stages of HelpSteer, the verifier and the votes; the second stage begins with the head of the first."""
    summaries = {}
    for name, rows in (
        ("helpsteer2_regression", helpsteer(24)),
        ("math_verifier", solved(24)),
        ("multipref_soft", annotated(24)),
    ):
        assert f"recipes/{name}.yaml" in DOCUMENT
        summaries[name] = train(shrunk(name, rows, tmp_path), QUIET).document["evaluation"]
    assert summaries["helpsteer2_regression"]["mse"] is not None
    assert summaries["math_verifier"]["brier"] is not None
    assert summaries["multipref_soft"]["accuracy"] is not None
    second = {"path": str(tmp_path / "helpsteer2_regression/model"), "head": "from_checkpoint"}
    summary = train(shrunk("helpsteer3_scaled", preferred(40), tmp_path, second), QUIET).document["evaluation"]
    assert summary["loss"] is not None
    facts = json.loads((tmp_path / "helpsteer3_scaled/model/rmtrain.json").read_text())
    assert facts["objective"]["margin"] == "scale"
    assert facts["step"] == 2, "guard"
