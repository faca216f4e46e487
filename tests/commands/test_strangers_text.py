"""What strangers wrote, in the output of whole commands: no control sequence, no markup, and no traceback for any encoding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import rmtrain
from tests.runs import ROOT, environment_of_process, planted_rows, tiny_recipe, write_recipe, write_rows

EVIL = "\x1b]52;c;aGFja2Vk\x07\x9b2J\u202e\nerror: forged"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with rows and tags of several scripts."""
    folder = tmp_path_factory.mktemp("scripts")
    rows = [{**row, "prompt": f"日本 é {row['prompt']}"} for row in planted_rows(40, seed=1)]
    train = {"path": str(write_rows(folder / "scripts.jsonl", rows)), "tag": "日本 [/x]"}
    eval_ = {"path": str(write_rows(folder / "ev.jsonl", planted_rows(16, seed=9))), "tag": "é [red]"}
    data = {"train": [train], "eval": [eval_], "max_length": 128, "allow_overlap": True}
    return write_recipe(folder, tiny_recipe(folder, data=data, training={"epochs": 1}))


def as_rows(folder: Path, rows: list[dict[str, object]], **source: object) -> Path:
    path = write_rows(folder / "rows.jsonl", rows)
    data = {"train": [{"path": str(path), **source}], "eval": []}
    return write_recipe(folder, tiny_recipe(folder, data=data))


@pytest.mark.parametrize("what", ["column", "template", "scored key", "score id", "missing file", "option"])
def test_errors_are_one_harmless_line(what: str, tmp_path: Path) -> None:
    """A stranger's text in an error is escaped, its line feeds as well."""
    if what == "column":
        ended = rmtrain("preprocess", as_rows(tmp_path, [{"prompt": "q", EVIL: "x", "rejected": "z"}]))
    elif what == "template":
        (tmp_path / "t.jinja").write_text(f"{{{{ raise_exception({EVIL!r}) }}}}", encoding="utf-8")
        ended = rmtrain("preprocess", as_rows(tmp_path, planted_rows(4, seed=1)), f"data.chat_template={tmp_path}/t.jinja")
    elif what == "scored key":
        ended = rmtrain("eval", "--scores", write_rows(tmp_path / "s.jsonl", [{EVIL: 1}]))
    elif what == "score id":
        rows = [{"id": EVIL, "source": "s", "rewards": [float("nan"), 1.0]}]
        ended = rmtrain("eval", "--scores", write_rows(tmp_path / "s.jsonl", rows))
    elif what == "missing file":
        ended = rmtrain("train", tmp_path / f"{EVIL}.yaml")
    else:
        ended = rmtrain("train", "r.yaml", f"--{EVIL}")
    assert 2 <= ended.returncode <= 5
    lines = ended.stderr.splitlines()
    assert all(line.startswith("error: ") and line.isprintable() for line in lines), lines
    assert not any(line.startswith("error: forged") for line in lines)
    if what not in ("scored key",):
        assert "52;c;" in ended.stderr, "guard: the text is in the message"


@pytest.mark.parametrize("name", ["run[", "runs[v2]", "[red]a[", "[link=x]y"])
def test_notices_are_not_markup(name: str, recipe: Path, tmp_path: Path) -> None:
    """A path with brackets, in the notice about a run that was moved, is printed as it is."""
    directory = tmp_path / name / "[/x]"
    directory.mkdir(parents=True)
    (directory / "run.json").write_text('{"run_id": "a", "finished": true}', encoding="utf-8")
    ended = rmtrain("train", recipe, f"run.output_dir={json.dumps(str(directory))}", "training.max_steps=1", "--fresh")
    assert ended.returncode == 0, ended.stderr
    assert f"note: renamed the older run in {directory} to {directory}.old-1" in ended.stderr.splitlines()
    assert "日本 [/x]" in ended.stderr, "guard: the table of rows"


@pytest.mark.parametrize("encoding", [pytest.param("latin-1", marks=pytest.mark.long), "C"])
def test_every_encoding_gets_output(encoding: str, recipe: Path, tmp_path: Path) -> None:
    """Each verb prints in a terminal that lacks characters; JSON stays exact, and files are UTF-8."""
    variables = (
        {"PYTHONIOENCODING": encoding} if encoding != "C" else {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    )

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "rmtrain", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment_of_process(**variables), timeout=200)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.decode("ascii" if encoding == "C" else encoding)

    assert run("inspect", recipe, "--row", "3").count("?") >= 2
    (text,) = run("inspect", recipe, "--row", "3", "--json").splitlines()
    assert "日本 é" in json.loads(text)["prompt"]
    if encoding == "latin-1":
        run("train", recipe, f"run.output_dir={tmp_path}/run")
        run("eval", f"{tmp_path}/run")
        written = [file for file in (tmp_path / "run").rglob("*") if file.suffix in (".jsonl", ".json", ".md", ".html", ".yaml")]
        assert len(written) > 8, "guard"
        assert any("日本" in file.read_text(encoding="utf-8") for file in written)


@pytest.mark.parametrize(
    "verb",
    [
        ["schema"],
        ["inspect", "--limit", "3", "--ids"],
        pytest.param(["preprocess"], marks=pytest.mark.long),
        pytest.param(["-h"], marks=pytest.mark.long),
    ],
    ids=lambda words: words[0],
)
def test_closed_stdout_is_quiet(verb: list[str], recipe: Path) -> None:
    """A reader that has gone, such as `head`, ends the command with 141 and no message."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [verb[0], str(recipe), *verb[1:]] if verb[0] in ("preprocess", "inspect") else verb
    environment = environment_of_process()
    command = [sys.executable, "-m", "rmtrain", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, timeout=100)
    os.close(writing)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert "error" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_closed_stderr_saves_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """Training whose reader of progress goes away stops as after SIGTERM: its step is saved, and the run can be resumed."""
    reading, writing = os.pipe()
    os.close(reading)
    words = ["train", str(recipe), f"run.output_dir={tmp_path}/run"]
    command = [sys.executable, "-m", "rmtrain", *words]
    ended = subprocess.run(command, stdout=writing, stderr=writing, cwd=ROOT, env=environment_of_process(), timeout=100)
    os.close(writing)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert not (tmp_path / "run/model").exists(), "guard: it did not go on to the end"
    resumed = rmtrain(*words)
    assert resumed.returncode == 0, resumed.stderr
