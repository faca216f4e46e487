"""Directories that appear whole or not at all, each made once, in a cache that several processes and machines may share."""

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rmtrain.data.claim import Claim, Watch, claim
from rmtrain.errors import DISK_FULL, RecipeError, TryAgain

PART, LOCK = ".new-", ".lock-"
LOOK_SECONDS = 0.2
ABANDONED_SECONDS = 24 * 3600.0
FULL = (*DISK_FULL, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
logger = logging.getLogger("rmtrain")

Make = Callable[[Path, Claim], None]


def made_once(target: Path, make: Make, waiting: Callable[[str], None] = lambda said: None) -> Path:
    """A directory, made by one process while others wait for it; who finds that its maker has died makes it.

    It is made under another name and renamed, so that a process that is killed leaves nothing under this one. What killed processes
    left is removed here. A maker that gives no sign of life, or a file system without locks, keeps nobody waiting for ever: then
    several make it, and the first one's stays.

    Args:
        target: the directory. When it is there already, nothing is written.
        make: fills a directory; what it sets `Claim.said` to, is told to those who wait.
        waiting: told what the process says that is waited for.

    Raises:
        TryAgain: the disk is full.
        RecipeError: the cache cannot be written.
    """
    lock, watch = target.parent / f"{LOCK}{target.name}", None
    while not target.exists():
        with _write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            held = claim(lock)
        if held is None:
            if watch is None:
                logger.info("another process is making %s; waiting for it", target)
            watch = watch or Watch(lock)
            said = watch.look()
            if said is not None:
                waiting(said)
                time.sleep(LOOK_SECONDS)
                continue
            logger.warning("the process that is making %s has given no sign of life; making it here, too", target)
            held = Claim(lock, None)
        with held:
            if not target.exists():
                if held.descriptor is not None:
                    _sweep(target)
                with new_directory(target, is_sole=held.descriptor is not None) as temporary:
                    make(temporary, held)
    return target


@contextmanager
def new_directory(target: Path, is_sole: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that is renamed to it when the block ends well, and removed otherwise.

    Only the owner can read it. If another process has made `target` in the meantime, its result stays: equal keys, equal content.

    Args:
        target: the directory.
        is_sole: whether this process holds the claim to it, so that the next one to do so may remove what is left of it.

    Raises:
        TryAgain: the disk is full.
        RecipeError: the cache cannot be written.
    """
    with _write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{PART}{target.name}-" if is_sole else PART, dir=target.parent))
        try:
            yield temporary
            _rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed processes left in a cache: what they made under a claim that nobody holds, and else what is a day old."""
    for part in target.parent.glob(f"{PART}*"):
        owner = part.name.removeprefix(PART).rpartition("-")[0]
        if owner == target.name:
            shutil.rmtree(part, ignore_errors=True)
        elif owner:
            held = claim(target.parent / f"{LOCK}{owner}")
            if held is not None and held.descriptor is not None:
                shutil.rmtree(part, ignore_errors=True)
                held.release()
        elif _age(part) > ABANDONED_SECONDS:
            shutil.rmtree(part, ignore_errors=True)


def _age(folder: Path) -> float:
    """Seconds since anything in a folder was written."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return 0.0


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise TryAgain(
                f"data.cache_dir: the disk of {target.parent} is full; make room, or name another directory"
            ) from error
        if error.errno in FORBIDDEN:
            raise RecipeError(f"data.cache_dir: cannot write to {target.parent}: {os.strerror(error.errno)}") from error
        raise
