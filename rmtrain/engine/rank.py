"""One process of a command: the signals that stop it, how it reports a failure as a rank, and what ends it when nothing else does.

A signal lets the step finish and saves; a second one exits at once.

`rmtrain ... --processes N` prints one error for all its ranks: a rank that fails writes a report into a folder of the launcher, which
prints the first one. Under other launchers each rank prints its own error. No torch here: the command line imports this at its start.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from rmtrain.errors import RecipeError, Stopped, TryAgain
from rmtrain.files import temporary_folder

SIGNALS = tuple(
    number
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
    if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) is not signal.SIG_IGN
)
"""The signals that stop a command: of a scheduler, the keyboard, a closed terminal and a CPU limit. Whoever starts it may ignore the
last three, as `nohup` does; shells ignore SIGINT for background jobs, unasked."""
REPEAT_SECONDS = 1.0
"""A signal this soon after the first is the same request: schedulers signal every process of a job, and launchers forward theirs."""

AGAIN_SECONDS = 0.1
"""Time after which a lost signal is sent again: the hook that was told of it has to be left by then, or it is lost there once more."""

HANDLED = threading.Event()
"""Set when the main thread has handled a signal."""
_raised_at: float | None = None
_lost: set[int] = set()
LAUNCHER = "RMTRAIN_LAUNCHER"
"""Environment variable: process id of the launcher. A rank cannot ask for its parent instead: it may be dead by then."""
REPORTS = "RMTRAIN_REPORTS"
"""Environment variable: folder for the reports of failed ranks."""
STUCK_SECONDS = 3.0
TRACKERS_THREAD = "trackers"
"""Name of the thread that can hang in a tracker's library when the process ends."""


def raise_on_signal() -> None:
    """Make `SIGNALS` raise `Stopped` in the main thread, so that they end a command as an error does."""
    global _raised_at
    _raised_at = None
    sys.unraisablehook = _send_again
    for number in SIGNALS:
        signal.signal(number, raise_stopped)


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a signal again that was handled in a finalizer, where Python drops what is raised: it would be lost."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    number = unraisable.exc_value.signal
    _lost.add(number)
    again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    with suppress(RuntimeError):  # at the interpreter's end, where no thread starts
        again.start()


def _is_sent_again(number: int) -> bool:
    if number not in _lost:
        return False
    _lost.remove(number)
    return True


def raise_stopped(number: int, _: FrameType | None) -> None:
    """Handle the first signal by raising `Stopped`; a second one interrupts the clean-up and exits."""
    global _raised_at
    _handled(number)
    if _raised_at is None or _is_sent_again(number):
        _raised_at = time.monotonic()
        raise Stopped(number)
    if time.monotonic() - _raised_at > REPEAT_SECONDS:
        os._exit(128 + number)


def begin_to_exit() -> None:
    """From here on a signal raises nothing, as the process is about to end; one that comes much later exits at once."""
    global _raised_at
    if _raised_at is None:
        _raised_at = time.monotonic()


def report_lost_pages() -> None:
    """End in a line where a file that is mapped into memory was cut meanwhile: the kernel sends SIGBUS, at which Python says nothing."""
    signal_ = ctypes.CDLL(None).signal
    signal_.argtypes, signal_.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    signal_(signal.SIGBUS, ctypes.cast(_ON_LOST_PAGE, ctypes.c_void_p))


def _exit_for_lost_page(_: int) -> None:
    line = "error: a file of the cache or of a model was cut while it was read, or its disk failed; run the same command again"
    if REPORTS in os.environ:
        RankReport(rank_number(), TryAgain.exit_code, [line], False, time.time()).write(Path(os.environ[REPORTS]))
    else:
        os.write(2, f"{line}\n".encode())
    os._exit(TryAgain.exit_code)


_ON_LOST_PAGE = ctypes.CFUNCTYPE(None, ctypes.c_int)(_exit_for_lost_page)


def _handled(number: int) -> None:
    HANDLED.set()
    if number == signal.SIGXCPU:  # until the hard limit, the kernel would repeat it at each second, which is not a second request
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


class GracefulShutdown:
    """Note a signal instead of raising it, and let all ranks stop together where they ask for it.

    Training asks after each step, an evaluation between two micro-batches. A second signal exits the process at once. Use it as a context.
    Outside the main thread, where Python cannot set handlers, it leaves signals alone.

    Args:
        agree: collective that returns the largest of the numbers that the ranks pass; by default that of a single process.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.received: signal.Signals | None = None
        self._agree, self._received_at, self._raises = agree, 0.0, False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any rank received a signal. A collective: the answer is the same on every rank."""
        number = self._agree(self.received or 0)
        if number and self.received is None:
            self._note(number)
        return bool(number)

    def check(self) -> None:
        """Raise `Stopped` on all ranks if any received a signal. A collective."""
        if self.requested():
            self.stop()

    @contextmanager
    def raise_immediately(self) -> Iterator[None]:
        """Let a signal interrupt work that one rank does alone: it raises `Stopped`, also if it came before."""
        if self.received is not None:
            self.stop()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def stop(self) -> NoReturn:
        """Raise `Stopped` for the signal that was received."""
        assert self.received is not None, "no signal was received"
        raise Stopped(self.received)

    def _note(self, number: int) -> None:
        _handled(number)
        self.received, self._received_at = signal.Signals(number), time.monotonic()

    def _handle(self, number: int, _: FrameType | None) -> None:
        is_first = self.received is None
        if is_first:
            self._note(number)
        if is_first or _is_sent_again(number):
            if self._raises:  # once: what is interrupted may clean up
                self.stop()
        elif time.monotonic() - self._received_at > REPEAT_SECONDS:
            os._exit(128 + number)


def check_variables() -> None:
    """Raise RecipeError for variables of a launcher that no launcher has set, and remove them: libraries would wait for other ranks."""
    given = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    place = ("MASTER_ADDR", "MASTER_PORT") if given.get("WORLD_SIZE") != "1" else ()
    missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", *place) if name not in os.environ]
    wrong = [name for name, value in given.items() if not (value.isascii() and value.isdigit())]
    if wrong or (missing and given and given != {"WORLD_SIZE": "1"}):
        for name in given:
            del os.environ[name]
        names = ", ".join(wrong or given)
        problem = "expected a whole number" if wrong else f"set without {', '.join(missing)}"
        raise RecipeError(
            f"{names}: {problem}; unset {names}, or start the command with a launcher such as torchrun, or --processes"
        )


def rank_number() -> int:
    """Return the rank of this process, 0 where it is the only one."""
    return int(os.environ.get("RANK", "0"))


def is_one_of_several() -> bool:
    """Return whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_started_by_rmtrain() -> bool:
    """Return whether `--processes` started this process."""
    return LAUNCHER in os.environ


@dataclass(frozen=True, slots=True)
class RankReport:
    """How a rank ended: its exit code, the lines to print, and when, in seconds since the epoch.

    may_follow: another rank's end may have caused it.
    """

    rank: int
    code: int
    lines: Sequence[str]
    may_follow: bool
    time: float

    def write(self, folder: Path) -> None:
        """Leave the report for the launcher."""
        (folder / f"{self.rank}.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


@contextmanager
def reports_folder() -> Iterator[Path]:
    """A folder for the reports of the ranks that this process starts, which learn of both from their environment."""
    with temporary_folder() as folder:
        os.environ |= {LAUNCHER: str(os.getpid()), REPORTS: str(folder)}
        yield folder


def read_reports(folder: Path) -> list[RankReport]:
    """Return the reports that ranks left; one that a kill cut short is not among them."""
    reports = []
    for path in sorted(folder.glob("*.json")):
        with suppress(json.JSONDecodeError):
            reports.append(RankReport(**json.loads(path.read_text(encoding="utf-8"))))
    return reports


def watch_launcher() -> None:
    """End this rank, from a thread of its own, when its launcher dies, and at signals that its main thread does not come to handle.

    Python runs signal handlers in the main thread, which runs none while it waits in a collective or for the other ranks to start.
    """
    parent = int(os.environ.get(LAUNCHER, os.getppid()))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(parent, reader), name="launcher", daemon=True).start()


def _watch(parent: int, signals: int) -> None:
    number, first, last = 0, 0.0, 0.0
    while os.getppid() == parent:
        if select.select([signals], [], [], 1.0)[0] and (came := [n for n in os.read(signals, 64) if n in SIGNALS]):
            number, last = came[-1], time.monotonic()
            first = first or last
        if not number:
            continue
        # A rank that has work to save has another handler than `raise_stopped`, and all the time it needs.
        is_stuck = not HANDLED.is_set() and signal.getsignal(number) is raise_stopped
        if (is_stuck and time.monotonic() - first > STUCK_SECONDS) or last - first > REPEAT_SECONDS:
            os._exit(128 + number)
    if rank_number() == 0:
        print("error: the launcher died; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(TryAgain.exit_code)
