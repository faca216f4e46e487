"""What a step of GitHub Actions gets: annotations at the place of errors, tables in its summary, and no command of a stranger."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rmtrain.report.github import annotation
from tests.runs import environment_of_process, tiny_recipe, write_recipe, write_rows


def run(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as in a step of GitHub Actions."""
    environment = environment_of_process(GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(folder), **variables)
    command = [sys.executable, "-m", "rmtrain", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def commands(log: str) -> list[str]:
    """Return the workflow commands that GitHub's runner would carry out in a log."""
    found, token = [], None
    for line in map(str.strip, log.splitlines()):
        if token is not None:
            token = None if line == f"::{token}::" else token
        elif line.startswith("::stop-commands::"):
            token = line.removeprefix("::stop-commands::")
        elif line.startswith("::"):
            found.append(line)
    assert token is None, "commands are read again at the end"
    return found


def test_errors_are_annotated_at_their_place(tmp_path: Path) -> None:
    """Each mistake in a recipe is an annotation with its file, line and column, relative to the repository."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "wrong.yaml").write_text("run: {name: a, output_dir: b}\noptimizer:\n  learing_rate: 1\n")
    done = run(tmp_path, "train", "recipes/wrong.yaml")
    assert done.returncode == 2
    found = commands(done.stderr)
    assert any(
        line.startswith("::error file=recipes/wrong.yaml,line=3,col=3,title=rmtrain::optimizer.learing_rate") for line in found
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == len(errors) > 1, "guard: one annotation for each of several problems"


def test_annotations_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a message nor a file name can end an annotation or begin another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    name = "a,b%.yaml"
    Path(name).touch()
    assert annotation(f"{name}:2:1  x%\n::set-output name=a::b") == (
        "::error file=a%2Cb%25.yaml,line=2,col=1,title=rmtrain::x%25%0A::set-output name=a::b"
    )
    assert annotation("no such file.yaml:2:1  x") == "::error title=rmtrain::no such file.yaml:2:1  x"


def test_texts_of_rows_are_no_commands(tmp_path: Path) -> None:
    """A row that reads like a workflow command is shown and not carried out."""
    rows = [{"prompt": "p", "chosen": f"::warning::planted {n}", "rejected": f"::add-mask::planted {n}"} for n in range(4)]
    recipe = tiny_recipe(tmp_path, data={"max_length": 128})
    write_rows(tmp_path / "train.jsonl", rows)
    done = run(tmp_path, "inspect", str(write_recipe(tmp_path, recipe)), "--row", "0")
    assert done.returncode == 0, done.stderr
    assert "planted" in done.stdout, "guard: the text is shown"
    assert done.stderr.startswith("::stop-commands::"), "before anything else is printed"
    assert commands(done.stderr) == []


def test_summary_has_the_results(tmp_path: Path) -> None:
    """The summary of the step has the numbers of an evaluation and its gates as tables; a summary that cannot be written fails nothing."""
    scores = tmp_path / "scores.jsonl"
    lines = [{"id": str(n), "source": "a|b", "rewards": [1.0, -1.0 if n % 4 else 2.0], "lengths": [3, 4]} for n in range(40)]
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = tmp_path / "summary.md"
    words = ("eval", "--scores", str(scores), "--fail-under", "accuracy=0.9", "--json")
    done = run(tmp_path, *words, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 6, done.stderr
    text = summary.read_text()
    assert "| accuracy | 0.7500 |" in text
    assert "| accuracy | 0.9 | 0.7500 | missed |" in text
    assert json.loads(done.stdout)["accuracy"] == 0.75, "guard: stdout is one document"
    assert [line for line in commands(done.stderr) if "gate accuracy" in line], "a missed gate is annotated"
    unwritable = run(tmp_path, *words[:-1], GITHUB_STEP_SUMMARY=str(tmp_path))
    assert unwritable.returncode == 6
    assert "warning: " in unwritable.stderr
