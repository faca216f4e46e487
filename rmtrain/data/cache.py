"""Directories that appear whole or not at all, each built once, in a cache that several processes may share."""

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rmtrain.errors import DISK_FULL, RecipeError, TryAgain
from rmtrain.files import try_lock

PART, LOCK = ".new-", ".lock-"
POLL_SECONDS = 0.2
FULL = (*DISK_FULL, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
logger = logging.getLogger("rmtrain")


def get_or_build(target: Path, build: Callable[[Path], None]) -> Path:
    """Return a directory, built by one process while others wait for it. If that process dies, one of those that wait builds it.

    On a file system without locks several processes may build it; the first result stays.

    Args:
        target: the directory. If it exists, nothing is written.
        build: fills an empty directory, which is then renamed to `target`.

    Raises:
        TryAgain: the disk is full.
        RecipeError: the cache cannot be written.
    """
    lock_file, is_waiting = target.parent / f"{LOCK}{target.name}", False
    try:
        while not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = try_lock(lock_file)
            if lock is None:
                if not is_waiting:
                    logger.info("another process is building %s; waiting for it", target)
                is_waiting = True
                time.sleep(POLL_SECONDS)
                continue
            try:
                if not target.exists():
                    if lock.is_locked:  # not on a file system without locks, where a directory may be in use
                        _sweep(target)
                    with new_directory(target) as temporary:
                        build(temporary)
            finally:
                # While the lock is held: filelock does not accept a lock on a file that was removed before it got it.
                lock_file.unlink(missing_ok=True)
                lock.release()
    except OSError as error:
        if error.errno in FULL:
            message = f"data.cache_dir: the disk of {target.parent} is full; free some space, or set another directory"
            raise TryAgain(message) from error
        if error.errno in FORBIDDEN:
            raise RecipeError(f"data.cache_dir: cannot write to {target.parent}: {os.strerror(error.errno)}") from error
        raise
    return target


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory next to `target`, for its owner only. It is renamed to `target` if the block succeeds, else removed.

    If another process has made `target` in the meantime, its result stays: equal keys, equal content.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f"{PART}{target.name}-", dir=target.parent))
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove the directories that killed processes left in a cache: those of `target`, whose lock is held here, or of a free lock."""
    for part in target.parent.glob(f"{PART}*"):
        owner = part.name.removeprefix(PART).rpartition("-")[0]
        lock_file = target.parent / f"{LOCK}{owner}"
        if owner == target.name:
            shutil.rmtree(part, ignore_errors=True)
        elif lock := try_lock(lock_file):
            shutil.rmtree(part, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
            lock.release()
