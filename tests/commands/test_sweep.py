"""`rmtrain train --sweep`: every combination once, resumed where it stopped, with the results of single runs."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmtrain.commands import sweep as command
from rmtrain.commands.sweep import run_process
from rmtrain.errors import Stopped
from tests import forks
from tests.faults.runs import sha256, wait_until
from tests.forks import rmtrain
from tests.runs import ROOT, environment_of_process, metrics_of, tiny_recipe, write_recipe


def sweep_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of four steps, with a checkpoint after each."""
    folder.mkdir(exist_ok=True)
    sections: dict[str, Any] = {
        "checkpoints": {"every": 1, "minutes": None},
        "run": {"name": "hh", "output_dir": str(folder / "hh")},
        **changes,
    }
    return write_recipe(folder, tiny_recipe(folder, rows=32, test_rows=8, **sections))


def model(run: Path) -> str:
    """The hash of the exported weights."""
    return sha256(run / "model/model.safetensors")


def times(run: Path) -> dict[str, int]:
    """When each file of a run was last written."""
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Run the processes of a sweep in forks, which saves their imports; returns their command lines."""
    commands: list[Sequence[str]] = []

    def run(line: Sequence[str]) -> int:
        assert list(line[:3]) == [sys.executable, "-m", "rmtrain"]
        commands.append(line[3:])
        return forks.rmtrain(*line[3:]).returncode

    monkeypatch.setattr(command, "run_process", run)
    return commands


def called(*words: str | Path, capsys: Any) -> tuple[int, dict[str, Any], str]:
    """Call the command line in this process: exit code, document and what it said."""
    from rmtrain.cli import app
    from rmtrain.command_line.exits import exit_with_error

    try:
        code = app([*map(str, words), "--json"], standalone_mode=False) or 0
    except BaseException as error:
        with pytest.raises(SystemExit) as ended:
            exit_with_error(error)
        code = ended.value.code
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_sweep_equals_single_runs(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    """Each combination has the weights of the run by itself; a second call trains nothing and changes nothing."""
    recipe = sweep_recipe(tmp_path)
    sweep = ("train", recipe, "training.batch_size=16", "--sweep", "optimizer.lr=1e-3,2e-3 run.seed=1,2")
    code, document, err = called(*sweep, capsys=capsys)
    assert code == 0, err
    runs = {Path(run["path"]).name: run for run in document["runs"]}
    assert list(runs) == ["lr1e-3-seed1", "lr1e-3-seed2", "lr2e-3-seed1", "lr2e-3-seed2"]
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert document["differing"] == ["run.seed", "optimizer.lr"]
    assert [group["accuracy"]["n"] for group in document["seeds"]] == [2, 2]
    single = tmp_path / "single"
    arguments = ("training.batch_size=16", "optimizer.lr=2e-3", "run.seed=2", f"run.output_dir={single}")
    assert rmtrain("train", recipe, *arguments).returncode == 0
    assert model(single) == model(tmp_path / "hh/lr2e-3-seed2")
    assert len({model(tmp_path / "hh" / name) for name in runs}) == 4, "guard: the values matter"
    before = times(tmp_path / "hh")
    code, again, err = called(*sweep, capsys=capsys)
    assert (code, len(forked)) == (0, 4), err
    assert again["runs"] == document["runs"]
    assert times(tmp_path / "hh") == before
    assert err.count(" is finished: ") == 4


def test_failed_run_does_not_stop_the_others(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    """The exit code is that of the worst run, and each that failed is named with the reason; the next call tries it again."""
    recipe = sweep_recipe(
        tmp_path, evaluation={"gates": {"accuracy_low": 0.99}}, training={"batch_size": 32, "precision": "float32"}
    )
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    sweep = ("train", recipe, "--sweep", f"data.train.0.path={broken},{tmp_path}/train.jsonl")
    code, document, err = called(*sweep, capsys=capsys)
    assert code == 3, err
    assert {Path(path).name: failed for path, failed in document["failures"].items()} == {
        "train.0.path-broken.jsonl": 3,
        "train.0.path-train.jsonl": 6,
    }
    assert [run["state"] for run in document["runs"]] == ["failed", "finished"]
    assert document["runs"][1]["gates_missed"] == ["accuracy_low"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "broken.jsonl: exit code 3: the data was refused" in errors[0]
    assert "train.jsonl: exit code 6: a gate was missed" in errors[1]
    code, _, _ = called(*sweep, capsys=capsys)
    assert (code, len(forked)) == (3, 3), "guard: the finished one is not trained again"


def test_everything_is_checked_before_the_first_run(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    recipe = sweep_recipe(tmp_path)
    for words, code, parts in (
        (["--sweep", "optimizer.lr=1e-3,-1 run.seed=1,x"], 2, ["optimizer.lr", "run.seed"]),
        (["--sweep", "run.seed=1,2", "--fresh"], 2, ["--fresh: cannot be combined with --sweep"]),
        (["--sweep", "run.seed=1,2", "--accelerate-config", "nothing"], 2, ["--accelerate-config nothing"]),
        (["--sweep", "run.output_dir=/proc/a,/proc/b"], 2, ["/proc"]),
    ):
        ended, document, err = called("train", recipe, *words, capsys=capsys)
        assert (ended, document) == (code, {}), err
        assert all(part in err for part in parts), err
    (tmp_path / "hh/seed2").mkdir(parents=True)
    (tmp_path / "hh/seed2/mine.txt").write_text("x")
    ended, _, err = called("train", recipe, "--sweep", "run.seed=1,2", capsys=capsys)
    assert (ended, "seed2" in err) == (4, True)
    assert not forked
    assert [path.name for path in tmp_path.rglob("run.json")] == [], "guard: nothing was started"


def test_dry_run_lists_the_runs(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    recipe = sweep_recipe(tmp_path, training={"batch_size": 32, "precision": "float32"})
    assert called("train", recipe, "--sweep", "run.seed=1", "run.output_dir=" + str(tmp_path / "hh/seed1"), capsys=capsys)[0] == 0
    code, document, err = called("train", recipe, "--sweep", "run.seed=1,2", "--dry-run", capsys=capsys)
    assert code == 0, err
    assert [(Path(run["directory"]).name, run["todo"]) for run in document["sweep"]] == [("seed1", "skip"), ("seed2", "start")]
    assert "run.seed=2" in err
    assert len(forked) == 1


def test_options_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(command, "run_process", lambda line: commands.append(list(line[3:])) or 3)
    recipe = sweep_recipe(tmp_path)
    words = (
        "train",
        "--recipe",
        recipe,
        "--deterministic",
        "--processes",
        "2",
        "--accelerate-config",
        "cpu",
        "--sweep",
        "run.seed=1,2",
    )
    code, document, _ = called(*words, capsys=capsys)
    assert code == 3
    assert [run["problems"] for run in document["runs"]] == [["the data was refused"]] * 2
    for seed, line in enumerate(commands, start=1):
        assert line[0] == "train"
        for part in (
            ["--recipe", str(recipe)],
            ["--processes", "2", "--accelerate-config", "cpu"],
            ["training.deterministic=true"],
        ):
            assert any(line[place : place + len(part)] == part for place in range(len(line))), part
        assert f"run.seed={seed}" in line


@pytest.mark.parametrize(
    ("script", "code"),
    [("raise SystemExit(6)", 6), ("import os; os.kill(os.getpid(), 9)", 75), ("raise SystemExit(255)", 255), ("", 0)],
)
def test_exit_codes_are_handed_on(script: str, code: int) -> None:
    assert run_process([sys.executable, "-c", script]) == code
    with pytest.raises(Stopped) as stopped:
        run_process([sys.executable, "-c", "raise SystemExit(143)"])
    assert stopped.value.signal == signal.SIGTERM, "a run that was stopped by itself stops the sweep"


def test_signal_is_forwarded_and_awaited(tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    script = f"""
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path({str(saved)!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""

    def stop() -> None:
        wait_until(ready.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Stopped) as stopped:
        run_process([sys.executable, "-c", script])
    assert stopped.value.exit_code == 143
    assert saved.exists(), "guard: the process had time to save"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_sweep_goes_on_where_it_stopped(number: signal.Signals, tmp_path: Path) -> None:
    """A sweep of nine runs is stopped as a whole in its third run; the same command completes it, with the weights of single runs."""
    recipe = sweep_recipe(tmp_path, training={"batch_size": 4, "precision": "float32"})
    words = [sys.executable, "-m", "rmtrain", "train", str(recipe), "--json"]
    words += ["--sweep", "optimizer.lr=1e-3,2e-3,3e-3 run.seed=1,2,3"]
    environment = environment_of_process()
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    third = tmp_path / "hh/lr1e-3-seed3"
    wait_until(lambda: len(list(third.glob("checkpoints/step-*"))) > 0)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == (143 if number == signal.SIGTERM else -9), stderr
    finished = sorted(path.parent for path in (tmp_path / "hh").glob("*/run.json") if json.loads(path.read_text())["finished"])
    assert [run.name for run in finished] == ["lr1e-3-seed1", "lr1e-3-seed2"]
    if number == signal.SIGTERM:
        assert "stopped by SIGTERM in run 3 of 9; run the same command" in stderr
    assert len(metrics_of(third)) >= 1
    before = [times(run) for run in finished]
    ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from step" in ended.stderr, "guard: the third one was resumed"
    assert [times(run) for run in finished] == before
    document = json.loads(ended.stdout)
    assert [run["state"] for run in document["runs"]] == ["finished"] * 9
    assert [group["accuracy"]["n"] for group in document["seeds"]] == [3, 3, 3]
    for lr, seed in (("1e-3", 3), ("3e-3", 1)):
        single = tmp_path / f"single-{lr}-{seed}"
        overrides = (f"optimizer.lr={lr}", f"run.seed={seed}", f"run.output_dir={single}")
        assert rmtrain("train", recipe, *overrides).returncode == 0
        assert model(single) == model(tmp_path / f"hh/lr{lr}-seed{seed}")
