"""Gates that were missed end a command, after everything else is done."""

import errno
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from rmtrain.engine.trackers import THREAD as TRACKERS
from rmtrain.engine.watch import SAME_SECONDS, SIGNALS, Watch, tell
from rmtrain.errors import DISK_FULL, GateMissed, RmtrainError, Stopped, TryAgain

REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)


@cache
def watch() -> Watch | None:
    """The watch of this rank; None where there is one process, or ranks were started in a way that does not say where they meet."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Watch() if several and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() else None


def is_other_rank() -> bool:
    """Whether this process is one of several, and not the main one."""
    return os.environ.get("RANK", "0") != "0"


def watch_others() -> None:
    """Begin to watch where this process is one of several ranks. Of what is told the reason by us, torch and its store keep quiet."""
    watching = watch()
    if watching is not None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        watching.start()


def take_signals() -> None:
    """Let SIGINT and SIGTERM end the process as an error does: what is begun is undone on the way out."""
    last = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if not before or last - before > SAME_SECONDS:
            raise Stopped(number)

    for number in SIGNALS:
        signal.signal(number, stop)


def end(error: BaseException) -> NoReturn:
    """Say what is wrong, a line per problem, and exit with its code; of a bug, its traceback."""
    known = _known(error)
    watching = watch()
    if watching is None:
        if known is None:
            raise error
        tell([f"error: {problem}" for problem in known.problems])
        leave(known.exit_code)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stopped = isinstance(known, Stopped)
    rank = f"rank {watching.rank}: " if watching.rank and not stopped else ""
    if known is None:
        lines = [f"error: {rank}a bug, or a failure that nobody foresaw", *traceback.format_exception(error)]
        _exit(watching.end(1, [line.rstrip("\n") for line in lines], may_follow=isinstance(error, RuntimeError)))
    _exit(watching.end(known.exit_code, [f"error: {rank}{problem}" for problem in known.problems], stopped=stopped))


def leave(code: str | int | None) -> NoReturn:
    """Exit. A tracker that hangs would keep its library, which waits at the exit, from letting the process go; and of several
    processes one whose threads of gloo still run would abort there, and end those that still export.
    """
    number = code if isinstance(code, int) else int(code is not None)
    watching = watch()
    if watching is not None:
        if number:
            number = watching.end(number, [])
        else:
            watching.done()
    if watching is not None or any(thread.name == TRACKERS for thread in threading.enumerate()):
        _exit(number)
    sys.exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _known(error: BaseException) -> RmtrainError | Stopped | None:
    """An error that has a line; what the machine refuses gets one."""
    if isinstance(error, RmtrainError | Stopped):
        return error
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL:
        return TryAgain(f"the disk is full: {error.filename or error.strerror}; make room and run the same command again")
    if error.errno in REFUSALS and error.filename is not None:
        return RmtrainError(f"{error.filename}: {error.strerror}")
    return None


def fail_on_missed(gates: dict[str, dict[str, Any]], hub_problem: str | None = None) -> None:
    """Raise GateMissed with a line per gate that was missed, saying by how much; RmtrainError where only the upload failed.

    Of several ranks the main one does: the others are done by then.
    """
    if is_other_rank():
        return
    missed = [_missed(name, **gate) for name, gate in gates.items() if not gate["passed"]]
    problems = [*missed, *([hub_problem] if hub_problem else [])]
    if problems:
        raise (GateMissed if missed else RmtrainError)(*problems)


def _missed(name: str, required: float, value: float | None, passed: bool) -> str:
    if value is None:
        return f"gate {name}: required {required}, but there was nothing to compute it from"
    return f"gate {name}: required {required}, got {value:.4f}, missed by {abs(value - required):.4f}"
