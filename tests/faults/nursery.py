"""Starts many `rmtrain` processes without paying for imports: one process imports everything, and is forked for each run.

A fork is a process with its own signals, files and memory, and can be killed like any other.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from tests.faults.driver import Fault
from tests.runs import ROOT, environment_of_process

FAST: Fault = ("reload", 0, "skip")
"""Skip the fresh process that reloads the export, in tests of something else."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a process: its exit code, or minus the signal that killed it, and its output."""

    code: int
    stdout: str
    stderr: str


class Child:
    """A running process."""

    def __init__(self, nursery: "Nursery", pid: int, output: Path) -> None:
        self.nursery, self.pid, self.output = nursery, pid, output

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for the end of the process."""
        code = self.nursery.receive()["code"]
        return Ended(code, *(self.output.with_suffix(end).read_text() for end in (".out", ".err")))


class Nursery:
    """Starts processes, one at a time. Use as a context."""

    def __init__(self, **environment: str) -> None:
        self.environment = {"COLUMNS": "1000", **environment}
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0

    def __enter__(self) -> Self:
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.nursery"]
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

    def start(self, *arguments: str | Path, faults: Sequence[Fault] = (FAST,), cwd: Path = ROOT, **environment: str) -> Child:
        """Start `rmtrain` with these arguments."""
        self.count += 1
        output = Path(self.folder.name) / str(self.count)
        order = {
            "arguments": [str(argument) for argument in arguments],
            "faults": list(faults),
            "cwd": str(cwd),
            "environment": environment,
            "output": str(output),
        }
        stream(self.process.stdin).write(json.dumps(order) + "\n")
        stream(self.process.stdin).flush()
        return Child(self, self.receive()["pid"], output)

    def run(self, *arguments: str | Path, faults: Sequence[Fault] = (FAST,), cwd: Path = ROOT, **environment: str) -> Ended:
        """Start `rmtrain` and wait for its end."""
        return self.start(*arguments, faults=faults, cwd=cwd, **environment).wait()

    def receive(self) -> dict[str, Any]:
        """Return the next answer of the forking process."""
        line = stream(self.process.stdout).readline()
        assert line, "the nursery has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def stream(pipe: IO[str] | None) -> IO[str]:
    """Return a pipe that is certainly open."""
    assert pipe is not None
    return pipe


def serve() -> None:
    """Fork a process for each order on stdin; print its pid, then its exit code."""
    import rmtrain.commands.train  # noqa: F401  # the imports that take seconds
    from tests.faults import driver

    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order, driver)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def become(order: dict[str, Any], driver: Any) -> None:
    """Turn this fork into the process of an order, and exit."""
    for descriptor, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(order["output"] + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.update(order["environment"])
    code: Any = 70
    try:
        driver.main([tuple(fault) for fault in order["faults"]], order["arguments"])
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
