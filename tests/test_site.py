"""What the pages say agrees with the code: names of other trainers, errors, JSON documents, files; and the first model trains."""

import ast
import csv
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions, ScoreOptions
from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.preprocess import preprocess
from rmtrain.commands.score import score
from rmtrain.commands.train import train
from rmtrain.errors import EXIT_CODES
from rmtrain.recipe.explain import key_paths, suggest
from rmtrain.recipe.schema import Recipe
from tests.forks import fork_server
from tests.pages import PAGES, blocks, code, commands, rows
from tests.runs import ROOT, planted_rows, tiny_recipe, write_rows

QUIET = Console(quiet=True)
TRAINERS = [
    text for text in PAGES["docs/migrate.md"].split("\n## ") if text.startswith(("TRL", "OpenRLHF", "LLaMA-Factory", "Axolotl"))
]
KEYS = {path for paths in key_paths().values() for path in paths}
MESSAGES = [
    ast.literal_eval(line.strip())
    for line in (ROOT / "tests/golden/messages.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("  ")
]
FEWEST_CHARACTERS = 17
"""Of a message without its variable parts, so that a quote cannot match by accident."""


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda text: text.splitlines()[0])
def test_keys_of_other_trainers_lead_to_ours(trainer: str) -> None:
    """The answer to each name in the tables says the key next to it, which exists; without one, it says what to do."""
    table = list(rows(trainer))
    for theirs, ours, _ in table:
        answer = suggest((theirs.strip("`"),)).message
        assert not answer.startswith(f"unknown key; expected {next(iter(Recipe.model_fields))}"), f"{theirs} has no answer"
        if ours != "–":
            name = ours.strip("`")
            section, _, last = name.rpartition(".")
            assert tuple(0 if part.isdigit() else part for part in name.split(".")) in KEYS, ours
            assert re.search(rf"{re.escape(name)}\b|\b{last}\b|it belongs under {section}\b", answer), f"{theirs}: {answer}"
    assert len(table) > 25, "guard"
    assert len(TRAINERS) == 4


def fixed_and_pattern(message: str) -> tuple[int, re.Pattern[str]]:
    """The number of characters that a message always has, and a pattern for what is printed."""
    parts, depth, fixed = [""], 0, 0
    for character in message:
        depth += (character == "{") - (character == "}" and depth > 0)
        if depth == 0 and character != "}":
            parts[-1] += character
            fixed += 1
        elif depth == 0:
            parts.append("")
    return fixed, re.compile(".*".join(map(re.escape, parts)))


def test_quoted_errors_are_printed_by_rmtrain() -> None:
    """Each heading of the page of errors is a message of the golden file, with values in its variable parts."""
    headings = re.findall(r"^### (.*)$", PAGES["docs/errors.md"], re.MULTILINE)
    patterns = [pattern for fixed, pattern in map(fixed_and_pattern, MESSAGES) if fixed >= FEWEST_CHARACTERS]
    for heading in headings:
        (quote,) = code(heading)
        assert any(pattern.search(quote) for pattern in patterns), quote
    assert len(headings) >= 20
    assert len(patterns) > 500, "guard: the golden file was read"


def test_exit_codes_of_pages_exist() -> None:
    """Except 141, of which only the reader of a pipe learns."""
    page = PAGES["docs/errors.md"]
    listed, headings = (re.findall(pattern, page, re.MULTILINE) for pattern in (r"^\| ([\d, ]+) \|", r"^## .*\((.*)\)$"))
    codes, headed = ({int(number) for text in texts for number in text.split(",")} for texts in (listed, headings))
    text = PAGES["docs/assistants.md"].partition("## Exit codes")[2].partition("\n##")[0]
    named = set(map(int, re.findall(r"\d+", text)))
    assert headed <= codes
    assert codes | {0} == named == {*EXIT_CODES} - {141}


def test_files_that_agents_are_told_of_exist() -> None:
    named = {name for name in code(PAGES["AGENTS.md"]) if re.fullmatch(r"[\w./]+(/|\.(py|md|yaml|html))", name)}
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing - {"report.html"} == set()
    assert len(named) > 30, "guard"
    parts = {f"rmtrain/{path.name}/" for path in (ROOT / "rmtrain").iterdir() if (path / "__init__.py").exists()}
    assert parts <= named, "every folder of the package"


@pytest.mark.usefixtures("no_reload")
def test_json_documents_have_the_documented_keys(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, training={"max_steps": 2})
    run = str(tmp_path / "run")
    lines = write_rows(tmp_path / "in.jsonl", [{"prompt": "q", "response": "a"}])
    documents = {
        "preprocess": preprocess(recipe, QUIET).document,
        "train": train(recipe, QUIET).document,
        "eval": run_eval(EvalOptions(target=run), QUIET).document,
        "score": score(ScoreOptions(run, str(lines), str(tmp_path / "out.jsonl")), QUIET).document,
    }
    documented = {row[0].strip("`"): row[1] for row in rows(PAGES["docs/assistants.md"]) if len(row) == 2}
    assert documented.keys() == documents.keys()
    for verb, document in documents.items():
        inner = documents["preprocess"]["splits"]["train"] | documents["preprocess"]["splits"] if verb == "preprocess" else {}
        assert {*code(documented[verb])} <= document.keys() | inner.keys(), verb
        assert len(code(documented[verb])) >= 4


def test_first_model_page_runs(tmp_path: Path) -> None:
    """The commands of the page work in their order, and the model prefers what its data prefers."""
    page = "docs/first_model.md"
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(planted_rows(160, seed=1))
    (line,) = blocks(page, "json")
    (tmp_path / "in.jsonl").write_text(line, encoding="utf-8")
    verbs = []
    for verb, *words in commands(page, "rmtrain"):
        ended = fork_server().run(verb, *words, cwd=tmp_path, HOME=str(tmp_path))
        assert ended.code == 0, f"{verb} {words}\n{ended.stderr}"
        verbs.append(verb)
    good, bad = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["rewards"]
    assert good > bad
    assert verbs == ["init", "preprocess", "inspect", "train", "train", "eval", "score"], "guard"


@pytest.mark.parametrize("page", PAGES)
def test_python_and_json_blocks_parse(page: str) -> None:
    for block in blocks(page, "python"):
        ast.parse(block.replace("...)", "**others)"))
    for block in blocks(page, "json"):
        json.loads(block)
