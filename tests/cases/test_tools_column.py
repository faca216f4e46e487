"""A column of tools that the chat template could write: it is a finding until the recipe names it, and then it is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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


def test_exported_model_reads_the_same_tools(folder: Path) -> None:
    """A line with `tools` gets the reward that transformers alone gives the exported model."""
    assert rmtrain("train", "r.yaml", SET, LONGER, "training.max_steps=1", cwd=folder).returncode == 0
    row = json.loads((folder / "d.jsonl").read_text().splitlines()[0])
    talk, tools = [*row["prompt"], *row["rejected"]], row["tools"]
    lines = [{"messages": talk, "tools": tools}, {"messages": talk, "tools": json.dumps(tools)}, {"messages": talk}]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rmtrain("score", "out/model", "in.jsonl", "-o", "out.jsonl", cwd=folder).returncode == 0
    rewards = [json.loads(line)["reward"] for line in (folder / "out.jsonl").read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out/model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out/model")
    expected = []
    for given in (tools, tools, None):
        ids = tokenizer.apply_chat_template(talk, tools=given, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            expected.append(model(**ids).logits[0, 0].item())
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert abs(rewards[0] - rewards[2]) > 1e-4, "guard: the tools matter"
