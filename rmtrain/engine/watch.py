"""The ranks of a run watch each other: when one fails or is killed, all end within seconds, with its message and exit code.

A rank whose peer is gone waits in a collective, where no Python runs in its main thread, and under NCCL it would wait for long. So a
thread of each rank looks once a second at the store through which the ranks have met, and at the processes of its peers on the same
machine. Whoever fails says so there before it ends, and whoever is done says that: a process that is gone and said neither was killed.

Nothing heavy is imported before there are several ranks.
"""

import json
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from rmtrain.errors import TryAgain

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PERIOD_SECONDS = 1.0
CONNECT_SECONDS = 10.0
"""How long a rank that fails before it has met the others tries to let them know."""
CAUSE_SECONDS = 4.0
"""A collective fails on a rank before it can know why: that its peer is gone."""
PRECEDENCE_SECONDS = 0.5
"""What all ranks find wrong at the same time, rank 0 tells."""
STOP_SECONDS = 20.0
"""What a rank whose peer was stopped has to end by itself: trackers take up to 15 seconds."""
ANSWER_SECONDS = 3.0
SAME_SECONDS = 1.0
"""A signal so soon after the first is the same request: schedulers signal all processes of a job, and launchers pass theirs on."""
STORE_SECONDS = 30.0
MEETING_SECONDS = 5.0
LAUNCHER = "RMTRAIN_LAUNCHER"
"""The process that starts ranks leaves its number here: a rank may find it gone before it looks for the first time."""
FIRST, FAILED = "first", "failed"
GO_ON = "the same command goes on from the last checkpoint"
GONE = f"the process that started the ranks is gone; {GO_ON}"


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a rank, and ends all of them.

    rank: the rank that failed.
    code: the exit code of all.
    stopped: it was a signal; the others may finish what they are doing.
    """

    rank: int
    code: int
    stopped: bool = False


class Watch:
    """What a rank knows of the others, and they of it.

    Args:
        environment: of a rank, as launchers set it: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. LOCAL_RANK and LOCAL_WORLD_SIZE tell,
            where they are set, which ranks are on the same machine.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.rank, self.world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self.address, self.port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        self.hosts_store = self.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.prefix = f"rmtrain/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        first = self.rank - int(environment.get("LOCAL_RANK", "0"))
        self.neighbours = [r for r in range(first, first + int(environment.get("LOCAL_WORLD_SIZE", "1"))) if r != self.rank]
        self._parent, self._pids = int(environment.get(LAUNCHER, os.getppid())), dict[int, int]()
        self._store: Any = None
        self._met, self._ends = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._signals, self._came = -1, list[tuple[float, int]]()

    def start(self) -> None:
        """Begin to watch, in a thread of its own: there may be no store before all ranks have started."""
        if self._thread is None:
            import torch.distributed  # noqa: F401  # here, not in the thread, while the main one imports the same

            self._signals = _signals()
            self._thread = threading.Thread(target=self._watch, name="rmtrain-watch", daemon=True)
            self._thread.start()

    def done(self) -> None:
        """Let the others know that this rank has nothing left to do. Nothing of theirs ends it from here on."""
        self._ends.acquire()
        if not self._met.is_set():
            return
        with suppress(RuntimeError):  # who had the store is gone, and so is whoever would read it
            self._store.set(f"done/{self.rank}", "")
            until = time.monotonic() + CONNECT_SECONDS
            while self.hosts_store and time.monotonic() < until and not self._are_all("done"):
                time.sleep(0.05)

    def end(self, code: int, lines: Sequence[str], *, stopped: bool = False, may_follow: bool = False) -> int:
        """Agree with the others on how to end; what is wrong is printed, once among all ranks.

        Args:
            code: the exit code of what is wrong here.
            lines: what to print.
            stopped: it is a signal.
            may_follow: it may be what a collective says whose peer is gone.

        Returns:
            The code to exit with: of the rank that failed first.
        """
        self.start()
        if self._met.wait(CONNECT_SECONDS):
            self._ends.acquire()
            with suppress(RuntimeError):  # who had the store is gone: there is nobody to agree with
                return self._agreed(code, lines, stopped, CAUSE_SECONDS if may_follow else PRECEDENCE_SECONDS * (self.rank > 0))
        tell(lines)
        return code

    def _agreed(self, code: int, lines: Sequence[str], stopped: bool, patience: float) -> int:
        until = time.monotonic() + patience
        while (failure := self._ending()) is None and time.monotonic() < until:
            time.sleep(0.1)
        if failure is None:
            return self._claimed(Failure(self.rank, code, stopped), lines).code
        self._let_others_look()
        return failure.code

    def _let_others_look(self) -> None:
        """They learn what happened from the store, which may end with this rank."""
        if self.hosts_store:
            time.sleep(2.5 * PERIOD_SECONDS)

    def _claimed(self, failure: Failure, lines: Sequence[str]) -> Failure:
        """The failure of whoever claims first that it is theirs, who tells it and waits until the others have looked."""
        if self._store.add(FIRST, 1) == 1:
            tell(lines)
            self._store.set(FAILED, json.dumps(asdict(failure)))
            time.sleep(2.5 * PERIOD_SECONDS)
            return failure
        return Failure(**json.loads(self._store.get(FAILED)))

    def _ending(self) -> Failure | None:
        """What ends this rank; None: nothing yet."""
        return self._unanswered() or self._failure()

    def _failure(self) -> Failure | None:
        """What ends it as far as the others or their processes say."""
        if self._store.check([FAILED]):
            return Failure(**json.loads(self._store.get(FAILED)))
        if os.getppid() != self._parent:
            return self._claimed(Failure(self.rank, TryAgain.exit_code), [f"error: {GONE}"])
        killed = next((rank for rank in self.neighbours if self._was_killed(rank)), None)
        if killed is None:
            return None
        return self._claimed(Failure(killed, TryAgain.exit_code), [f"error: {killed_line(killed, self._pids[killed])}"])

    def _was_killed(self, rank: int) -> bool:
        if rank not in self._pids:
            if not self._store.check([f"pid/{rank}"]):
                return False
            self._pids[rank] = int(self._store.get(f"pid/{rank}"))
        if is_there(self._pids[rank]):
            return False
        return not self._store.check([f"done/{rank}"]) and not self._store.check([FAILED])

    def _unanswered(self) -> Failure | None:
        """What a main thread that waits in torch does not do: end at once by a second signal, or by any before all ranks are there."""
        self._note_signals()
        if not self._came:
            return None
        first, number = self._came[0]
        is_second = self._came[-1][0] - first > SAME_SECONDS
        if not is_second and (time.monotonic() - first < ANSWER_SECONDS or self._are_all("pid")):
            return None
        return Failure(self.rank, 128 + number)

    def _note_signals(self) -> None:
        with suppress(BlockingIOError):
            now = time.monotonic()
            self._came += [(now, number) for number in os.read(self._signals, 64) if number in SIGNALS]

    def _are_all(self, what: str) -> bool:
        return bool(self._store.check([f"{what}/{rank}" for rank in range(self.world)]))

    def _watch(self) -> None:
        try:
            self._meet()
            self._look_until_one_fails()
        except RuntimeError:
            with self._ends:
                self._exit_alone()

    def _exit_alone(self) -> NoReturn:
        """End where whoever had the store is gone, and nobody can be asked who tells it: of those on this machine the first does."""
        killed = [rank for rank, pid in self._pids.items() if not is_there(pid)]
        line = killed_line(killed[0], self._pids[killed[0]]) if killed else GONE
        first = min({self.rank, *self.neighbours} - set(killed)) if self.neighbours else 1
        _exit(TryAgain.exit_code, [f"error: {line}"] if self.rank == first else [])

    def _look_until_one_fails(self) -> NoReturn:
        until: float | None = None
        while True:
            select.select([self._signals], [], [], PERIOD_SECONDS)
            with self._ends:
                failure = self._ending()
                if failure is None:
                    continue
                until = until or time.monotonic() + (STOP_SECONDS if failure.stopped else 0.0)
                if time.monotonic() >= until:
                    self._let_others_look()
                    _exit(failure.code)

    def _meet(self) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # public, though not in its __all__

        store = self._connected()
        store.set_timeout(timedelta(seconds=STORE_SECONDS))
        self._store = PrefixStore(self.prefix, store)
        self._store.set(f"pid/{self.rank}", str(os.getpid()))
        self._met.set()

    def _connected(self) -> Any:
        """The store, once somebody has opened it; whoever starts ranks may be gone before."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        while True:
            try:
                return TCPStore(
                    self.address,
                    self.port,
                    is_master=self.hosts_store,
                    wait_for_workers=False,
                    multi_tenant=True,
                    timeout=timedelta(seconds=MEETING_SECONDS),
                )
            except RuntimeError:
                if os.getppid() != self._parent:
                    raise


def killed_line(rank: int, pid: int) -> str:
    """What there is to say of a rank that somebody killed."""
    return f"rank {rank} (pid {pid}) was killed, perhaps for want of memory; {GO_ON}"


def is_there(pid: int) -> bool:
    """Whether a process of this number runs; one that is dead and not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # where there is no /proc, as on macOS, or it has just gone
        return not Path("/proc/self/stat").exists()


def _signals() -> int:
    """Where the numbers of signals can be read, also of those that the main thread does not come to handle. Called in it."""
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def tell(lines: Sequence[str]) -> None:
    """Print lines at once on stderr."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def _exit(code: int, lines: Sequence[str] = ()) -> NoReturn:
    """End the process from this thread, wherever its main one is, with what it started."""
    tell(lines)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
