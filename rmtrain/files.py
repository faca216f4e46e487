"""Files on disk: written whole or not at all, synced, hashed and locked. Nothing else in rmtrain does any of this by hand."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

logger = logging.getLogger("rmtrain")

HASHED_BYTES = 1 << 20
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""The errors by which a file system, such as some network mounts, says that it has no locks."""


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


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
