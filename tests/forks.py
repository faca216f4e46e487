"""Starts many `rmtrain` processes without paying for imports: a server imports everything once, and forks for each process.

A fork is a process with its own signals, files and memory, and can be killed like any other. Several ranks meet as under torchrun: when
one fails, the others are stopped.
"""

import faulthandler
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from tests.faults.driver import Fault
from tests.runs import ROOT, environment_of_process

FAST: tuple[Fault, ...] = (("reload", 0, "skip"), ("report", 0, "skip"))
"""Skip the fresh process that reloads the export, and the report, in tests of something else."""
LONGEST = 400.0
"""Seconds until a process that has not ended prints the stacks of its threads and exits."""
GRACE, PATIENCE = 10.0, 30.0
"""Seconds until the other ranks are terminated after one failed, and then until they are killed."""
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
"""What `accelerate launch` sets for ranks on CPUs."""
IMPORTED = (
    "rmtrain.commands.train",
    "rmtrain.commands.evaluate",
    "rmtrain.commands.score",
    "rmtrain.commands.serve",
    "rmtrain.commands.inspect",
    "rmtrain.commands.preprocess",
    "matplotlib.backends.backend_svg",
    "datasets",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
)
"""What every process would import, which takes seconds."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a process: its exit code, or minus the signal that killed it, and its output."""

    code: int
    stdout: str
    stderr: str


class Child:
    """A running process, or several ranks; `pid` is that of the first."""

    def __init__(self, server: "ForkServer", pid: int, output: Path) -> None:
        self.server, self.pid, self.output = server, pid, output

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for the end of the process."""
        code = self.server.receive()["code"]
        return Ended(code, *(self.output.with_suffix(end).read_text() for end in (".out", ".err")))


class ForkServer:
    """Starts processes, one at a time. Use as a context."""

    def __init__(self, **environment: str) -> None:
        self.environment = {"COLUMNS": "1000", **environment}
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0

    def __enter__(self) -> Self:
        command = [sys.executable, "-W", "ignore", "-m", "tests.forks"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment_of_process(**self.environment),
        )
        return self

    def __exit__(self, *_: object) -> None:
        stream(self.process.stdin).close()
        self.process.wait()
        stream(self.process.stdout).close()
        self.folder.cleanup()

    def start(
        self,
        *arguments: str | Path,
        program: str = "rmtrain",
        processes: int = 1,
        faults: Sequence[Fault] = FAST,
        cwd: Path = ROOT,
        terminal: str = "",
        **environment: str | None,
    ) -> Child:
        """Start a program with these arguments: `rmtrain` with faults, or another module or script; as one process, or as ranks.

        Args:
            terminal: device that the process controls, instead of files for its output.
            environment: changes of the environment; None: the variable is removed.
        """
        self.count += 1
        output = Path(self.folder.name) / str(self.count)
        order = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "processes": processes,
            "faults": list(faults),
            "cwd": str(cwd),
            "environment": environment,
            "output": str(output),
            "terminal": terminal,
        }
        stream(self.process.stdin).write(json.dumps(order) + "\n")
        stream(self.process.stdin).flush()
        return Child(self, self.receive()["pid"], output)

    def run(self, *arguments: str | Path, **how: Any) -> Ended:
        """Start a program and wait for its end."""
        return self.start(*arguments, **how).wait()

    def receive(self) -> dict[str, Any]:
        """Return the next answer of the forking process."""
        line = stream(self.process.stdout).readline()
        assert line, "the fork server has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@functools.cache
def fork_server() -> ForkServer:
    """The server of this test process, which ends with it."""
    return ForkServer().__enter__()


def rmtrain(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, as `tests.runs.rmtrain`, but forked, and without what `FAST` skips: for tests of something else."""
    ended = fork_server().run(*arguments, cwd=cwd, **{"COLUMNS": "100", **environment})
    return subprocess.CompletedProcess(arguments, ended.code, ended.stdout, ended.stderr)


def stream(pipe: IO[str] | None) -> IO[str]:
    """Return a pipe that is certainly open."""
    assert pipe is not None
    return pipe


def serve() -> None:
    """Fork the processes of each order on stdin; answer on stdout with the pid of the first, then the exit code that counts."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print when they are imported must not reach the answers
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by rmtrain as well
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        pids = []
        for rank in range(order["processes"]):
            pid = os.fork()
            if pid == 0:
                if order["processes"] > 1:
                    number, count = str(rank), str(order["processes"])
                    ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                    order["environment"] |= ranks | meeting
                become(order)
            pids.append(pid)
        print(json.dumps({"pid": pids[0]}), file=answers, flush=True)
        print(json.dumps({"code": code_of(pids)}), file=answers, flush=True)


def free_port() -> str:
    """Return a port on which ranks can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def code_of(pids: Sequence[int]) -> int:
    """Wait for processes, and return the code of the first that fails; the others are stopped, and killed if they stay."""
    running, code, since = set(pids), 0, 0.0
    while running:
        for pid in sorted(running):  # by name: importing DeepSpeed leaves children of its own behind
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                running.discard(pid)
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if ended and not code:
                    code, since = ended, time.monotonic()
        waited = time.monotonic() - since
        if code and waited > GRACE:
            for pid in running:
                os.kill(pid, signal.SIGKILL if waited > GRACE + PATIENCE else signal.SIGTERM)
            time.sleep(1)
        elif running:
            time.sleep(0.01)
    return code


def run_script(command: Sequence[str], env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` for `python -P SCRIPT ARGUMENTS`, forked."""
    ended = fork_server().run(*command[3:], program=command[2], **env)
    return subprocess.CompletedProcess(command, ended.code, ended.stdout, ended.stderr)


def become(order: dict[str, Any]) -> None:
    """Turn this fork into the process of an order, and exit."""
    from tests.faults import driver

    for descriptor, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(order["output"] + end, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["terminal"]:
        os.setsid()
        terminal = os.open(order["terminal"], os.O_RDWR)
        for descriptor in range(3):
            os.dup2(terminal, descriptor)
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    os.chdir(order["cwd"])
    for name, value in order["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    code: Any = 70
    try:
        if order["program"] == "rmtrain":
            driver.main([tuple(fault) for fault in order["faults"]], order["arguments"])
        else:
            sys.argv = [order["program"], *order["arguments"]]
            run = runpy.run_path if order["program"].endswith(".py") else runpy.run_module
            run(order["program"], run_name="__main__")
            code = 0
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
