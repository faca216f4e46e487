"""The few error types of rmtrain. Each line says where, what was expected, what came, and what to change."""

import errno
import signal

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the machine says of a disk, or a share of one, that has no more room."""


class RmtrainError(Exception):
    """A failure that the user can act on: one line per problem, ended by `cli.py` with `exit_code` and no traceback.

    Args:
        problems: one line, or several when several things are wrong at once.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        assert problems, "an error must say what is wrong"
        self.problems = problems
        super().__init__("\n".join(problems))


class RecipeError(RmtrainError):
    """The recipe, an override or the command line is wrong."""

    exit_code = 2


class DataError(RmtrainError):
    """The data was refused: unreadable, malformed, empty, or losing more rows than allowed."""

    exit_code = 3


class CheckpointError(RmtrainError):
    """A checkpoint, model directory or run directory was refused."""

    exit_code = 4


class NumericError(RmtrainError):
    """A loss, gradient or reward is not finite."""

    exit_code = 5


class GateMissed(RmtrainError):
    """The model was evaluated, and a required value was not reached."""

    exit_code = 6


class TryAgain(RmtrainError):
    """A condition outside the run, such as a full disk; the same command works once it is gone."""

    exit_code = 75


class Stopped(BaseException):
    """A signal ended the run. Like KeyboardInterrupt it is no Exception, so that no library takes it for an error of its own.

    Args:
        number: the signal.
        problems: what was saved, and how to go on.
    """

    def __init__(self, number: int, *problems: str) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        self.problems = problems or (f"stopped by {self.signal.name}",)
        super().__init__("\n".join(self.problems))
