"""The error types of rmtrain and their exit codes. A problem is one line: place, what is wrong, what to change."""

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk, and of an exceeded quota."""

EXIT_CODES = {
    0: "Done.",
    1: "A bug, or an upload that failed.",
    2: "The recipe or the command line is invalid.",
    3: "The data was refused.",
    4: "A checkpoint, model or run directory was refused.",
    5: "A loss, gradient or reward is not finite.",
    6: "A gate was missed.",
    75: "Try again: the disk is full, the Hub fails, or a process was killed.",
    130: "Interrupted by Ctrl-C.",
    141: "The reader of the output, such as head, has ended.",
    143: "Terminated by SIGTERM.",
}
"""Exit codes of the command line, for `--help`."""


LONGEST_PROBLEM = 2000
"""Characters of a problem that are kept: values of strangers can be of any length."""
KINDS: dict[str, Callable[[int], bool]] = {
    "a directory": stat.S_ISDIR,
    "a named pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
}


def missing(path: str | Path) -> str:
    """Return that a path does not exist, of a relative one with the directory that was searched; or that it is not a regular file."""
    try:
        mode = os.stat(os.path.expanduser(path)).st_mode
    except (OSError, ValueError):
        is_absolute = str(path).startswith("~") or Path(path).is_absolute()
        return f"{path} does not exist" if is_absolute else f"{path} does not exist in {Path.cwd()}"
    kind = next((kind for kind, is_kind in KINDS.items() if is_kind(mode)), "a file")
    return f"{path} is {kind}, not a file" + ("" if stat.S_ISDIR(mode) else " or directory")


class RmtrainError(Exception):
    """A failure that the user can act on. The command line prints its problems, a line each, and exits with its code."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        assert problems, "an error needs a problem"
        self.problems = tuple(
            problem if len(problem) <= LONGEST_PROBLEM else f"{problem[:LONGEST_PROBLEM]}…" for problem in problems
        )
        super().__init__("\n".join(self.problems))


class RecipeError(RmtrainError):
    """The recipe, an override or the command line is invalid."""

    exit_code = 2


class DataError(RmtrainError):
    """The data was refused: it is unreadable, malformed or empty, or loses more rows than allowed."""

    exit_code = 3


class CheckpointError(RmtrainError):
    """A checkpoint, model directory or run directory was refused."""

    exit_code = 4


class NumericError(RmtrainError):
    """A loss, gradient or reward is not finite."""

    exit_code = 5


class GateMissed(RmtrainError):
    """The model was evaluated and missed a required value."""

    exit_code = 6


class TryAgain(RmtrainError):
    """A condition outside the run, such as a full disk; the same command works once the condition is gone."""

    exit_code = 75


class Stopped(BaseException):
    """A signal ended the command. Like KeyboardInterrupt it is not an Exception, so that no library catches it as one of its errors.

    problems: what was saved, and how to resume.
    """

    def __init__(self, number: int, *problems: str) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        # A closed pipe, as of `| head`, is not an error of the user.
        self.problems = problems or (() if number == signal.SIGPIPE else (f"stopped by {self.signal.name}",))
        super().__init__("\n".join(self.problems))
