"""A checkpoint is whole or not there: every damage is named, the one before it is taken, and only what is ours is touched."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as safetensors_torch

from rmtrain.engine import checkpoint
from rmtrain.engine.checkpoint import Checkpoints
from rmtrain.errors import CheckpointError, TryAgain

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "rng-0.safetensors", "state.json"]
Tensors = dict[str, torch.Tensor]


def tensors_of(step: int) -> dict[str, Tensors]:
    return {
        "model": {"a": torch.full((3, 4), float(step)), "b": torch.full((5,), 0.1 * step, dtype=torch.bfloat16)},
        "optimizer": {"a/exp_avg": torch.rand(3, 4), "a/step": torch.tensor(float(step))},
        "rng-0": {"cpu": torch.get_rng_state()},
    }


def saved(directory: Path, *steps: int, run_id: str = "ours") -> Checkpoints:
    checkpoints = Checkpoints(directory, run_id)
    for step in steps:
        checkpoints.save(step, tensors_of(step), {"at": step})
    return checkpoints


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_saved_is_read_bit_for_bit(tmp_path: Path) -> None:
    checkpoints, written = Checkpoints(tmp_path / "new/checkpoints", "ours"), tensors_of(7)
    written["model"]["nan"] = torch.tensor([float("nan"), -0.0])
    path = checkpoints.save(7, written, {"at": 7})
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.state, found.path) == (7, {"at": 7}, path)
    for name, tensors in written.items():
        read = found.tensors(name)
        assert read.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert read[key].dtype == tensor.dtype
            assert torch.equal(read[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert names(path) == FILES
    with pytest.raises(CheckpointError, match=r"it has no rng-3\.safetensors"):
        found.tensors("rng-3")


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, "ours").newest() is None


def delete(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def link(file: Path) -> None:
    moved = file.with_name("elsewhere")
    shutil.move(file, moved)
    file.symlink_to(moved)


DAMAGES = [(damage, name) for damage in (delete, truncate, empty, flip, link) for name in FILES]
DAMAGES.remove((link, "manifest.json"))  # what it says is what it said


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_trap_28_every_damage_to_every_file_is_named_and_the_checkpoint_before_it_taken(
    damage: Callable[[Path], None], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    file = tmp_path / "step-00000020" / name
    damage(file)
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10
    assert any(str(file) in record.getMessage() for record in caplog.records), caplog.text
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        checkpoints.read(tmp_path / "step-00000020")


def test_when_every_checkpoint_is_damaged_all_are_named_and_nothing_is_begun_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for step in (10, 20):
        flip(checkpoints.path(step) / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        checkpoints.newest()
    assert len(raised.value.problems) == 3
    assert "--fresh starts over" in raised.value.problems[-1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "its format is 2, this version of rmtrain reads 1"),
        ("step", 21, "it is of step 21"),
        ("files", {}, "it names other files than those of a checkpoint"),
        ("files", {"state.json": {"size": "1", "sha256": "a"}}, "it names other files"),
        ("files", {"../../x.safetensors": {"size": 1, "sha256": "a"}, "state.json": {"size": 1, "sha256": "a"}}, "other files"),
        ("files", [], "missing or damaged"),
        ("run_id", "theirs", "it belongs to another run"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 20)
    file = tmp_path / "step-00000020/manifest.json"
    manifest = {**json.loads(file.read_text()), key: value}
    del manifest["seal"]
    file.write_text(json.dumps({**manifest, "seal": checkpoint._seal(manifest)}))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(file.parent)


@pytest.mark.parametrize("name", ["nothing", "step-1", "checkpoints", "step-00000099"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint; expected a directory such as|missing or damaged"):
        saved(tmp_path / "checkpoints", 3).read(tmp_path / name)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin", "training_args.pkl", "x.py"])
def test_trap_s1_what_is_no_part_of_a_checkpoint_is_named_and_never_opened(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 20)
    canary = tmp_path / "canary"
    (tmp_path / "step-00000020" / name).write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    found = checkpoints.newest()
    assert found is not None
    found.tensors("model")
    assert f"{name} is no part of it and is not opened" in caplog.text
    assert not canary.exists()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


POINTS: list[tuple[Any, str]] = [
    (checkpoint, "save_file"),
    (checkpoint, "_write_json"),
    (checkpoint, "_sync"),
    (Path, "mkdir"),
    (Path, "rename"),
]


@pytest.mark.parametrize(("owner", "name"), POINTS, ids=lambda value: value if isinstance(value, str) else "")
def test_trap_28_a_full_disk_leaves_the_checkpoint_before_as_it_was(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(TryAgain, match="older ones are as they were"):
            checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010"]
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10


def test_trap_28_room_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 50, 50))
    with pytest.raises(TryAgain, match=r"a checkpoint needs [\d.]+ MB, and 0\.0 MB are free; older ones are as they were"):
        checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010"]


def lossy(change: Callable[[Tensors], Tensors]) -> Callable[[Tensors, Path], None]:
    save_file = safetensors_torch.save_file
    return lambda tensors, file: save_file(change(tensors), file)


def without_one(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[1:])


def hollow(tensors: Tensors) -> Tensors:
    return {name: tensor.reshape(-1)[:0] for name, tensor in tensors.items()}


def rounded(tensors: Tensors) -> Tensors:
    return {name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}


def one_bit(tensors: Tensors) -> Tensors:
    return {name: -tensor if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [without_one, hollow, rounded, one_bit])
def test_trap_27_what_is_read_back_otherwise_is_no_checkpoint(
    change: Callable[[Tensors], Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 10)
    monkeypatch.setattr(checkpoint, "save_file", lossy(change))
    with pytest.raises(CheckpointError, match="read back"):
        checkpoints.save(20, tensors_of(20), {})
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 10


def test_trap_27_an_empty_tensor_is_not_saved(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: b is empty"):
        checkpoints.save(20, tensors_of(20) | {"model": {"a": torch.ones(2), "b": torch.ones(0)}}, {})
    assert checkpoints.newest() is not None


def test_rotation_keeps_the_newest_and_the_protected_ones(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30, 40, 50)
    checkpoints.rotate(2, {20})
    assert names(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    checkpoints.rotate(1, {20, 50})
    assert names(tmp_path) == ["step-00000020", "step-00000050"]


def test_trap_29_checkpoints_of_other_runs_are_neither_used_nor_touched(tmp_path: Path) -> None:
    saved(tmp_path, 1000, 15, run_id="theirs")
    foreign = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ours = saved(tmp_path, 10, 20)
    ours.rotate(1, {20})
    ours.set_aside_after(20)
    assert names(tmp_path) == ["step-00000015", "step-00000020", "step-00001000"]
    found = ours.newest()
    assert found is not None
    assert found.step == 20
    assert all(path.read_bytes() == content for path, content in foreign.items())
    assert len(foreign) == 10, "guard"


def test_trap_29_the_checkpoint_of_another_run_at_the_same_step_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    saved(tmp_path, 20, run_id="theirs")
    ours = saved(tmp_path, 20)
    assert names(tmp_path) == ["aside-step-00000020", "step-00000020"]
    assert ours.newest() is not None
    assert json.loads((tmp_path / "aside-step-00000020/manifest.json").read_text())["run_id"] == "theirs"


def test_what_is_after_the_step_a_run_goes_on_from_is_put_aside_and_no_longer_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30)
    flip(tmp_path / "step-00000030/manifest.json")
    checkpoints.set_aside_after(10)
    assert names(tmp_path) == ["aside-step-00000020", "aside-step-00000030", "step-00000010"]
    assert "delete it when you do not need it" in caplog.text
    checkpoints.save(15, tensors_of(15), {})
    checkpoints.rotate(1, {15})
    assert names(tmp_path) == ["aside-step-00000020", "aside-step-00000030", "step-00000015"]


WRITES_FOR_EVER = """
import sys, torch
from safetensors.torch import save_file
while True:
    save_file({"weights": torch.zeros(4_000_000)}, sys.argv[1])
"""


def kill_while_safetensors_writes(folder: Path) -> None:
    """Leave in a folder what kill -9 leaves there while safetensors writes a file."""
    process = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, folder / "model.safetensors"])
    until = time.monotonic() + 60
    while not any(path.name.startswith(".") for path in folder.iterdir()):
        assert time.monotonic() < until, "it did not begin to write"
    process.kill()
    process.wait()


def test_trap_28_killed_while_a_file_is_written_the_next_run_clears_it_away_and_saves(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    aside, tries = tmp_path / ".writing-step-00000020", 0
    aside.mkdir()
    while not any(path.name.startswith(".") for path in aside.iterdir()):
        assert (tries := tries + 1) < 20, "guard: the kill came while the file had its first name"
        kill_while_safetensors_writes(aside)
    checkpoints.clean()
    assert names(tmp_path) == ["step-00000010"]
    checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("as_link", [False, True])
def test_what_is_not_ours_where_a_checkpoint_is_written_stays_and_does_not_hinder(as_link: bool, tmp_path: Path) -> None:
    checkpoints, obstacle = saved(tmp_path / "checkpoints", 10), tmp_path / "checkpoints/.writing-step-00000020"
    if as_link:
        obstacle.symlink_to(tmp_path / "nowhere")
    else:
        obstacle.mkdir()
        (obstacle / "notes.txt").write_text("mine")
    for _ in range(2):
        checkpoints.clean()
        checkpoints.save(20, tensors_of(20), {})
        found = checkpoints.newest()
        assert found is not None
        assert found.step == 20
        checkpoints.rotate(0, {10})
    assert names(tmp_path / "checkpoints") == [".writing-step-00000020", "step-00000010"]
    assert obstacle.is_symlink() if as_link else names(obstacle) == ["notes.txt"]


def test_half_written_and_half_deleted_checkpoints_go_and_files_that_are_not_ours_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30)
    (tmp_path / "step-00000010").rename(tmp_path / ".writing-step-00000010")
    (tmp_path / "step-00000020").rename(tmp_path / ".deleting-step-00000020")
    (tmp_path / ".deleting-step-00000020/notes.txt").write_text("mine")
    elsewhere = tmp_path.parent / "precious"
    elsewhere.mkdir()
    (elsewhere / "state.json").write_text("mine")
    (tmp_path / ".writing-link").symlink_to(elsewhere)
    checkpoints.clean()
    assert names(tmp_path) == [".deleting-step-00000020", ".writing-link", "step-00000030"]
    assert names(tmp_path / ".deleting-step-00000020") == ["notes.txt"]
    assert (elsewhere / "state.json").read_text() == "mine"
    assert "holds files that are not ours, and stays" in caplog.text
