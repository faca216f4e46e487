"""Files and directories on disk: written whole or not at all, synced, hashed, locked, cached. Nothing else does any of this by hand."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock, Timeout

from rmtrain.errors import DISK_FULL, RecipeError, RmtrainError, TryAgain

logger = logging.getLogger("rmtrain")

HASHED_BYTES = 1 << 20
MAX_JSON_BYTES = 64 * 2**20
Json = TypeVar("Json", dict[str, Any], list[Any])
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""The errors by which a file system, such as some network mounts, says that it has no locks."""


def expanded(path: str | Path, key: str = "") -> Path:
    """Return a path with `~` expanded. That of an unknown user stays, and is missing; with a `key`, it is refused: it is to be written."""
    result = os.path.expanduser(path)
    if key and result.startswith("~"):
        raise RecipeError(f"{key}: {path}: no such home directory; set HOME, or write ./{path} for a folder of that name")
    return Path(result)


def read_json(path: Path, kind: type[Json]) -> Json:
    """Return the JSON object (`dict`) or list in a file; raises ValueError where it is something else, not JSON, no file, or too long."""
    if not stat.S_ISREG(path.stat().st_mode):  # to open a named pipe can wait for ever
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES:,} bytes")
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"expected {'an object' if kind is dict else 'a list'}, got {type(value).__name__}")
    return value


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` when the block ends without an error, and leaves `path` unchanged otherwise.

    The bytes are on the disk before the name is: a machine that loses power keeps the old file or has the new one. `mode`: permissions of
    the new file, before the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a UTF-8 file with `atomic_write`."""
    with atomic_write(path, mode) as file:
        file.write(text.encode())


def share(path: Path) -> None:
    """Give a file that safetensors wrote, for its owner only, the permissions of any other new file."""
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path) -> str | None:
    """Return why nothing can be made below a path, as below `/proc` or on a read-only disk, else None. Nothing is left there.

    A full disk does not count: that passes.
    """
    parent = next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.exists(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is not writable"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=PART, dir=parent))  # permissions do not say all: root has them everywhere
    except OSError as error:
        return None if error.errno in FULL else f"{parent} is not writable: {error.strerror}"
    return None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder below `TMPDIR`, which is removed at the end; raises TryAgain, naming `TMPDIR`, if it cannot be made or filled."""
    try:
        with tempfile.TemporaryDirectory(prefix="rmtrain-") as folder:
            yield Path(folder)
    except Exception as error:  # safetensors and tokenizers report a full disk as text of their own errors
        number = getattr(error, "errno", None)
        is_full = number in FULL or "No space left" in str(error) or "os error 28" in str(error)
        if isinstance(error, RmtrainError) or not (is_full or "No usable temporary directory" in str(error)):
            raise
        place = f"TMPDIR: {tempfile.tempdir or os.environ.get('TMPDIR', '/tmp')}"
        raise TryAgain(f"{place}: the disk is full, or not writable; free some space, or set another directory") from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


def try_lock(path: Path) -> FileLock | None:
    """Lock a file for this process, without waiting; return None when another process holds it.

    The file is created, and stays after `release`. The kernel releases the lock when the process dies. On a file system without locks a
    warning is logged and the lock counts as held.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks; make sure that no second process works here", path.parent)
    return lock


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock of `try_lock`. The file is not created, and locked for a moment only."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # missing, another user's, or on a file system without locks
        return False
    return False


PART, LOCK = ".new-", ".lock-"
POLL_SECONDS = 0.2
FULL = (*DISK_FULL, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def get_or_build(target: Path, build: Callable[[Path], None]) -> Path:
    """Return a directory of `data.cache_dir`, built by one process while others wait for it; if that one dies, another builds it.

    On a file system without locks several processes may build it; the first result stays.

    Args:
        target: the directory. If it exists, nothing is written.
        build: fills an empty directory, which is then renamed to `target`.

    Raises:
        TryAgain: the disk is full.
        RecipeError: the cache cannot be written, or the directory is another user's, or others may write to it.
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
                        # Before the work: some mounts show every file as another user's, or as open to all.
                        _check_owner(temporary)
                        build(temporary)
            finally:
                # While the lock is held: filelock does not accept a lock on a file that was removed before it got it.
                lock_file.unlink(missing_ok=True)
                lock.release()
    except OSError as error:
        if error.errno in FULL:
            message = f"data.cache_dir: the disk of {target.parent} is full; free some space, or set another directory"
            raise TryAgain(message) from error
        # Places such as /proc have errors of their own: a file is missing that was to be made.
        is_here = isinstance(error.filename, str) and Path(error.filename).parent == target.parent
        if error.errno in FORBIDDEN or is_here or not os.path.isdir(target.parent):
            whose = _whose(Path(error.filename or target.parent)) if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise RecipeError(f"data.cache_dir: cannot write to {target.parent}: {error.strerror}{whose}") from error
        raise
    _check_owner(target)
    return target


OWN_CACHE = "set data.cache_dir or RMTRAIN_CACHE to a directory of your own"


def _check_owner(directory: Path) -> None:
    """Refuse a cached directory that another user owns or may write to: its content decides what this user trains on."""
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise RecipeError(f"data.cache_dir: {directory} belongs to {_user_name(status.st_uid)}; {OWN_CACHE}")
    is_closed = not status.st_mode & 0o011  # then nobody else reaches its files, whatever their own permissions
    for path in [directory] if is_closed else [directory, *directory.iterdir()]:
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise RecipeError(
                f"data.cache_dir: other users may write to {path}; remove {directory.name} and try again, or {OWN_CACHE}"
            )


def _whose(refused: Path) -> str:
    """Return the end of a message: the user to whom a path that cannot be written belongs, unless it is this one."""
    for path in (refused, *refused.parents):  # it may be missing, or in a folder that is closed
        with suppress(OSError):
            owner = path.stat().st_uid
            return "" if owner == os.geteuid() else f"; {path} belongs to {_user_name(owner)}: {OWN_CACHE}"
    return ""


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user with id {uid}"


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
        with suppress(PermissionError):  # another user's
            if owner == target.name:
                shutil.rmtree(part, ignore_errors=True)
            elif lock := try_lock(lock_file):
                shutil.rmtree(part, ignore_errors=True)
                lock_file.unlink(missing_ok=True)
                lock.release()
