"""`rmtrain audit`: planted wrong labels are found and counted, each row is scored by a model that has not seen it, and audits resume."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmtrain.commands import sweep
from rmtrain.data.comparison import is_held_out
from rmtrain.evaluation.scores_file import read_scores
from rmtrain.recipe.sources import Fold
from tests import forks
from tests.commands.test_length_bias import TOPICAL, topical_rows
from tests.commands.test_sweep import called, model, times
from tests.faults.runs import wait_until
from tests.runs import ROOT, environment_of_process, planted_rows, tiny_recipe, write_recipe, write_rows

MARGIN_OF_ERROR = 0.07
ROWS = 2000


def flip(rows: list[dict[str, str]], rate: float, seed: int = 7) -> set[int]:
    """Exchange the sides of some rows, in place; returns their numbers."""
    rng = random.Random(seed)
    wrong = {number for number in range(len(rows)) if rng.random() < rate}
    for number in wrong:
        rows[number]["chosen"], rows[number]["rejected"] = rows[number]["rejected"], rows[number]["chosen"]
    return wrong


def audited_recipe(folder: Path, rows: int, rate: float, **changes: Any) -> tuple[Path, set[int]]:
    """A recipe whose training file has wrong labels, and their numbers; the labels of its evaluation file are right."""
    folder.mkdir(exist_ok=True)
    sections: dict[str, Any] = {
        "run": {"name": "hh", "output_dir": str(folder / "hh")},
        "optimizer": {"lr": 4e-3},
        "training": {"batch_size": 16, "precision": "float32", "epochs": 2},
        "tracking": {"log_every": 50},
    }
    recipe = tiny_recipe(folder, rows=rows, test_rows=rows // 6, **(sections | changes))
    noisy = planted_rows(rows, seed=1)
    wrong = flip(noisy, rate)
    write_rows(folder / "train.jsonl", noisy)
    return write_recipe(folder, recipe), wrong


def suspects_of(document: dict[str, Any]) -> set[int]:
    """The numbers of the listed rows."""
    lines = [json.loads(line) for line in Path(document["list"]).read_text().splitlines()]
    assert len(lines) == document["suspects"]
    assert [line["id"] for line in lines[:10]] == [line["id"] for line in document["most_suspect"]]
    return {int(line["id"].partition(":")[2]) for line in lines}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Run the processes of an audit in forks, which saves their imports; returns their command lines."""
    commands: list[Sequence[str]] = []

    def run(line: Sequence[str]) -> int:
        commands.append(line[3:])
        return forks.rmtrain(*line[3:]).returncode

    monkeypatch.setattr(sweep, "run_process", run)
    return commands


def test_audit_finds_wrong_labels(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    """Most suspects are wrong labels; dropping and flipping act on exactly these; the same command again trains nothing."""
    recipe, wrong = audited_recipe(tmp_path, rows=360, rate=0.2)
    words = ("audit", recipe, "--folds", "3", "--effect")
    code, document, err = called(*words, capsys=capsys)
    assert code == 0, err
    assert len(forked) == 6
    suspects = suspects_of(document)
    assert len(suspects & wrong) > 0.8 * len(suspects) > 0.4 * len(wrong)
    assert document["noise"]["low"] < len(wrong) / 360 < document["noise"]["high"]

    folder = tmp_path / "hh-audit"
    assert Path(document["directory"]) == folder
    scored = read_scores(folder / "scores.jsonl")
    assert [row.id for row in scored] == [f"train:{number}" for number in range(360)], "each row once, in the order of the source"
    for number in range(1, 4):
        run = folder / f"fold-{number}-of-3"
        prompts = {int(row.prompt, 16) for row in read_scores(run / "scores.jsonl")}
        fold = next(word for word in forked[number - 1] if word.startswith("data.train.0.fold="))
        assert fold == f"data.train.0.fold={{number: {number}, of: 3}}"
        assert all(is_held_out(prompt, None, Fold(number=number, of=3)) for prompt in prompts)
        assert 80 < len(prompts) < 160

    exchanged = planted_rows(360, seed=1)
    flip(exchanged, 0.2)
    for number in suspects:
        row = exchanged[number]
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    other = tmp_path / "other"
    other.mkdir()
    write_rows(other / "train.jsonl", exchanged)
    single = ("train", recipe, f"data.train.0.path={other}/train.jsonl", f"run.output_dir={tmp_path}/single")
    assert forks.rmtrain(*single).returncode == 0
    assert model(tmp_path / "single") == model(folder / "flipped"), "flipped labels are those of a corrected file"
    assert len({model(folder / name) for name in ("as_labelled", "dropped", "flipped")}) == 3

    assert set(document["effect"]) == {"as_labelled", "dropped", "flipped"}
    assert (
        document["effect"]["dropped"]["low"]
        <= document["effect"]["dropped"]["difference"]
        <= document["effect"]["dropped"]["high"]
    )
    before = times(folder)
    code, again, err = called(*words, capsys=capsys)
    assert (code, again) == (0, document), err
    assert len(forked) == 6
    changed = {path for path, time in times(folder).items() if before[path] != time}
    assert changed <= {str(folder / name) for name in ("scores.jsonl", "scores.settings.json", "suspects.jsonl")}


def test_wrong_audits_are_refused_at_once(tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    recipe, _ = audited_recipe(tmp_path, rows=16, rate=0.0)
    rated = "{path: a.jsonl, format: scored, response: r, target: t}"
    grouped = "{path: b.jsonl, format: ranked, group_by: p, response: r, score: s}"
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    cases: list[tuple[Sequence[str], int, list[str]]] = [
        ([f"data.train=[{rated}]", "objective={type: regression}"], 2, ["data.train.0.format"]),
        ([f"data.train=[{grouped}]"], 2, ["data.train.0.group_by"]),
        (["data.train.0.suspects.file=x.jsonl", "data.train.0.fold={number: 1, of: 2}"], 2, ["0.suspects", "0.fold"]),
        (["data.eval=[]", "--effect"], 2, ["--effect", "data.eval"]),
        (["--output", str(run)], 2, ["--output", "directory of a run"]),
        (["--output", str(recipe)], 2, ["--output"]),
        (["--folds", "1"], 2, ["--folds"]),
        (["data.train.0.path=/none.jsonl"], 3, ["fold-1-of-5", "exit code 3"]),
    ]
    for words, expected, parts in cases:
        code, document, err = called("audit", recipe, *words, capsys=capsys)
        assert (code, document) == (expected, {}), err
        assert all(part in err for part in parts), err
    assert len(forked) == 1, "the first fold that fails ends the audit"
    assert not (tmp_path / "hh-audit/suspects.jsonl").exists()


def noisy_topics(folder: Path, rate: float) -> tuple[Path, set[int]]:
    """A harder task: which response is about the prompt, whatever its length; see `test_length_bias`."""
    recipe, _ = audited_recipe(folder, 8, 0.0, **TOPICAL)
    rows = topical_rows(ROWS, 1, 0.5, 1.0)
    wrong = flip(rows, rate)
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", topical_rows(1000, 2, 0.5, 1.0))
    return recipe, wrong


@pytest.mark.long
@pytest.mark.parametrize(("task", "rate"), [("topics", 0.05), ("topics", 0.2), ("words", 0.35)])
def test_planted_noise_is_measured_and_removed(task: str, rate: float, tmp_path: Path, forked: list[Any], capsys: Any) -> None:
    """The estimate is near the true rate or above it; a model trained without the suspects is better on right labels.

    Of the harder task, which response is about the prompt, the model learns next to nothing from 2,000 labels of which a third is wrong.
    """
    recipe, wrong = noisy_topics(tmp_path, rate) if task == "topics" else audited_recipe(tmp_path, ROWS, rate)
    code, document, err = called("audit", recipe, "--effect", capsys=capsys)
    assert code == 0, err
    suspects, true = suspects_of(document), len(wrong) / ROWS
    assert suspects, document
    precision, recall = len(suspects & wrong) / len(suspects), len(suspects & wrong) / len(wrong)
    with capsys.disabled():
        print(f"\n{rate}: true {true:.3f}, noise {document['noise']}, precision {precision:.3f}, recall {recall:.3f}")
        print(f"accuracy {document['accuracy']:.3f}, {len(suspects)} suspects, {document['effect']}")
    assert true - MARGIN_OF_ERROR < document["noise"]["rate"] < true + 2 * MARGIN_OF_ERROR
    assert precision > 2 * rate
    assert recall > 0.35
    assert document["effect"]["dropped"]["low"] > (0 if task == "topics" else -0.03)
    assert len(forked) == 8, "guard"


@pytest.mark.long
def test_killed_audit_ends_the_same(tmp_path: Path) -> None:
    """An audit is killed as a whole in its second fold, and again in the runs of its effect: the same command completes it."""
    whole, _ = audited_recipe(tmp_path / "whole", rows=120, rate=0.2, checkpoints={"every": 1, "minutes": None})
    killed, _ = audited_recipe(tmp_path / "killed", rows=120, rate=0.2, checkpoints={"every": 1, "minutes": None})
    command = [sys.executable, "-m", "rmtrain", "audit", "--folds", "3", "--effect", "--json", "--recipe"]
    environment = environment_of_process()
    for name in ("fold-2-of-3", "flipped"):
        process = subprocess.Popen(
            [*command, str(killed)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        run = tmp_path / "killed/hh-audit" / name
        wait_until(lambda run=run: len(list(run.glob("checkpoints/step-*"))) > 0)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == -9
        assert not json.loads((run / "run.json").read_text())["finished"], "guard: it was killed in this run"
    documents = []
    for recipe in (whole, killed):
        ended = subprocess.run([*command, str(recipe)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        documents.append(json.loads(ended.stdout))
    assert "resuming from step" in ended.stderr, "guard: a run was resumed"
    for name in ("suspects.jsonl", "scores.jsonl"):
        one, other = ((tmp_path / place / "hh-audit" / name).read_bytes() for place in ("whole", "killed"))
        assert one == other
    assert documents[0]["effect"] == documents[1]["effect"]
    for name in ("fold-2-of-3", "flipped"):
        assert model(tmp_path / "whole/hh-audit" / name) == model(tmp_path / "killed/hh-audit" / name)
