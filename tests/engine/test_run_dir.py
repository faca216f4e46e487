"""A run directory belongs to one run: when a run may start or resume in it, what is refused and left alone, and its records."""

import errno
import json
import os
import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rmtrain.engine import run_check
from rmtrain.engine.run_check import CHANGEABLE, check_output_dir, flat
from rmtrain.engine.run_dir import RECORDS, RunDirectory
from rmtrain.engine.run_log import RunLog
from rmtrain.errors import CheckpointError, RecipeError, TryAgain
from rmtrain.recipe.load import dump_recipe, load_recipe, with_absolute_paths
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


def started(recipe: Recipe, finished: bool = False, **options: Any) -> RunDirectory:
    """A directory in which a run was started, after its process has ended."""
    directory = RunDirectory.open(recipe, {}, **options)
    if finished:
        directory.finish()
    directory.close()
    return directory


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_check_writes_nothing_opening_does(recipe: Recipe) -> None:
    assert check_output_dir(recipe) == Path("runs/mine")
    assert not Path("runs").exists()
    directory = RunDirectory.open(recipe, {"versions": {}})
    assert not directory.continues
    assert sorted(os.listdir("runs/mine")) == [".lock", "checkpoints", "environment.json", "recipe.yaml", "run.json"]
    assert load_recipe("runs/mine/recipe.yaml") == with_absolute_paths(recipe)
    directory.close()
    assert json.loads(Path("runs/mine/run.json").read_text()) == {"run_id": directory.run_id, "finished": False}


@pytest.mark.parametrize("output_dir", ["runs/mine", "./runs/../runs/mine", "{here}/runs/mine", "link", "~/here/runs/mine"])
def test_paths_below_the_current_directory_are_relative(recipe: Recipe, output_dir: str, tmp_path: Path) -> None:
    Path("link").symlink_to("runs/mine")
    assert str(check_output_dir(at(recipe, output_dir.format(here=Path.cwd())))) == "runs/mine"
    assert str(check_output_dir(at(recipe, f"{tmp_path}/elsewhere"))) == f"{tmp_path}/elsewhere"


def test_an_unfinished_run_continues_a_finished_one_not(recipe: Recipe) -> None:
    first = started(recipe)
    again = started(recipe, finished=True)
    assert (again.continues, again.run_id) == (True, first.run_id)
    for attempt in (lambda: check_output_dir(recipe), lambda: RunDirectory.open(recipe, {})):
        with pytest.raises(CheckpointError, match=r"^run\.output_dir: .*--fresh"):
            attempt()


@pytest.mark.parametrize("finished", [False, True])
def test_fresh_renames_the_older_run(recipe: Recipe, finished: bool) -> None:
    """All of the older run is kept, and nothing is renamed before the new run is opened."""
    first = started(recipe, finished)
    for number in (1, 2):
        before = everything(Path("runs/mine"))
        check_output_dir(recipe, fresh=True)
        assert everything(Path("runs/mine")) == before
        directory = started(recipe, finished, fresh=True)
        assert not directory.continues
        assert directory.run_id != first.run_id
        assert everything(Path(f"runs/mine.old-{number}")) == before
    assert sorted(os.listdir("runs")) == ["mine", "mine.old-1", "mine.old-2"]


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".run.json.123.tmp"]])
def test_a_directory_without_marker_can_be_used(recipe: Recipe, left: list[str]) -> None:
    """A process that was killed before it had marked its directory is no obstacle."""
    Path("runs/mine").mkdir(parents=True)
    for name in left:
        (Path("runs/mine") / name).touch()
    assert not started(recipe).continues


def test_a_chosen_checkpoint_needs_a_run(recipe: Recipe, tmp_path: Path) -> None:
    """`--resume` in a directory without a run is refused before anything is written."""
    before = everything(tmp_path)
    for attempt in (
        lambda: check_output_dir(recipe, resume=Path("step-00000002")),
        lambda: RunDirectory.open(recipe, {}, resume=Path("step-00000002")),
    ):
        with pytest.raises(CheckpointError, match=r"^--resume step-00000002: "):
            attempt()
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "output_dir", [".", "~", "..", "../x", "runs/../..", "runs/../../x", "/", "", "~nobody-of-this-name/x", "a\0b", "x" * 5000]
)
def test_trap_s5_unsuitable_directories_are_refused(recipe: Recipe, output_dir: str, tmp_path: Path) -> None:
    before = everything(tmp_path)
    for fresh in (False, True):
        with pytest.raises(RecipeError, match=r"^run\.output_dir: "):
            RunDirectory.open(at(recipe, output_dir), {}, fresh)
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
def test_trap_s5_foreign_files_are_left_alone(recipe: Recipe, make: Callable[[Path], str]) -> None:
    here = Path.cwd()
    output_dir = make(here)
    before = everything(here)
    for fresh in (False, True):
        with pytest.raises((CheckpointError, RecipeError), match=r"^run\.output_dir: "):
            RunDirectory.open(at(recipe, output_dir), {}, fresh)
    assert everything(here) == before


def test_a_link_to_another_disk_is_allowed(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    Path("runs").symlink_to(tmp_path / "big")
    assert started(recipe).path == tmp_path / "big/mine"


def test_a_damaged_marker_is_reported(recipe: Recipe) -> None:
    started(recipe)
    for text in ("", "[]", '{"run_id": "a"}', "{"):
        Path("runs/mine/run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"^runs/mine/run\.json: .*--fresh"):
            check_output_dir(recipe)
    assert not started(recipe, fresh=True).continues


def test_two_processes_never_train_in_one_directory(recipe: Recipe) -> None:
    first = RunDirectory.open(recipe, {})
    other_rank = pickle.loads(pickle.dumps(first))
    assert (other_rank.path, other_rank.run_id, other_rank.lock) == (first.path, first.run_id, None)
    for fresh in (False, True):
        for attempt in (lambda: check_output_dir(recipe, fresh), lambda: RunDirectory.open(recipe, {}, fresh)):  # noqa: B023
            with pytest.raises(CheckpointError, match=r"^run\.output_dir: .*runs/mine"):
                attempt()
    assert os.listdir("runs") == ["mine"], "a run in progress is not renamed"
    first.close()
    assert started(recipe).run_id == first.run_id, "guard: the lock alone kept the others out"


@pytest.mark.parametrize("finished", [False, True])
def test_opening_checks_again_under_the_lock(recipe: Recipe, finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another process started after the check is continued, or refused when it is finished."""
    lock, others = run_check.try_lock, []

    def late_lock(path: Path) -> Any:
        monkeypatch.setattr(run_check, "try_lock", lock)
        others.append(started(recipe, finished))
        return lock(path)

    monkeypatch.setattr(run_check, "try_lock", late_lock)
    if finished:
        with pytest.raises(CheckpointError, match=r"^run\.output_dir: "):
            started(recipe)
        assert json.loads(Path("runs/mine/run.json").read_text())["finished"]
    else:
        directory = started(recipe)
        assert (directory.continues, directory.run_id) == (True, others[0].run_id)
    assert len(others) == 1, "guard: another process came first"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"optimizer": {"lr": 1e-3}}, ["optimizer.lr was 0.002, is 0.001"]),
        ({"lora": {"rank": 4}}, ["lora.rank was unset, is 4"]),
        ({"run": {"output_dir": "runs/mine", "seed": 2}}, ["run.seed was 1, is 2"]),
        ({"training": {"epochs": 3, "batch_size": 4}}, ["training.batch_size was 8, is 4"]),
        ({"checkpoints": {"best": "loss"}}, ['checkpoints.best was null, is "loss"']),
        ({"training": {"deterministic": True}}, ["training.deterministic was false, is true"]),
    ],
)
def test_other_recipes_are_refused_with_each_difference(
    recipe: Recipe, changes: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    started(recipe)
    before = everything(Path("runs/mine"))
    with pytest.raises(CheckpointError) as raised:
        RunDirectory.open(tiny_recipe(tmp_path, **{"run": {"output_dir": "runs/mine"}, **changes}), {})
    for line in lines:
        assert any(problem.endswith(f": {line}") for problem in raised.value.problems), raised.value
    assert "--fresh" in raised.value.problems[-1]
    assert everything(Path("runs/mine")) == before


def test_changeable_keys_are_recorded_on_resume(recipe: Recipe, tmp_path: Path) -> None:
    started(recipe)
    changed = tiny_recipe(
        tmp_path,
        run={"output_dir": "runs/mine", "name": "other"},
        tracking={"log_every": 3, "project": "p"},
        evaluation={"every": 5, "samples": 0, "gates": {"accuracy": 0.1}},
        batching={"max_tokens": 500},
        checkpoints={"every": 7, "minutes": None, "keep": 4},
        hub={"id": "a/b"},
    )
    assert started(changed).continues
    assert load_recipe("runs/mine/recipe.yaml") == with_absolute_paths(changed)


def test_early_stopping_fixes_when_evaluations_are(recipe: Recipe, tmp_path: Path) -> None:
    """How often a run is evaluated decides its end then; the reference before the first step does not."""
    stopping = {"early_stopping": {"metric": "loss", "patience": 2}}
    evaluations = [{"every": 5, **stopping}, {"every": 5, "on_start": True, **stopping}, {"every": 6, **stopping}]
    first, same, other = (tiny_recipe(tmp_path, run={"output_dir": "runs/mine"}, evaluation=each) for each in evaluations)
    started(first)
    assert started(same).continues
    with pytest.raises(CheckpointError, match=r"evaluation\.every was 5, is 6"):
        started(other)


def test_changeable_keys_exist_in_a_recipe(recipe: Recipe) -> None:
    keys = [key for key, _ in flat(recipe.model_dump())] + ["evaluation.gates", "evaluation.benchmarks", "data.benchmarks"]
    for name in CHANGEABLE:
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name


def test_a_read_only_parent_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere except on a read-only disk
    with pytest.raises(RecipeError, match=rf"^run\.output_dir: {re.escape(str(Path.cwd()))} "):
        check_output_dir(recipe)


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
    ("step", "last_evaluated_step", "left"),
    [
        (5, 4, [7, 4, 5, 1]),
        (4, 4, [6, 4, 4, 1]),
        (4, 2, [5, 2, 4, 1]),
        (2, 0, [2, 0, 2, 0]),
        (0, 0, [0, 0, 0, 0]),
    ],
)
def test_records_are_cut_back(recipe: Recipe, step: int, last_evaluated_step: int, left: list[int]) -> None:
    """Lines of later steps, of later evaluations and half lines are cut off; `left` counts the lines of each record."""
    directory = started(recipe)
    write_records(RunLog(Accelerator(cpu=True), directory.path))
    lines = {name: (directory.path / name).read_bytes().splitlines(keepends=True) for name in RECORDS}
    for name in RECORDS:
        with (directory.path / name).open("ab") as file:
            file.write(b'{"step": 1, "half": ')
    directory.sync()
    directory.rewind(step, last_evaluated_step)
    for name, count in zip(RECORDS, left, strict=True):
        assert (directory.path / name).read_bytes() == b"".join(lines[name][:count]), name


def test_a_failing_disk_is_reported_with_the_file(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = started(recipe)
    write_records(RunLog(Accelerator(cpu=True), directory.path))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fail)
    for attempt, name in ((directory.sync, "metrics.jsonl"), (directory.finish, "run.json")):
        with pytest.raises(TryAgain, match=rf"^runs/mine/{name}: .*Input/output error"):
            attempt()
    assert not json.loads(Path("runs/mine/run.json").read_text())["finished"]


def test_trap_s8_records_of_rows_are_private(recipe: Recipe) -> None:
    directory = started(recipe)
    old = os.umask(0o022)
    write_records(RunLog(Accelerator(cpu=True), directory.path))
    directory.rewind(3, 2)
    os.umask(old)
    modes = {name: stat.S_IMODE((directory.path / name).stat().st_mode) for name in RECORDS}
    assert modes == {"metrics.jsonl": 0o644, "samples.jsonl": 0o600, "ledger.jsonl": 0o600, "nonfinite.jsonl": 0o600}
    ledger = [json.loads(line) for line in (directory.path / "ledger.jsonl").read_text().splitlines()]
    assert all(re.fullmatch(r"s:\d", name) for line in ledger for name in line["ids"]), "ids, and no text"


def test_a_run_of_shared_parts_continues(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe is whole: the base may be written in another way, or be gone, but a value that it changes is another run."""
    Path("base.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    mine = 'extends: base.yaml\nrun: {output_dir: "runs/{run.name}-{optimizer.lr}"}\noptimizer: {lr: "${LR}"}\n'
    Path("mine.yaml").write_text(mine, encoding="utf-8")
    monkeypatch.setenv("LR", "1e-3")
    first = started(load_recipe("mine.yaml"))
    assert str(first.path) == "runs/tiny-1e-3"
    Path("base.yaml").rename("moved.yaml")
    Path("mine.yaml").write_text("run: {output_dir: runs/tiny-1e-3}\noptimizer: {lr: 0.001}\n", encoding="utf-8")
    for again in (load_recipe(["moved.yaml", "mine.yaml"]), load_recipe(first.path)):
        assert started(again).run_id == first.run_id
    changed = load_recipe(["moved.yaml", "mine.yaml"], ["training.batch_size=3"])
    with pytest.raises(CheckpointError, match=r"training\.batch_size was 8, is 3"):
        started(changed)
