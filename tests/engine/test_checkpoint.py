"""A checkpoint is valid or unused: all damage is reported, the run falls back to the one before, and only our own files are touched."""

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

from rmtrain.engine import checkpoint
from rmtrain.engine.checkpoint import TEMPORARY, Checkpoints
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


def newest_step(checkpoints: Checkpoints) -> int | None:
    newest = checkpoints.newest()
    return None if newest is None else newest.step


def test_saved_tensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    checkpoints, written = Checkpoints(tmp_path / "new/checkpoints", "ours"), tensors_of(7)
    written["model"]["nan"] = torch.tensor([float("nan"), -0.0])
    written["model"]["strided"] = torch.arange(6.0).reshape(2, 3).t()
    path = checkpoints.save(7, written, {"at": 7})
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.state, found.path) == (7, {"at": 7}, path)
    for name, tensors in written.items():
        read = found.tensors(name)
        assert read.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert (read[key].dtype, read[key].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert names(path) == FILES
    with pytest.raises(CheckpointError, match=r"rng-3\.safetensors"):
        found.tensors("rng-3")


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
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
DAMAGES.remove((link, "manifest.json"))  # its content is unchanged


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_trap_28_damage_is_reported_and_skipped(
    damage: Callable[[Path], None], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each damage to each file is reported with its path, and the checkpoint before is used. A flipped bit in the manifest shows as a
    mismatch of one of the files that it lists.
    """
    checkpoints = saved(tmp_path, 10, 20)
    file = tmp_path / "step-00000020" / name
    damage(file)
    assert newest_step(checkpoints) == 10
    reported = str(file.parent) if (damage, name) == (flip, "manifest.json") else str(file)
    assert any(reported in record.getMessage() for record in caplog.records), caplog.text
    with pytest.raises(CheckpointError, match=re.escape(reported)):
        checkpoints.read(tmp_path / "step-00000020")


def test_damage_to_all_checkpoints_is_an_error(tmp_path: Path) -> None:
    """Each damaged checkpoint is reported, and the run does not silently start over."""
    checkpoints = saved(tmp_path, 10, 20)
    for step in (10, 20):
        flip(checkpoints.path(step) / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        checkpoints.newest()
    assert len(raised.value.problems) == 3
    assert "--fresh" in raised.value.problems[-1]


HASH = "a" * 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 1),
        ("step", 21),
        ("sha256", {}),
        ("sha256", {"state.json": 1}),
        ("sha256", {"../../x.safetensors": HASH, "state.json": HASH}),
        ("sha256", {"code.py": HASH, "state.json": HASH}),
        ("sha256", []),
        ("run_id", "theirs"),
        ("run_id", 1),
    ],
)
def test_a_manifest_with_wrong_content_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 20)
    file = tmp_path / "step-00000020/manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError) as raised:
        checkpoints.read(file.parent)
    (problem,) = raised.value.problems
    assert problem.startswith(str(file.parent))
    assert "mismatch" not in problem, "no file was opened"


@pytest.mark.parametrize("name", ["nothing", "step-1", "checkpoints", "step-00000099"])
def test_other_directories_are_not_checkpoints(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
        saved(tmp_path / "checkpoints", 3).read(tmp_path / name)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin", "training_args.pkl", "x.py"])
def test_trap_s1_unexpected_files_are_never_opened(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(tmp_path, 20)
    canary = tmp_path / "canary"
    (tmp_path / "step-00000020" / name).write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    found = checkpoints.newest()
    assert found is not None
    found.tensors("model")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert name in warning
    assert not canary.exists()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


POINTS: list[tuple[Any, str]] = [
    (checkpoint, "save_file"),
    (checkpoint, "write_text"),
    (checkpoint, "sync"),
    (Path, "mkdir"),
    (Path, "rename"),
]


@pytest.mark.parametrize(("owner", "name"), POINTS, ids=lambda value: value if isinstance(value, str) else "")
def test_trap_28_a_full_disk_keeps_earlier_checkpoints(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(TryAgain, match="step 20"):
            checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010"]
    assert newest_step(checkpoints) == 10


def test_trap_28_room_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 50, 50))
    with pytest.raises(TryAgain, match=r"[\d.]+ MB.* 0\.0 MB"):
        checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010"]


def test_trap_27_an_empty_tensor_is_not_saved(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: b "):
        checkpoints.save(20, tensors_of(20) | {"model": {"a": torch.ones(2), "b": torch.ones(0)}}, {})
    assert names(tmp_path) == ["step-00000010"]


def test_rotation_keeps_newest_and_protected_checkpoints(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30, 40, 50)
    checkpoints.rotate(2, {20})
    assert names(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    checkpoints.rotate(1, {20, 50})
    assert names(tmp_path) == ["step-00000020", "step-00000050"]


def test_trap_29_checkpoints_of_other_runs_are_untouched(tmp_path: Path) -> None:
    saved(tmp_path, 1000, 15, run_id="theirs")
    foreign = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ours = saved(tmp_path, 10, 20)
    ours.rotate(1, {20})
    ours.set_aside_after(20)
    assert names(tmp_path) == ["step-00000015", "step-00000020", "step-00001000"]
    assert newest_step(ours) == 20
    assert all(path.read_bytes() == content for path, content in foreign.items())
    assert len(foreign) == 10, "guard: there were foreign files"


def test_trap_29_another_runs_checkpoint_is_renamed(tmp_path: Path) -> None:
    """A checkpoint of another run at the same step is moved aside, not overwritten."""
    saved(tmp_path, 20, run_id="theirs")
    ours = saved(tmp_path, 20)
    assert names(tmp_path) == ["aside-step-00000020", "step-00000020"]
    assert ours.newest() is not None
    assert json.loads((tmp_path / "aside-step-00000020/manifest.json").read_text())["run_id"] == "theirs"


def test_later_checkpoints_are_renamed_on_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Checkpoints after the step that a run resumes from, damaged ones included, no longer count."""
    checkpoints = saved(tmp_path, 10, 20, 30)
    truncate(tmp_path / "step-00000030/manifest.json")
    checkpoints.set_aside_after(10)
    assert names(tmp_path) == ["aside-step-00000020", "aside-step-00000030", "step-00000010"]
    assert all(name in caplog.text for name in ("aside-step-00000020", "aside-step-00000030"))
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
    deadline = time.monotonic() + 120
    while not any(path.name.startswith(".") for path in folder.iterdir()):
        assert time.monotonic() < deadline, "it did not start to write"
    process.kill()
    process.wait()


def test_trap_28_leftovers_of_killed_saves_are_deleted(tmp_path: Path) -> None:
    """A process that was killed while safetensors, or `write_text`, wrote a file leaves nothing behind after the next start."""
    checkpoints = saved(tmp_path, 10)
    partial, tries = tmp_path / f"{TEMPORARY}step-00000020", 0
    partial.mkdir()
    while not any(path.name.startswith(".") for path in partial.iterdir()):
        assert (tries := tries + 1) < 20, "guard: the kill came while the file had its first name"
        kill_while_safetensors_writes(partial)
    (partial / ".manifest.json.123.tmp").touch()
    checkpoints.clean()
    assert names(tmp_path) == ["step-00000010"]
    checkpoints.save(20, tensors_of(20), {})
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("as_link", [False, True])
def test_foreign_files_in_the_way_stay(as_link: bool, tmp_path: Path) -> None:
    """Something foreign under the name that a checkpoint is written to stays, and the checkpoint is saved all the same."""
    checkpoints, obstacle = saved(tmp_path / "checkpoints", 10), tmp_path / f"checkpoints/{TEMPORARY}step-00000020"
    if as_link:
        obstacle.symlink_to(tmp_path / "nowhere")
    else:
        obstacle.mkdir()
        (obstacle / "notes.txt").write_text("mine")
    for _ in range(2):
        checkpoints.clean()
        checkpoints.save(20, tensors_of(20), {})
        assert newest_step(checkpoints) == 20
        checkpoints.rotate(0, {10})
    assert names(tmp_path / "checkpoints") == [f"{TEMPORARY}step-00000020", "step-00000010"]
    assert obstacle.is_symlink() if as_link else names(obstacle) == ["notes.txt"]


def test_cleaning_deletes_only_our_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half written and half deleted checkpoints are deleted; foreign files in them, and what links point to, stay."""
    checkpoints = saved(tmp_path, 10, 20, 30)
    for step in (10, 20):
        (tmp_path / f"step-000000{step}").rename(tmp_path / f"{TEMPORARY}step-000000{step}")
    (tmp_path / f"{TEMPORARY}step-00000020/notes.txt").write_text("mine")
    elsewhere = tmp_path.parent / "precious"
    elsewhere.mkdir()
    (elsewhere / "state.json").write_text("mine")
    (tmp_path / f"{TEMPORARY}link").symlink_to(elsewhere)
    checkpoints.clean()
    assert names(tmp_path) == [f"{TEMPORARY}link", f"{TEMPORARY}step-00000020", "step-00000030"]
    assert names(tmp_path / f"{TEMPORARY}step-00000020") == ["notes.txt"]
    assert (elsewhere / "state.json").read_text() == "mine"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{TEMPORARY}step-00000020" in warning
