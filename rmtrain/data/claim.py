"""The right to make one thing: held by one process at a time, given back by the kernel when the process dies.

It is an flock on a file. Its holder writes into the file every second what it does; others read that, and take a holder that has been
silent for a minute for dead: a lock may outlive its holder where several machines share a file system.
"""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

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
