"""Runs that are moved and called from anywhere; runs without a model; and the commands that a run prints."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.commands.evaluate import evaluate, find_model
from rmtrain.commands.train import train
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.schema import Recipe
from tests.faults.runs import left
from tests.forks import FAST, fork_server, rmtrain
from tests.model.builders import make_base, make_tokenizer
from tests.runs import tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)
ROOT = Path("/")
STEPS = 6


def relative_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of six steps all of whose paths are relative to `folder`."""
    data = {"train": [{"path": "train.jsonl"}], "eval": [{"path": "test.jsonl"}], "cache_dir": "cache", "max_length": 96}
    sections = {
        "run": {"name": "tiny", "output_dir": "runs/tiny"},
        "data": {**data, "chat_template": "simple_chat"},
        "checkpoints": {"every": 2, "minutes": None},
    }
    return write_recipe(folder, tiny_recipe(folder, **{**sections, **changes}))


def test_moved_run_evaluates_exports_and_repeats(tmp_path: Path) -> None:
    """A finished run is the same from `/`, after its directory was moved."""
    write_recipe_in(tmp_path / "here")
    trained = rmtrain("train", "recipe.yaml", "--json", cwd=tmp_path / "here")
    assert trained.returncode == 0, trained.stderr
    moved = Path(shutil.move(tmp_path / "here/runs/tiny", tmp_path / "there"))
    text = (moved / "recipe.yaml").read_text()
    assert all(f"{tmp_path}/here/{name}" in text for name in ("train.jsonl", "test.jsonl", "cache", "runs/tiny"))
    assert load_recipe(moved / "recipe.yaml").run.output_dir == str(moved)

    evaluated = rmtrain("eval", moved, "--json", cwd=ROOT)
    document, expected = json.loads(evaluated.stdout), json.loads(trained.stdout)["evaluation"]
    assert {key: document[key] for key in expected} == expected
    assert document["scores"] == str(moved.relative_to(ROOT)) or document["scores"] == f"{moved}/scores.jsonl"
    assert rmtrain("export", moved, cwd=ROOT).returncode == 0
    again = rmtrain("train", moved / "recipe.yaml", cwd=ROOT)
    assert (again.returncode, str(moved.relative_to(ROOT)) in again.stderr) == (4, True), "it is this run that is finished"
    assert not (tmp_path / "here/runs/tiny").exists(), "guard: it was moved"


def write_recipe_in(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    return relative_recipe(folder, **changes)


def test_moved_unfinished_run_resumes_from_anywhere(tmp_path: Path) -> None:
    """Until it has a model, `eval` and `score` name `rmtrain export`; resumed from `/` it ends as if never stopped."""
    write_recipe_in(tmp_path / "whole")
    write_recipe_in(tmp_path / "here")
    assert fork_server().run("train", "recipe.yaml", cwd=tmp_path / "whole").code == 0
    killed = fork_server().run("train", "recipe.yaml", cwd=tmp_path / "here", faults=[("step", 6, "kill"), *FAST])
    assert killed.code == -9
    moved = Path(shutil.move(tmp_path / "here/runs/tiny", tmp_path / "there"))
    rows = write_rows(tmp_path / "in.jsonl", [{"prompt": "a", "response": "b"}])
    for command in (["eval", moved], ["score", moved, rows, "-o", tmp_path / "out.jsonl"]):
        refused = rmtrain(*command, cwd=ROOT)
        assert refused.returncode == 4
        assert f"rmtrain export {moved}`" in refused.stderr
        assert f"rmtrain train {moved}/recipe.yaml`" in refused.stderr
    checkpoint = moved / "checkpoints/step-00000004"
    for call in (lambda path: evaluate(path), lambda path: RewardScorer(path)):
        with pytest.raises(CheckpointError, match=rf"rmtrain export {re.escape(str(checkpoint))}"):
            call(checkpoint)

    exported = rmtrain("export", moved, "--json", cwd=ROOT)
    document = json.loads(exported.stdout)
    assert (document["step"], Path(document["model"]).parent) == (4, moved / "exports")
    assert rmtrain("score", document["model"], rows, "-o", tmp_path / "out.jsonl", cwd=ROOT).returncode == 0
    shutil.move(tmp_path / "here", tmp_path / "data")  # the files as well: now the recipe in the run names none that exist
    lost = rmtrain("train", moved, cwd=ROOT)
    assert lost.returncode == 3
    assert f"{tmp_path}/here/train.jsonl does not exist" in lost.stderr
    resumed = fork_server().run("train", "recipe.yaml", f"run.output_dir={moved}", cwd=tmp_path / "data")
    assert resumed.code == 0, resumed.stderr
    assert "step 4" in resumed.stderr, "guard: it was resumed"
    assert left(moved, STEPS)["sha256"] == left(tmp_path / "whole/runs/tiny", STEPS)["sha256"]


def test_adapter_names_its_base_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter trained on a relative path finds its base from another directory."""
    monkeypatch.chdir(tmp_path)
    make_base(tmp_path / "base", make_tokenizer())
    sections = tiny_recipe(
        tmp_path, run={"output_dir": "runs/lora"}, data={"max_length": 128}, training={"max_steps": 1}
    ).model_dump()
    train(Recipe.model_validate({**sections, "model": {"path": "base"}, "lora": {"rank": 2}}), QUIET)
    config = json.loads((tmp_path / "runs/lora/model/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    monkeypatch.chdir("/")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    adapter, merged = (RewardScorer(tmp_path / "runs/lora" / name).score([messages]) for name in ("model/adapter", "model"))
    assert adapter == pytest.approx(merged, abs=1e-5)


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("data.train.0.path=train.jsonl", 3, "train.jsonl does not exist in /"),
        ("data.train.0.path=rows", 3, "rows: not in /"),
        ("data.chat_template=mine.jinja", 2, "mine.jinja does not exist in /"),
        ("data.benchmarks=[bench.jsonl]", 3, "bench.jsonl does not exist in /"),
    ],
)
def test_missing_file_names_the_searched_directory(override: str, code: int, named: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path))
    for verb in ("preprocess", "train"):
        refused = rmtrain(verb, recipe, override, cwd=ROOT)
        assert refused.returncode == code, refused.stderr
        assert named in refused.stderr
    absent = rmtrain("train", "recipe.yaml", cwd=ROOT)
    assert absent.returncode == 2
    assert "recipe.yaml" in absent.stderr
    assert absent.stderr.rstrip().endswith(" in /")


def test_printed_commands_work_as_printed(tmp_path: Path) -> None:
    """From the directory where they are printed, which has spaces, as has the run."""
    here = tmp_path / "my work"
    write_recipe_in(here, run={"name": "tiny", "output_dir": "the runs/it's mine"})
    trained = fork_server().run("train", "recipe.yaml", cwd=here, faults=[("reload", 0, "skip")])
    assert trained.code == 0, trained.stderr
    lines = trained.stdout.partition("\nnext\n")[2].splitlines()
    commands = [shlex.split(line) for line in lines if not line.strip().startswith("#")]
    assert len(commands) == 2, "guard: they were found"
    for words in commands:
        if words[1] == "-c":
            script = tmp_path / "script.py"
            script.write_text(words[2])
            ended = fork_server().run(program=str(script), cwd=here)
            assert re.fullmatch(r"\[-?\d.*\]\n", ended.stdout), ended.stderr
        else:
            words = words[1:] if words[0] == "rmtrain" else words[3:]
            ended = fork_server().run(*words, cwd=here)
        assert ended.code == 0, (words, ended.stderr)
    assert commands[1][0] in ("python", sys.executable)
    report = next(line for line in trained.stdout.splitlines() if line.startswith("report "))
    assert (here / report.split(maxsplit=1)[1].partition(".html")[0]).with_suffix(".html").is_file()


@pytest.mark.usefixtures("no_reload")
def test_next_commands_without_evaluation_data(tmp_path: Path) -> None:
    """A run without evaluation data does not print a command that needs some."""
    commands = train(tiny_recipe(tmp_path, data={"eval": []}, training={"max_steps": 1}), QUIET).commands.plain
    assert " eval " not in commands
    assert "RewardScorer" in commands


def test_run_is_called_from_its_own_directory(tmp_path: Path) -> None:
    """`cd RUN` and `rmtrain train recipe.yaml` resume the run, and refuse it once it is finished."""
    write_recipe_in(tmp_path / "here")
    run = tmp_path / "here/runs/tiny"
    assert fork_server().run("train", "recipe.yaml", cwd=tmp_path / "here", faults=[("step", 4, "kill"), *FAST]).code == -9
    assert fork_server().run("train", "recipe.yaml", cwd=run).code == 0
    finished = rmtrain("train", ".", cwd=run)
    assert finished.returncode == 4
    assert "--fresh" in finished.stderr


def test_several_recipes_stand_for_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rmtrain eval base.yaml mine.yaml` evaluates the model of the run that `train` with the same words makes."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(dump_recipe(tiny_recipe(tmp_path)), encoding="utf-8")
    Path("mine.yaml").write_text("run: {output_dir: runs/mine}\n", encoding="utf-8")
    options = EvalOptions(target="base.yaml", parts=["mine.yaml"])
    with pytest.raises(CheckpointError, match=r"^runs/mine/model: .*`rmtrain train base\.yaml mine\.yaml` first"):
        find_model(options)
    Path("runs/mine/model").mkdir(parents=True)
    Path("runs/mine/run.json").write_text("{}", encoding="utf-8")
    found = find_model(options)
    assert (found.model, found.run, found.by_recipe) == ("runs/mine/model", Path("runs/mine"), True)
    for mixed in (replace(options, target="runs/mine"), replace(options, recipe=Path("base.yaml"))):
        with pytest.raises(RecipeError, match=r"^mine\.yaml: expected one model"):
            find_model(mixed)
