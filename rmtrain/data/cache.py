"""Files that appear whole or not at all, in a cache that several processes share."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmtrain.errors import RecipeError, TryAgain


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that is renamed to it when the block ends well, and removed otherwise.

    Only the owner can read it. If another process has made `target` in the meantime, its result stays: equal keys, equal content.

    Raises:
        TryAgain: the disk is full.
        RecipeError: the cache cannot be written.
    """
    with _write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            yield temporary
            _rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TryAgain(
                f"data.cache_dir: the disk of {target.parent} is full; make room, or name another directory"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise RecipeError(f"data.cache_dir: cannot write to {target.parent}: {os.strerror(error.errno)}") from error
        raise
