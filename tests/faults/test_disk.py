"""Full disks, read-only disks and damaged files: saved checkpoints stay, and the same command finishes the run."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rmtrain.engine.run_log import RunLog
from rmtrain.errors import TryAgain
from tests.engine.test_checkpoint import flip, truncate
from tests.faults.runs import in_directory, left, steps_saved, stop_after, stopped
from tests.forks import FAST, ForkServer


class Disk:
    """A file system of a few megabytes, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        """Change its size, or make it read-only."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self, leave: int) -> None:
        """Leave about `leave` bytes free."""
        with (self.path / "ballast").open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(self.path).free - leave)))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: run as root ({mounted.stderr.strip()})")
    yield Disk(path)
    subprocess.run(["umount", str(path)], check=True)


def test_trap_28_small_disks_are_reported_before_training(disk: Disk, recipe: Path, server: ForkServer) -> None:
    disk.fill(300_000)
    ended = server.run(*in_directory(recipe, disk.path / "run"))
    assert ended.code == 75, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"{disk.path}/run/checkpoints: " in error
    assert " MB" in error
    assert not (disk.path / "run/ledger.jsonl").exists()


def test_trap_28_disks_that_fill_up_keep_checkpoints(
    disk: Disk, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    """The run ends with 75 in the middle, and once there is room the same command finishes it."""
    run = disk.path / "run"
    for _ in range(2):
        ended = server.run(*in_directory(recipe, run), "checkpoints.keep=9")
        assert ended.code == 75, ended.stderr
        assert "Traceback" not in ended.stderr
        saved = steps_saved(run)
        assert 2 <= len(saved) < 7, "guard: the disk was full in the middle of the run"
        assert not list((run / "checkpoints").glob(".*")), "nothing half written takes up space"
    disk.remount("size=20m")
    ended = server.run(*in_directory(recipe, run), "checkpoints.keep=9")
    assert ended.code == 0, ended.stderr
    assert f"from step {saved[-1]} (" in ended.stderr
    assert left(run) == undisturbed


def test_a_full_disk_at_export_is_recovered(disk: Disk, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]) -> None:
    run = disk.path / "run"
    assert server.run(*in_directory(recipe, run), faults=[("export", 1, "SIGTERM"), *FAST]).code == 143
    disk.fill(60_000)
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 75, ended.stderr
    assert not (run / "model").exists()
    assert not (run / ".model.partial").exists(), "nothing half written takes up space"
    (disk.path / "ballast").unlink()
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert left(run) == undisturbed


def test_a_full_disk_at_a_record_is_recovered(
    disk: Disk, place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    """The error names the record, and a half-written line does not count when the run is resumed."""
    disk.fill(0)
    with pytest.raises(TryAgain, match=r"metrics\.jsonl: "):
        RunLog(Accelerator(cpu=True), disk.path).metrics(1, {"train/loss": 1.0})
    disk.remount("ro")
    with pytest.raises(TryAgain, match=r"metrics\.jsonl: .*Read-only file system"):
        RunLog(Accelerator(cpu=True), disk.path).metrics(1, {"train/loss": 1.0})
    run = place / "full-record"
    ended = server.run(*in_directory(recipe, run), faults=[("record", 9, "ENOSPC"), *FAST])
    assert ended.code == 75, ended.stderr
    assert "No space left on device" in ended.stderr
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')
    assert server.run(*in_directory(recipe, run)).code == 0
    assert left(run) == undisturbed


def test_a_read_only_directory_is_refused(disk: Disk, recipe: Path, server: ForkServer) -> None:
    stopped(server, recipe, disk.path / "run", [3])
    disk.remount("ro")
    for name in ("run", "new/run"):
        ended = server.run(*in_directory(recipe, disk.path / name))
        assert ended.code == 2, ended.stderr
        assert "error: run.output_dir: " in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_disk_that_turns_read_only_keeps_checkpoints(
    place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    run = place / "turned-read-only"
    ended = server.run(*in_directory(recipe, run), faults=[("tensors", 5, "EROFS"), ("unlink", 0, "EROFS"), *FAST])
    assert ended.code == 75, ended.stderr
    assert ended.stderr.count("Read-only file system") == 2, "the save failed, and so did deleting what it had written"
    assert "Traceback" not in ended.stderr
    assert list((run / "checkpoints").glob(".tmp-*")), "guard: files of the half-written one could not be deleted"
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert not list((run / "checkpoints").glob(".*")), "deleted when that was possible"
    assert left(run) == undisturbed


def test_undeletable_checkpoints_do_not_stop_a_run(
    place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    run = place / "not-deleted"
    ended = server.run(*in_directory(recipe, run), faults=[("rmdir", 0, "EBUSY"), *FAST])
    assert ended.code == 0, ended.stderr
    busy = [line for line in ended.stderr.splitlines() if "Device or resource busy" in line]
    kept = sorted(path.name for path in (run / "checkpoints").glob(".tmp-*"))
    assert all(any(name in line for line in busy) for name in kept)
    assert len(kept) >= 3, "guard: there was something to delete"
    assert left(run) == undisturbed


@pytest.mark.parametrize(("damage", "name"), [(flip, "optimizer.safetensors"), (truncate, "manifest.json")])
def test_trap_28_damage_falls_back_one_checkpoint(
    damage: Callable[[Path], None], name: str, place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    """Two kinds of damage on a whole run; tests/engine/test_checkpoint.py has all of them."""
    run = place / f"{damage.__name__}-{name}"
    stopped(server, recipe, run, [5])
    file = run / "checkpoints/step-00000005" / name
    damage(file)
    ended = server.run(*in_directory(recipe, run), faults=stop_after(9, at=4))
    assert ended.code == 143, ended.stderr
    assert f"warning: {file}: " in ended.stderr
    assert "from step 4 (" in ended.stderr
    assert server.run(*in_directory(recipe, run)).code == 0
    assert left(run) == undisturbed


def test_trap_25_a_damaged_chosen_checkpoint_is_refused(place: Path, recipe: Path, server: ForkServer) -> None:
    """`--resume` never falls back to another checkpoint than the one that was chosen."""
    run = place / "chosen-damaged"
    stopped(server, recipe, run, [5])
    chosen = run / "checkpoints/step-00000005"
    saved = steps_saved(run)
    flip(chosen / "rng-0.safetensors")
    ended = server.run(*in_directory(recipe, run), "--resume", chosen)
    assert ended.code == 4
    assert ended.stderr.count("error: ") == 1
    assert f"error: {chosen}/rng-0.safetensors: " in ended.stderr
    assert steps_saved(run) == saved
