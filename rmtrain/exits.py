"""The end of a command: what is printed for an error, and which exit code it has."""

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rmtrain.engine.rank import REPORTS, RankReport, is_one_of_several, rank_number
from rmtrain.engine.signals import SIGNALS
from rmtrain.engine.trackers import THREAD as TRACKERS
from rmtrain.errors import DISK_FULL, GateMissed, RmtrainError, Stopped, TryAgain

REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
"""Errors of the file system that the user can act on. ENOENT is not one: a file that is missing is reported where it is opened."""
RANK_0_SECONDS = 1.0


def exit_with_error(error: BaseException) -> NoReturn:
    """Print an error, one line per problem, and exit with its code. A bug shows its traceback, with code 1."""
    known = _known(error)
    if not is_one_of_several():
        if known is None:
            raise error
        exit_process(known.exit_code, [f"error: {problem}" for problem in known.problems])
    rank, is_stop = rank_number(), isinstance(known, Stopped)
    prefix = "error: " if rank == 0 or is_stop else f"error: rank {rank}: "
    if known is None:
        traceback_lines = "".join(traceback.format_exception(error)).splitlines()
        code, lines = 1, [f"{prefix}unexpected {type(error).__name__}; this is a bug", *traceback_lines]
    else:
        code, lines = known.exit_code, [prefix + problem for problem in known.problems]
    report = RankReport(rank, code, lines, is_stop or _has_lost_peer(error), time.time())
    if rank and not report.may_follow:
        # What all ranks find wrong, rank 0 reports: when it exits, its launcher stops this one here.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        time.sleep(RANK_0_SECONDS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if REPORTS in os.environ:
        report.write(Path(os.environ[REPORTS]))
        lines = []
    elif is_stop and rank:
        lines = []
    exit_process(code, lines)


def exit_process(code: str | int | None, lines: Sequence[str] = ()) -> NoReturn:
    """Print lines on stderr and exit.

    Args:
        code: as of SystemExit.
        lines: to print.
    """
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    # At the interpreter's own exit, threads of gloo that still run can abort the process, and a tracker's library that hangs waits
    # for its network.
    if is_one_of_several() or any(thread.name == TRACKERS for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def _known(error: BaseException) -> RmtrainError | Stopped | None:
    """Return an error that the user can act on, made from one of the machine where needed; None for a bug."""
    if isinstance(error, RmtrainError | Stopped):
        return error
    if is_one_of_several() and _has_lost_peer(error):
        return TryAgain(
            f"lost the connection to another rank ({str(error).splitlines()[0]}); run the same command again to resume"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL:
        return TryAgain(f"the disk is full: {error.filename or error.strerror}; make room and run the same command again")
    if error.errno in REFUSALS and error.filename is not None:
        return RmtrainError(f"{error.filename}: {error.strerror}")
    return None


def _has_lost_peer(error: BaseException) -> bool:
    """Return whether a collective failed: gloo raises a RuntimeError with its name, NCCL and the store raise a Dist...Error."""
    return isinstance(error, RuntimeError) and ("gloo/transport" in str(error) or type(error).__name__.startswith("Dist"))


def fail_on_missed(gates: dict[str, dict[str, Any]], hub_problem: str | None = None) -> None:
    """Raise GateMissed with a line for each gate that was missed, or RmtrainError if only the upload failed. Only rank 0 raises."""
    if rank_number():
        return
    missed = [_missed(name, **gate) for name, gate in gates.items() if not gate["passed"]]
    problems = [*missed, *([hub_problem] if hub_problem else [])]
    if problems:
        raise (GateMissed if missed else RmtrainError)(*problems)


def _missed(name: str, required: float, value: float | None, passed: bool) -> str:
    if value is None:
        return f"gate {name}: required {required}, but there is no value to compare"
    return f"gate {name}: required {required}, got {value:.4f}, missed by {abs(value - required):.4f}"
