"""Directories that appear whole or not at all, each made once, in a cache that several processes and machines may share."""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rmtrain.errors import DISK_FULL, RecipeError, TryAgain

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0
LINE_BYTES = 200
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class Claim:
    """A lock that is held, until the block ends. `said` may be set to a line that others read.

    Args:
        file: the lock file.
        descriptor: of the open and locked file; None: the file system has no locks, and everybody claims.
    """

    def __init__(self, file: Path, descriptor: int | None) -> None:
        self.file, self.descriptor = file, descriptor
        self.said = ""
        self._beats = 0
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        if self.descriptor is not None:
            self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.descriptor is not None:
            self._ended.set()
            self._heart.join()
            self.release()

    def release(self) -> None:
        """Give the lock back, and remove its file."""
        if self.descriptor is not None:
            self.file.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it is gone, and tries again
            os.close(self.descriptor)
            self.descriptor = None

    def _beat(self) -> None:
        while True:
            self._beats += 1
            line = f"{self._beats} {self.said}".encode()[:LINE_BYTES]
            try:
                os.pwrite(self.descriptor or -1, line.ljust(LINE_BYTES), 0)
            except OSError:  # a full disk: others will take the holder for dead, and no more
                return
            if self._ended.wait(BEAT_SECONDS):
                return


def claim(file: Path) -> Claim | None:
    """The claim of this process, or None while another one holds it.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return Claim(file, None)
            raise
        if _is_at(file, descriptor):
            return Claim(file, descriptor)
        os.close(descriptor)  # its holder has removed it in between


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Watch:
    """Looks at somebody else's claim.

    Args:
        file: the lock file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._last = ""
        self._heard = time.monotonic()

    def look(self) -> str | None:
        """What the holder says; None: it has been silent for so long that it is taken for dead.

        Only changes count, by the clock of this process: those of several machines differ.
        """
        try:
            line = self.file.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            line = ""
        if line != self._last:
            self._last, self._heard = line, time.monotonic()
        return line.partition(" ")[2] if time.monotonic() - self._heard < SILENCE_SECONDS else None


PART, LOCK = ".new-", ".lock-"
LOOK_SECONDS = 0.2
ABANDONED_SECONDS = 24 * 3600.0
FULL = (*DISK_FULL, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
logger = logging.getLogger("rmtrain")

Make = Callable[[Path, Claim], None]


def get_or_build(target: Path, make: Make, waiting: Callable[[str], None] = lambda said: None) -> Path:
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
