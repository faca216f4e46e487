"""Checkpoints: written to a temporary directory, synced and renamed; every byte is verified before it is loaded.

`checkpoints/step-00000120` holds `model.safetensors`, `optimizer.safetensors`, `rng-RANK.safetensors`, `state.json` and `manifest.json`,
which has the id of the run and the sha256 of each other file. No other file is ever opened or deleted.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmtrain.engine.run_check import STEP
from rmtrain.errors import CheckpointError, TryAgain
from rmtrain.files import sha256_file, share, sync, write_text

logger = logging.getLogger("rmtrain")

FORMAT = 3
MANIFEST, STATE = "manifest.json", "state.json"
PART = re.compile(r"manifest\.json|state\.json|(model|optimizer|rng-\d+)\.safetensors")
"""The files of a checkpoint."""
HALF_WRITTEN = re.compile(r"\.tmp\w+|\.(manifest|state)\.json\.\d+\.tmp")
"""What kill -9 can leave of a file that safetensors or `atomic_write` has not renamed yet."""
TEMPORARY, ASIDE = ".tmp-", "aside-"
"""Prefixes of a checkpoint that is being written or deleted, and of one that was in the way."""
ROOM = 1.2
"""Free space required before a checkpoint is written, as a multiple of its size."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    files: frozenset[str]
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one of its files, on the CPU; raise CheckpointError when it has no such file."""
        file = self.path / f"{name}.safetensors"
        if file.name not in self.files:
            raise CheckpointError(f"{self.path}: {file.name} is missing")
        tensors: dict[str, Tensor] = load_file(file)
        return tensors


class Checkpoints:
    """The checkpoints of one run, in one directory; those of other runs are neither used nor deleted."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.directory, self.run_id = directory, run_id

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step, which need not exist."""
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step to the disk: tensors by file name (without suffix) and their own name, and JSON values.

        Raises:
            TryAgain: the disk is full or fails; earlier checkpoints are intact.
            CheckpointError: a tensor is empty, as FSDP and ZeRO leave it where the shards of a weight were not gathered.
        """
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                if not tensor.numel():
                    place = f"{file}.safetensors: {name}"
                    raise CheckpointError(f"{place} is empty (sharded weights were not gathered); refusing to save")
        target = self.path(step)
        partial = _free(self.directory / f"{TEMPORARY}{target.name}")
        try:
            self.check_room(sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values()))
            partial.mkdir()
            for name, tensors in files.items():
                _write_tensors(partial / f"{name}.safetensors", tensors)
            write_text(partial / STATE, json.dumps(state, indent=2) + "\n")
            hashes = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
            manifest = {"format": FORMAT, "run_id": self.run_id, "step": step, "sha256": hashes}
            write_text(partial / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            sync(partial)
            _move_aside(target)
            partial.rename(target)
            sync(self.directory)
        except OSError as error:
            self._discard(partial)
            reason = os.strerror(error.errno) if error.errno else str(error)
            remedy = "earlier checkpoints are intact: run the same command again once the disk is writable"
            raise TryAgain(f"{self.directory}: checkpoint of step {step} could not be written: {reason}; {remedy}") from error
        return target

    def check_room(self, size: int) -> None:
        """Raise TryAgain when a checkpoint of `size` bytes does not fit on the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < ROOM * size:
            needed = f"a checkpoint needs {ROOM * size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free"
            raise TryAgain(f"{self.directory}: {needed}; make room and run the same command again")

    def newest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint of this run, or None if it has none; damaged ones are reported and skipped.

        Raises:
            CheckpointError: all are damaged.
        """
        problems: list[str] = []
        for path in self._all():
            if _owner(path) not in (self.run_id, None):  # reported: damage to a manifest can look like this
                logger.warning("%s: ignored, since it belongs to another run", path)
                continue
            try:
                checkpoint = self.read(path)
            except CheckpointError as error:
                problems += error.problems
            else:
                for problem in problems:
                    logger.warning("%s; falling back to step %d", problem, checkpoint.step)
                return checkpoint
        if problems:
            raise CheckpointError(*problems, f"{self.directory}: no valid checkpoint; --fresh starts over")
        return None

    def read(self, path: Path) -> Checkpoint:
        """Verify a checkpoint and return it; raise CheckpointError if it belongs to another run, or a file is missing or damaged."""
        run_id, hashes = _read_manifest(path)
        if run_id != self.run_id:
            raise CheckpointError(f"{path}: belongs to another run")
        for name, sha256 in hashes.items():
            file = path / name
            if file.is_symlink() or not file.is_file():
                raise CheckpointError(f"{file}: missing")
            if sha256_file(file) != sha256:
                raise CheckpointError(f"{file}: checksum mismatch")
        for file in sorted(path.iterdir()):
            if file.name not in hashes and file.name != MANIFEST:
                logger.warning("%s: ignoring unexpected file %s", path, file.name)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path, _step_of(path), frozenset(hashes), state)

    def rotate(self, keep: int, protected: Collection[int]) -> None:
        """Delete all checkpoints of this run except the newest `keep` and those of the `protected` steps."""
        for path in [path for path in self._all() if _owner(path) == self.run_id][keep:]:
            if _step_of(path) not in protected:
                self._discard(path)

    def set_aside_after(self, step: int) -> None:
        """Rename all checkpoints after a step: the run resumes from there, and they no longer belong to its history."""
        for path in self._all():
            if _step_of(path) > step and _owner(path) in (self.run_id, None):  # a damaged one is most likely ours
                _move_aside(path)

    def clean(self) -> None:
        """Delete what an interrupted process left half written or half deleted."""
        for path in self.directory.glob(f"{TEMPORARY}*"):
            self._discard(path)

    def _all(self) -> list[Path]:
        """Return all checkpoints, those of other runs included, newest first."""
        paths = [path for path in self.directory.glob("step-*") if STEP.fullmatch(path.name) and not path.is_symlink()]
        return sorted(paths, key=_step_of, reverse=True)

    def _discard(self, path: Path) -> None:
        """Delete our files of a checkpoint. A failure is only a warning: no run ends because an old checkpoint cannot be deleted."""
        if path.is_symlink() or not path.is_dir():
            return
        try:
            if not path.name.startswith(TEMPORARY):  # renamed first, so that a half-deleted one is never taken for a valid one
                path = path.rename(_free(path.with_name(f"{TEMPORARY}{path.name}")))
            for file in path.iterdir():
                if PART.fullmatch(file.name) or HALF_WRITTEN.fullmatch(file.name):
                    file.unlink()
            if any(path.iterdir()):
                logger.warning("not deleting %s: it contains files rmtrain did not write", path)
            else:
                path.rmdir()
        except OSError as error:
            logger.warning("%s: could not be deleted: %s", path, error.strerror)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _owner(path: Path) -> str | None:
    """Return the id of the run that a checkpoint belongs to; None when its manifest is damaged."""
    try:
        return _read_manifest(path)[0]
    except CheckpointError:
        return None


def _move_aside(path: Path) -> None:
    """Rename what is in the way of a run, with a warning."""
    if path.exists():
        aside = path.rename(_free(path.with_name(f"{ASIDE}{path.name}")))
        logger.warning("renamed %s to %s; delete it when you no longer need it", path, aside.name)


def _free(path: Path) -> Path:
    """Return the first of path, path-2, path-3, ... that does not exist."""
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], others) if not os.path.lexists(free))


def _read_manifest(path: Path) -> tuple[str, dict[str, str]]:
    """Return the run id of a checkpoint, and the sha256 of each of its files; raise CheckpointError for any other manifest."""
    file = path / MANIFEST
    if not STEP.fullmatch(path.name):
        raise CheckpointError(f"{path}: not a checkpoint; name a directory such as checkpoints/step-00000120")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version, step, run_id = manifest["format"], manifest["step"], manifest["run_id"]
        hashes = {name: sha256 for name, sha256 in manifest["sha256"].items() if isinstance(sha256, str)}
        is_complete = isinstance(run_id, str) and STATE in hashes and hashes.keys() == manifest["sha256"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: missing or damaged") from error
    if version != FORMAT:
        raise CheckpointError(f"{file}: format {version} is not supported; this version of rmtrain reads format {FORMAT}")
    if not is_complete or not all(PART.fullmatch(name) for name in hashes):  # such as ../../x: only our own names are opened
        raise CheckpointError(f"{file}: lists unexpected files")
    if step != _step_of(path):
        raise CheckpointError(f"{file}: is the manifest of step {step}")
    return run_id, hashes


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # safetensors reports a full disk as text only
        raise OSError(errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO, str(error)) from error
    share(file)
    sync(file)
