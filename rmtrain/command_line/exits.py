"""How a command ends: each error as lines on stderr and an exit code, here and nowhere else.

Of several ranks, one prints what all of them find wrong.
"""

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

from rmtrain.command_line.verbs import usage_problem
from rmtrain.engine.rank import REPORTS, SIGNALS, TRACKERS_THREAD, RankReport, begin_to_exit, is_one_of_several, rank_number
from rmtrain.errors import DISK_FULL, GateMissed, RecipeError, RmtrainError, Stopped, TryAgain
from rmtrain.report.console import apart, one_line
from rmtrain.report.github import resume_commands

REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)
"""Errors of the file system that the user can act on. ENOENT is not one: a file that is missing is reported where it is opened."""
RANK_0_SECONDS = 1.0


def exit_with_error(error: BaseException) -> NoReturn:
    """Print an error, one line per problem, and exit with its code. A bug shows its traceback, with code 1."""
    known = _known(error)
    rank, is_stop = rank_number(), isinstance(known, Stopped)
    prefix = "error: " if rank == 0 or is_stop else f"error: rank {rank}: "
    if known is None:
        traceback_lines = "".join(traceback.format_exception(error)).splitlines()
        code, lines = 1, [f"{prefix}unexpected {type(error).__name__}; this is a bug", *traceback_lines]
    elif isinstance(known, Stopped) and known.signal == signal.SIGPIPE:
        code, lines = known.exit_code, []  # nobody reads any more
    else:
        code, lines = known.exit_code, [prefix + problem for problem in known.problems]
    if not is_one_of_several():
        exit_process(code, lines)
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
    """Print lines on stderr and exit with a code, as of SystemExit."""
    begin_to_exit()
    printed = [one_line(line) for line in lines]
    sys.stderr.write("".join(f"{line}\n" for line in printed))
    if not is_one_of_several():
        resume_commands([line.removeprefix("error: ") for line in printed if line.startswith("error: ")])
    # At the interpreter's own exit, threads of gloo that still run can abort the process, and a tracker's library that hangs waits
    # for its network.
    if is_one_of_several() or any(thread.name == TRACKERS_THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def _known(error: BaseException) -> RmtrainError | Stopped | None:
    """Return an error that the user can act on, made from one of the machine where needed; None for a bug."""
    if isinstance(error, RmtrainError | Stopped):
        return error
    if hasattr(error, "format_message"):  # of click, or of the copy of click in typer
        return RecipeError(usage_problem(error))
    if is_one_of_several() and _has_lost_peer(error):
        reason = str(error).splitlines()[0]
        return TryAgain(f"lost the connection to another rank ({reason}); run the same command again to resume")
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
    missed = []
    for name, gate in gates.items():
        required, value = gate["required"], gate["value"]
        if value is None:
            missed.append(f"gate {name}: required {required}, but there is no value to compare")
        elif not gate["passed"]:
            lack = abs(value - required)
            by = f"{lack:.4f}" if lack >= 0.001 else f"{lack:.2g}"
            missed.append(f"gate {name}: required {required}, got {apart(value, required)}, missed by {by}")
    problems = [*missed, *([hub_problem] if hub_problem else [])]
    if problems:
        raise (GateMissed if missed else RmtrainError)(*problems)
