"""The README's recipe is valid and its commands do what they say, in the order in which they stand."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from rmtrain.recipe.load import load_recipe
from tests.forks import fork_server, rmtrain
from tests.runs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def test_recipe_is_valid(tmp_path: Path) -> None:
    (recipe,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "recipe.yaml").run.name == "hh"


def test_make_has_every_target_asked_for() -> None:
    """The README and CI ask only for targets of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = re.findall(r"make ([a-z]+)", README + (ROOT / ".ci/run").read_text())
    assert set(asked) <= targets
    assert {"quickstart", "test"} <= set(asked)


def test_oldest_versions_are_the_lower_bounds() -> None:
    """`make oldest` tests exactly what pyproject.toml promises; torch has a reason in the file of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", bound).groups() for bound in project["dependencies"])  # type: ignore[union-attr]
    lines = [line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    for name in promised.keys() - {"torch"}:
        assert Version(tested[name]) == Version(promised[name]), name
    assert len(promised) > 10, "guard"


def test_commands_run(tmp_path: Path) -> None:
    """The README's commands run in its order, in an empty folder, and the quickstart keeps its promise."""
    commands = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("rmtrain ")]
    assert {command[0] for command in commands} == {"init", "preprocess", "inspect", "train", "eval", "export", "schema"}, "guard"
    for command in commands:
        ended = fork_server().run(*command, faults=(), cwd=tmp_path, HOME=str(tmp_path))
        assert ended.code == 0, f"{command}\n{ended.stderr}"
    again = rmtrain("eval", "runs/mine", "--json", cwd=tmp_path, HOME=str(tmp_path))
    document = json.loads(again.stdout)
    assert document["accuracy"] >= 0.97, "the promise of the quickstart"
    assert {"accuracy", "accuracy_low", "accuracy_high", "n", "ties", "loss", "longer_wins", "sources"} <= set(document)
    missed = rmtrain("eval", "runs/mine", "--fail-under", "loss=0.0", cwd=tmp_path, HOME=str(tmp_path))
    assert missed.returncode == 6
    assert re.search(r"error: gate loss: required 0\.0, got .*, missed by", missed.stderr)


def test_quickstart_data_is_what_its_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tests/make_sentiment.py"), str(tmp_path)], check=True)
    texts: list[str] = []
    for name in ("sentiment_train.jsonl", "sentiment_test.jsonl"):
        made = (tmp_path / name).read_text(encoding="utf-8")
        assert made == (ROOT / "recipes/data" / name).read_text(encoding="utf-8")
        texts += [json.loads(line)[side] for line in made.splitlines() for side in ("chosen", "rejected")]
    assert len(set(texts)) == len(texts) == 2000, "every continuation occurs once"


@pytest.mark.parametrize("verb", ["init", "preprocess", "inspect", "train", "runs", "eval", "export", "score", "serve", "schema"])
def test_every_verb_has_help(verb: str) -> None:
    result = rmtrain(verb, "--help")
    assert result.returncode == 0
    assert verb in result.stdout
    assert verb in ("init", "schema") or "--json" in result.stdout
