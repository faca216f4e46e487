"""Checkpoints: written aside, read back, renamed, the manifest last. What is resumed from has been verified byte by byte.

`checkpoints/step-00000120` holds `model.safetensors`, `optimizer.safetensors`, `rng-RANK.safetensors`, `state.json` and
`manifest.json`, which names each file with its size and sha256, and the run that it belongs to. Nothing but these files is ever opened, and
nothing but these is ever deleted.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmtrain.errors import CheckpointError, TryAgain
from rmtrain.files import sha256_file

logger = logging.getLogger("rmtrain")

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
STEP = re.compile(r"step-(\d{8,12})")
OURS = re.compile(r"manifest\.json|state\.json|(model|optimizer|rng-\d+)\.safetensors")
HALF_WRITTEN = re.compile(r"\.tmp\w+")
"""The name under which safetensors writes a file, before it renames it."""
WRITING, DELETING, ASIDE = ".writing-", ".deleting-", "aside-"
ROOM = 1.2
"""Free space that is asked for before a checkpoint is written, as a multiple of its size."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were all found as they were written."""

    path: Path
    step: int
    files: frozenset[str]
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU; raises CheckpointError when it has no such file."""
        file = self.path / f"{name}.safetensors"
        if file.name not in self.files:
            raise CheckpointError(f"{self.path}: it has no {file.name}")
        tensors: dict[str, Tensor] = load_file(file)
        return tensors


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: of all of them.
        run_id: of the run; those of other runs are neither used nor deleted.
    """

    def __init__(self, directory: Path, run_id: str) -> None:
        self.directory, self.run_id = directory, run_id

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint of a step. When this returns it is on the disk, and was read back.

        Args:
            step: steps that are done.
            files: tensors by file name (without suffix) and by their own name.
            state: JSON values.

        Raises:
            TryAgain: it cannot be written, since the disk is full or fails; older checkpoints are as they were.
            CheckpointError: a tensor is empty, or what was read back is not what was written.
        """
        target = self.path(step)
        aside = _free(self.directory / f"{WRITING}{target.name}")
        try:
            self.check_room(sum(size_of(tensors) for tensors in files.values()))
            aside.mkdir()
            for name, tensors in files.items():
                _write_tensors(aside / f"{name}.safetensors", tensors)
            _write_json(aside / STATE, state)
            _write_json(aside / MANIFEST, self._manifest(step, aside))
            _sync(aside)
            _move_aside(target)
            aside.rename(target)
            _sync(self.directory)
        except OSError as error:
            self._discard(aside)
            why = os.strerror(error.errno) if error.errno else str(error)
            raise TryAgain(
                f"{self.directory}: the checkpoint of step {step} cannot be written: {why}; older ones are as they were. "
                "Run the same command again when it can"
            ) from error
        return target

    def check_room(self, size: int) -> None:
        """Raise TryAgain when a checkpoint of so many bytes does not fit on the disk."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < ROOM * size:
            need = f"{ROOM * size / 1e6:,.1f} MB"
            raise TryAgain(
                f"{self.directory}: a checkpoint needs {need}, and {free / 1e6:,.1f} MB are free; older ones are as they were. "
                "Make room and run the same command again"
            )

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is as it was written; damaged ones are named and passed over.

        Raises:
            CheckpointError: there are checkpoints of this run, and every one is damaged.
        """
        problems: list[str] = []
        for path in self._newest_first():
            try:
                found = self.read(path)
            except CheckpointError as problem:
                problems += problem.problems
            else:
                for text in problems:
                    logger.warning("%s; the checkpoint before it is taken", text)
                return found
        if problems:
            raise CheckpointError(*problems, f"no checkpoint in {self.directory} can be used; --fresh starts over")
        return None

    def read(self, path: Path) -> Checkpoint:
        """A checkpoint, every file of which is verified.

        Raises:
            CheckpointError: it is of another run, or a file is missing, or not as it was written.
        """
        manifest = _read_manifest(path)
        if manifest["run_id"] != self.run_id:
            raise CheckpointError(f"{path}: it belongs to another run")
        for name, facts in manifest["files"].items():
            _verify(path / name, facts)
        for file in sorted(path.iterdir()):
            if file.name not in manifest["files"] and file.name != MANIFEST:
                logger.warning("%s: %s is no part of it and is not opened", path, file.name)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path, manifest["step"], frozenset(manifest["files"]), state)

    def rotate(self, keep: int, protected: Collection[int]) -> None:
        """Delete all checkpoints of this run but the newest `keep` and those of the `protected` steps."""
        surely_ours = [path for path in self._newest_first() if self._run_of(path) == self.run_id]
        for path in surely_ours[keep:]:
            if _step_of(path) not in protected:
                self._discard(path)

    def set_aside_after(self, step: int) -> None:
        """Rename all checkpoints after a step: the run goes on from there, and they are no longer of its past."""
        for path in self._newest_first():
            if _step_of(path) > step:
                _move_aside(path)

    def clean(self) -> None:
        """Delete what an interrupted run left half written or half deleted."""
        for path in [*self.directory.glob(f"{WRITING}*"), *self.directory.glob(f"{DELETING}*")]:
            self._discard(path)

    def _newest_first(self) -> list[Path]:
        """All but those of other runs. One whose manifest cannot be read counts as ours: it is damaged, and to be named."""
        paths = [path for path in self.directory.glob("step-*") if STEP.fullmatch(path.name) and not path.is_symlink()]
        return [path for path in sorted(paths, key=_step_of, reverse=True) if self._run_of(path) in (self.run_id, None)]

    def _run_of(self, path: Path) -> str | None:
        try:
            return str(_read_manifest(path)["run_id"])
        except CheckpointError:
            return None

    def _manifest(self, step: int, directory: Path) -> dict[str, Any]:
        files = {file.name: {"size": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(directory.iterdir())}
        facts = {"format": FORMAT, "run_id": self.run_id, "step": step, "files": files}
        return {**facts, "seal": _seal(facts)}

    def _discard(self, path: Path) -> None:
        """Delete a checkpoint of ours, or what is left of one: renamed first, so that it is never taken for a whole one.

        What cannot be deleted stays, and no run ends for it.
        """
        if not path.is_dir() or path.is_symlink():
            return
        doomed = path
        try:
            if not path.name.startswith((WRITING, DELETING)):
                doomed = _free(path.with_name(f"{DELETING}{path.name}"))
                path.rename(doomed)
            for file in doomed.iterdir():
                if OURS.fullmatch(file.name) or HALF_WRITTEN.fullmatch(file.name):
                    file.unlink()
            if any(doomed.iterdir()):
                logger.warning("%s holds files that are not ours, and stays", doomed)
            else:
                doomed.rmdir()
        except OSError as error:
            logger.warning("%s cannot be deleted, and stays: %s", doomed if doomed.exists() else path, error.strerror)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _move_aside(path: Path) -> None:
    """Rename what is in the way of a run, and say so."""
    if path.exists():
        aside = _free(path.with_name(f"{ASIDE}{path.name}"))
        path.rename(aside)
        logger.warning("%s is now %s; delete it when you do not need it", path, aside.name)


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that nothing has."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raises CheckpointError when it is missing, damaged or of another format."""
    file = path / MANIFEST
    if not STEP.fullmatch(path.name):
        raise CheckpointError(f"{path}: no checkpoint; expected a directory such as checkpoints/step-00000120")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        form, step, files, seal = (manifest[key] for key in ("format", "step", "files", "seal"))
        facts = {key: value for key, value in manifest.items() if key != "seal"}
        names, sound = (
            set(files),
            all(type(facts["size"]) is int and isinstance(facts["sha256"], str) for facts in files.values()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: missing or damaged") from error
    if seal != _seal(facts) or not isinstance(manifest.get("run_id"), str):
        raise CheckpointError(f"{file}: missing or damaged")
    if form != FORMAT:
        raise CheckpointError(f"{file}: its format is {form}, this version of rmtrain reads {FORMAT}")
    if not sound or STATE not in names or not all(OURS.fullmatch(name) for name in names):
        raise CheckpointError(f"{file}: it names other files than those of a checkpoint")
    if step != _step_of(path):
        raise CheckpointError(f"{file}: it is of step {step}")
    return dict(manifest)


def _seal(facts: Mapping[str, Any]) -> str:
    """sha256 of what a manifest says, so that damage to it is not taken for damage to a file."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _verify(file: Path, facts: Mapping[str, Any]) -> None:
    if not file.is_file() or file.is_symlink():
        raise CheckpointError(f"{file}: missing")
    if file.stat().st_size != facts["size"]:
        raise CheckpointError(f"{file}: {file.stat().st_size} bytes, written with {facts['size']}")
    if sha256_file(file) != facts["sha256"]:
        raise CheckpointError(f"{file}: its bytes are not those that were written")


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    empty = [name for name, tensor in tensors.items() if not tensor.numel()]
    if empty:
        raise CheckpointError(f"{file.name}: {empty[0]} is empty: what it stands for lies elsewhere and would be lost")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # how it tells of a full disk
        raise OSError(errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO, str(error)) from error
    _sync(file)
    try:
        with safe_open(file, framework="pt") as stored:
            differing = [name for name, tensor in tensors.items() if not _same(stored.get_tensor(name), tensor)]
            surplus = set(stored.keys()) - tensors.keys()
    except SafetensorError as error:
        raise CheckpointError(f"{file}: cannot be read back: {error}") from error
    if differing or surplus:
        raise CheckpointError(f"{file}: {sorted([*differing, *surplus])[0]} was read back otherwise than it was written")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether shapes, types and all bits are the same."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(file)


def _sync(path: Path) -> None:
    """Put a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
