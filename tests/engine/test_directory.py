"""A run directory belongs to one run: who may begin or go on in it, what is refused and left alone, and its records."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rmtrain.engine.run_dir import HARMLESS, RECORDS, RunDirectory, flat
from rmtrain.engine.run_log import RunLog
from rmtrain.errors import CheckpointError, RecipeError, TryAgain
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.runs import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose run goes to `runs/mine` below the current directory, which is below the home directory."""
    here = tmp_path / "home/here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tiny_recipe(tmp_path, run={"output_dir": "runs/mine"})


def at(recipe: Recipe, output_dir: str) -> Recipe:
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"output_dir": output_dir})})


def begun(recipe: Recipe, finished: bool = False) -> RunDirectory:
    """A directory in which a run has begun, as it is after the process has ended."""
    directory = RunDirectory.claim(recipe)
    directory.open(recipe, {})
    if finished:
        directory.finish()
    directory.close()
    return directory


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_claim_writes_nothing_and_opening_writes_what_the_run_is_made_of(recipe: Recipe) -> None:
    directory = RunDirectory.claim(recipe)
    assert not Path("runs").exists()
    assert not directory.continues
    directory.open(recipe, {"versions": {}})
    assert sorted(os.listdir("runs/mine")) == [".lock", "checkpoints", "environment.json", "recipe.yaml", "run.json"]
    assert load_recipe("runs/mine/recipe.yaml") == recipe
    directory.close()
    assert json.loads(Path("runs/mine/run.json").read_text()) == {"run_id": directory.run_id, "finished": False}


@pytest.mark.parametrize("output_dir", ["runs/mine", "./runs/../runs/mine", "{here}/runs/mine", "link", "~/here/runs/mine"])
def test_a_path_below_the_current_directory_is_shown_relative_to_it(recipe: Recipe, output_dir: str, tmp_path: Path) -> None:
    Path("link").symlink_to("runs/mine")
    assert str(RunDirectory.claim(at(recipe, output_dir.format(here=Path.cwd()))).path) == "runs/mine"
    assert str(RunDirectory.claim(at(recipe, f"{tmp_path}/elsewhere")).path) == f"{tmp_path}/elsewhere"


def test_an_unfinished_run_goes_on_under_its_id_and_a_finished_one_is_refused(recipe: Recipe) -> None:
    first = begun(recipe)
    again = RunDirectory.claim(recipe)
    assert (again.continues, again.run_id) == (True, first.run_id)
    again.open(recipe, {})
    again.finish()
    again.close()
    with pytest.raises(CheckpointError, match=r"the run in runs/mine is finished; name a new directory, or .* --fresh"):
        RunDirectory.claim(recipe)


@pytest.mark.parametrize("finished", [False, True])
def test_fresh_moves_a_run_aside_and_keeps_all_of_it(recipe: Recipe, finished: bool) -> None:
    for number in (1, 2):
        begun(recipe, finished)
        before = everything(Path("runs/mine"))
        directory = RunDirectory.claim(recipe, fresh=True)
        assert not directory.continues
        assert everything(Path(f"runs/mine.old-{number}")) == before
    assert sorted(os.listdir("runs")) == ["mine.old-1", "mine.old-2"]


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".run.json.new"]])
def test_a_process_killed_before_it_had_marked_the_directory_leaves_one_that_can_be_begun_in(
    recipe: Recipe, left: list[str]
) -> None:
    Path("runs/mine").mkdir(parents=True)
    for name in left:
        (Path("runs/mine") / name).touch()
    assert not begun(recipe).continues


@pytest.mark.parametrize(
    "output_dir", [".", "~", "..", "../x", "runs/../..", "runs/../../x", "/", "", "~nobody-of-this-name/x", "a\0b", "x" * 5000]
)
def test_trap_s5_directories_that_no_run_should_have_are_refused(recipe: Recipe, output_dir: str, tmp_path: Path) -> None:
    before = everything(tmp_path)
    for fresh in (False, True):
        with pytest.raises(RecipeError, match=r"run\.output_dir: .*(no directory of a run|leads out|no path)"):
            RunDirectory.claim(at(recipe, output_dir), fresh)
    assert everything(tmp_path) == before


def foreign_files(folder: Path) -> str:
    (folder / "theirs").mkdir()
    (folder / "theirs/notes.txt").write_text("mine")
    return "theirs"


def link_to_foreign_files(folder: Path) -> str:
    (folder / "link").symlink_to(folder / foreign_files(folder))
    return "link"


def link_to_etc(folder: Path) -> str:
    (folder / "etc").symlink_to("/etc")
    return "etc"


def checkpoints_alone(folder: Path) -> str:
    (folder / "x/checkpoints/step-00000010").mkdir(parents=True)
    return "x"


def a_file(folder: Path) -> str:
    (folder / "file").write_text("mine")
    return "file"


@pytest.mark.parametrize("make", [foreign_files, link_to_foreign_files, link_to_etc, checkpoints_alone, a_file])
def test_trap_s5_what_is_there_and_not_ours_is_refused_and_left_alone(recipe: Recipe, make: Callable[[Path], str]) -> None:
    here = Path.cwd()
    output_dir = make(here)
    before = everything(here)
    for fresh in (False, True):
        with pytest.raises((CheckpointError, RecipeError), match=r"holds other files|is a file|cannot be written"):
            RunDirectory.claim(at(recipe, output_dir), fresh)
    assert everything(here) == before


def test_a_link_to_another_disk_is_a_directory_like_any_other(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    Path("runs").symlink_to(tmp_path / "big")
    assert begun(recipe).path == tmp_path / "big/mine"


def test_a_damaged_marker_is_named(recipe: Recipe) -> None:
    begun(recipe)
    for text in ("", "[]", '{"run_id": "a"}', "{"):
        Path("runs/mine/run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json: damaged; move .* away, or start over with --fresh"):
            RunDirectory.claim(recipe)
    assert not RunDirectory.claim(recipe, fresh=True).continues


def test_two_processes_never_train_in_one_directory(recipe: Recipe) -> None:
    early = RunDirectory.claim(recipe)
    first = RunDirectory.claim(recipe)
    first.open(recipe, {})
    for attempt in (lambda: early.open(recipe, {}), lambda: RunDirectory.claim(recipe), lambda: RunDirectory.claim(recipe, True)):
        with pytest.raises(CheckpointError, match=r"another process is training in runs/mine"):
            attempt()
    assert os.listdir("runs") == ["mine"], "a run under way is not moved aside"
    first.close()
    with pytest.raises(CheckpointError, match="another process has meanwhile been at work"):
        early.open(recipe, {})


def test_a_run_that_was_finished_between_claim_and_opening_is_not_begun_again(recipe: Recipe) -> None:
    begun(recipe)
    claimed = RunDirectory.claim(recipe)
    begun(recipe, finished=True)
    with pytest.raises(CheckpointError, match="is finished"):
        claimed.open(recipe, {})


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"optimizer": {"lr": 1e-3}}, ["optimizer.lr was 0.002, is 0.001"]),
        ({"lora": {"rank": 4}}, ["lora.rank was not there, is 4"]),
        ({"run": {"output_dir": "runs/mine", "seed": 2}}, ["run.seed was 1, is 2"]),
        ({"training": {"epochs": 3, "batch_size": 4}}, ["training.batch_size was 8, is 4", "training.epochs was 1, is 3"]),
        ({"checkpoints": {"best": "loss"}}, ['checkpoints.best was null, is "loss"']),
        ({"training": {"deterministic": True}}, ["training.deterministic was false, is true"]),
    ],
)
def test_changes_that_make_it_another_run_are_refused_with_what_they_were(
    recipe: Recipe, changes: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    begun(recipe)
    before = everything(Path("runs/mine"))
    with pytest.raises(CheckpointError) as raised:
        RunDirectory.claim(tiny_recipe(tmp_path, **{"run": {"output_dir": "runs/mine"}, **changes}))
    for line in lines:
        assert any(problem.endswith(f"has another recipe: {line}") for problem in raised.value.problems), raised.value
    assert "change these back to resume it" in raised.value.problems[-1]
    assert everything(Path("runs/mine")) == before


def test_changes_that_harm_nothing_pass_and_are_written_down(recipe: Recipe, tmp_path: Path) -> None:
    begun(recipe)
    changed = tiny_recipe(
        tmp_path,
        run={"output_dir": "runs/mine", "name": "other"},
        tracking={"log_every": 3, "project": "p"},
        evaluation={"every": 5, "samples": 0, "gates": {"accuracy": 0.1}},
        batching={"max_tokens": 500},
        checkpoints={"every": 7, "minutes": None, "keep": 4},
        hub={"id": "a/b"},
    )
    assert begun(changed).continues
    assert load_recipe("runs/mine/recipe.yaml") == changed


def test_every_harmless_key_is_a_key_of_a_recipe(recipe: Recipe) -> None:
    keys = [key for key, _ in flat(recipe.model_dump())] + ["evaluation.gates"]
    for name in HARMLESS:
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name


def test_a_directory_that_cannot_be_written_is_told_before_anything_is_done(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere but on a read-only disk
    with pytest.raises(RecipeError, match=r"run\.output_dir: .* cannot be written to; name another directory"):
        RunDirectory.claim(recipe)


def write_records(log: RunLog) -> None:
    """Five steps with an evaluation after the second and the fourth."""
    for step in range(1, 6):
        log.rows(step, 0, [f"s:{step}"])
        log.metrics(step, {"train/loss": 1.0})
        if step == 3:
            log.not_finite(step, ["s:3"])
        if step in (2, 4):
            log.metrics(step, {"eval/loss": 1.0})
            log.samples(step, [{"id": "e:0", "rewards": [1.0, 0.0]}] * 2)


@pytest.mark.parametrize(
    ("step", "evaluated", "left"),
    [
        (5, True, [7, 4, 5, 1]),
        (4, True, [6, 4, 4, 1]),
        (4, False, [5, 2, 4, 1]),
        (2, False, [2, 0, 2, 0]),
        (0, True, [0, 0, 0, 0]),
    ],
)
def test_records_are_cut_back_to_a_step(recipe: Recipe, step: int, evaluated: bool, left: list[int]) -> None:
    directory = begun(recipe)
    write_records(RunLog(Accelerator(cpu=True), directory.path))
    lines = {name: (directory.path / name).read_bytes().splitlines(keepends=True) for name in RECORDS}
    for name in RECORDS:
        with (directory.path / name).open("ab") as file:
            file.write(b'{"step": 1, "half": ')
    directory.sync()
    directory.rewind(step, evaluated)
    for name, count in zip(RECORDS, left, strict=True):
        assert (directory.path / name).read_bytes() == b"".join(lines[name][:count]), name


def test_a_disk_that_fails_is_told_in_a_line(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = begun(recipe)
    write_records(RunLog(Accelerator(cpu=True), directory.path))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fail)
    for attempt, name in ((directory.sync, "metrics.jsonl"), (directory.finish, "run.json")):
        with pytest.raises(
            TryAgain, match=rf"{name}: cannot be written: Input/output error; run the same command again when it can"
        ):
            attempt()


def test_trap_s8_records_that_name_rows_or_show_their_text_are_the_owners(recipe: Recipe) -> None:
    directory = begun(recipe)
    old = os.umask(0o022)
    write_records(RunLog(Accelerator(cpu=True), directory.path))
    directory.rewind(3, True)
    os.umask(old)
    modes = {name: stat.S_IMODE((directory.path / name).stat().st_mode) for name in RECORDS}
    assert modes == {"metrics.jsonl": 0o644, "samples.jsonl": 0o600, "ledger.jsonl": 0o600, "nonfinite.jsonl": 0o600}
    ledger = [json.loads(line) for line in (directory.path / "ledger.jsonl").read_text().splitlines()]
    assert all(re.fullmatch(r"s:\d", name) for line in ledger for name in line["ids"]), "ids, and no text"
