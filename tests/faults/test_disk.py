"""A full disk, one that cannot be written, and damaged files: what was saved stays, the line says what to do, and the run goes on."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rmtrain.engine.run_log import RunLog
from rmtrain.errors import TryAgain
from tests.engine.test_checkpoint import FILES, delete, flip, truncate
from tests.faults.nursery import FAST, Nursery
from tests.faults.runs import in_directory, left, steps_saved
from tests.faults.test_resume import stop_after, stopped


class Disk:
    """A file system of a few megabytes, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        """Change its size, or whether it can be written."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self, leave: int) -> None:
        """Leave about so many bytes free."""
        with (self.path / "ballast").open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(self.path).free - leave)))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounts a small disk: run as root where that may mount ({mounted.stderr.strip()})")
    yield Disk(path)
    subprocess.run(["umount", str(path)], check=True)


def test_trap_28_a_disk_too_small_for_a_checkpoint_is_told_before_the_first_step(
    disk: Disk, recipe: Path, nursery: Nursery
) -> None:
    disk.fill(300_000)
    ended = nursery.run(*in_directory(recipe, disk.path / "run"))
    assert ended.code == 75, ended.stderr
    assert "a checkpoint needs" in ended.stderr
    assert "Make room and run the same command again" in ended.stderr
    assert not (disk.path / "run/ledger.jsonl").exists()


def test_trap_28_a_disk_that_fills_up_leaves_the_checkpoints_and_the_run_goes_on_when_there_is_room(
    disk: Disk, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = disk.path / "run"
    for _ in range(2):
        ended = nursery.run(*in_directory(recipe, run), "checkpoints.keep=9")
        assert ended.code == 75, ended.stderr
        assert "older ones are as they were" in ended.stderr
        assert "Traceback" not in ended.stderr
        saved = steps_saved(run)
        assert 2 <= len(saved) < 7, "guard: the disk was full in the middle of the run"
        assert not list((run / "checkpoints").glob(".*")), "nothing half written takes up space"
    disk.remount("size=20m")
    ended = nursery.run(*in_directory(recipe, run), "checkpoints.keep=9")
    assert ended.code == 0, ended.stderr
    assert f"going on after step {saved[-1]}, from" in ended.stderr
    assert left(run) == undisturbed


def test_a_disk_that_is_full_when_the_model_is_exported_leaves_the_run_to_be_finished(
    disk: Disk, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = disk.path / "run"
    assert nursery.run(*in_directory(recipe, run), faults=[("export", 1, "SIGTERM"), FAST]).code == 143
    disk.fill(60_000)
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 75, ended.stderr
    assert "is full" in ended.stderr
    assert not (run / "model").exists()
    assert not (run / ".model.partial").exists(), "nothing half written takes up space"
    (disk.path / "ballast").unlink()
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert left(run) == undisturbed


def test_a_disk_that_is_full_when_a_line_is_written_is_told_and_the_half_line_does_not_count(
    disk: Disk, place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    disk.fill(0)
    with pytest.raises(TryAgain, match=r"metrics\.jsonl: the disk is full; make room and run the same command again"):
        RunLog(Accelerator(cpu=True), disk.path).metrics(1, {"train/loss": 1.0})
    disk.remount("ro")
    with pytest.raises(TryAgain, match=r"metrics\.jsonl: cannot be written: Read-only file system; run the same command again"):
        RunLog(Accelerator(cpu=True), disk.path).metrics(1, {"train/loss": 1.0})
    run = place / "full-record"
    ended = nursery.run(*in_directory(recipe, run), faults=[("record", 9, "ENOSPC"), FAST])
    assert ended.code == 75, ended.stderr
    assert "error: the disk is full: No space left on device; make room and run the same command again" in ended.stderr
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')
    assert nursery.run(*in_directory(recipe, run)).code == 0
    assert left(run) == undisturbed


def test_a_directory_that_cannot_be_written_is_told_at_once(disk: Disk, recipe: Path, nursery: Nursery) -> None:
    stopped(nursery, recipe, disk.path / "run", [3])
    disk.remount("ro")
    for name in ("run", "new/run"):
        ended = nursery.run(*in_directory(recipe, disk.path / name))
        assert ended.code == 2, ended.stderr
        assert "cannot be written to; name another directory" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_disk_that_turns_read_only_in_a_save_ends_the_run_and_leaves_the_checkpoints(
    place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / "turned-read-only"
    ended = nursery.run(*in_directory(recipe, run), faults=[("tensors", 5, "EROFS"), ("unlink", 0, "EROFS"), FAST])
    assert ended.code == 75, ended.stderr
    assert "cannot be written: Read-only file system; older ones are as they were" in ended.stderr
    assert "cannot be deleted, and stays: Read-only file system" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((run / "checkpoints").glob(".writing-*")), "guard: files of the half-written one could not be deleted"
    ended = nursery.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert not list((run / "checkpoints").glob(".*")), "deleted when that was possible"
    assert left(run) == undisturbed


def test_checkpoints_that_cannot_be_deleted_stay_and_the_run_goes_on(
    place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / "not-deleted"
    ended = nursery.run(*in_directory(recipe, run), faults=[("rmdir", 0, "EBUSY"), FAST])
    assert ended.code == 0, ended.stderr
    stay = sorted(path.name for path in (run / "checkpoints").glob(".deleting-*"))
    assert all(f"{name} cannot be deleted, and stays: Device or resource busy" in ended.stderr for name in stay)
    assert len(stay) >= 3, "guard: there was something to delete"
    assert left(run) == undisturbed


@pytest.mark.parametrize("damage", [delete, truncate, flip])
@pytest.mark.parametrize("name", ["optimizer.safetensors", "manifest.json"])
def test_trap_28_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage: Callable[[Path], None], name: str, place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / f"{damage.__name__}-{name}"
    stopped(nursery, recipe, run, [5])
    assert name in FILES
    file = run / "checkpoints/step-00000005" / name
    damage(file)
    ended = nursery.run(*in_directory(recipe, run), faults=stop_after(9, at=4))
    assert ended.code == 143, ended.stderr
    assert f"warning: {file}: " in ended.stderr
    assert "the checkpoint before it is taken" in ended.stderr
    assert "going on after step 4, from" in ended.stderr
    assert nursery.run(*in_directory(recipe, run)).code == 0
    assert left(run) == undisturbed


def test_trap_25_a_chosen_checkpoint_that_is_damaged_is_refused_and_not_replaced(
    place: Path, recipe: Path, nursery: Nursery
) -> None:
    run = place / "chosen-damaged"
    stopped(nursery, recipe, run, [5])
    chosen = run / "checkpoints/step-00000005"
    saved = steps_saved(run)
    flip(chosen / "rng-0.safetensors")
    ended = nursery.run(*in_directory(recipe, run), "--resume", chosen)
    assert ended.code == 4
    assert ended.stderr.count("error: ") == 1
    assert "rng-0.safetensors: its bytes are not those that were written" in ended.stderr
    assert steps_saved(run) == saved
