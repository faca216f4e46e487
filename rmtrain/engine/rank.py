"""One rank of a launched job: how it reports a failure, and what ends it when nothing else does.

`rmtrain ... --processes N` prints one error for all its ranks: a rank that fails writes a report into a folder of the launcher, which
prints the first one. Other launchers have no such folder; there each rank prints its own error.

No torch here: the command line needs it before anything heavy is imported.
"""

import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rmtrain.engine.signals import HANDLED, REPEAT_SECONDS, SIGNALS, raise_stopped
from rmtrain.errors import TryAgain

LAUNCHER = "RMTRAIN_LAUNCHER"
"""Environment variable: process id of the launcher. A rank cannot ask for its parent instead: it may be dead by then."""
REPORTS = "RMTRAIN_REPORTS"
"""Environment variable: folder for the reports of failed ranks."""
STUCK_SECONDS = 3.0


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
    """How a rank ended.

    rank: its number.
    code: its exit code.
    lines: to print.
    may_follow: another rank's end may have caused it.
    time: seconds since the epoch.
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
    with tempfile.TemporaryDirectory(prefix="rmtrain-") as folder:
        os.environ |= {LAUNCHER: str(os.getpid()), REPORTS: folder}
        yield Path(folder)


def read_reports(folder: Path) -> list[RankReport]:
    """Return the reports that ranks left; one that a kill cut short is not among them."""
    reports = []
    for path in sorted(folder.glob("*.json")):
        try:
            reports.append(RankReport(**json.loads(path.read_text(encoding="utf-8"))))
        except json.JSONDecodeError:
            continue
    return reports


def watch_launcher() -> None:
    """End this rank, from a thread of its own, when its launcher dies, and at signals that its main thread does not come to handle.

    Python runs signal handlers in the main thread, between two bytecodes. A main thread that waits in a collective, or for the other
    ranks to start, runs none.
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
