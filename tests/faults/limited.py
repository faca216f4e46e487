"""Run command lines one after the other in one process, each in a folder of its own, with limits of time and memory."""

import json
import os
import re
import resource
import signal
import sys
from pathlib import Path

SECONDS, MEMORY = 20, 2 * 2**30


def main(jobs: list[tuple[str, list[str]]]) -> None:
    """Run each command in its folder, and leave there `stdout`, `stderr` and `ended`: its exit code and largest memory in bytes.

    A command that takes longer than `SECONDS` ends the process; it has no `ended`, and neither have those after it.
    """
    from rmtrain import cli

    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MEMORY,) * 2)
    for folder, arguments in jobs:
        os.chdir(folder)
        Path("/proc/self/clear_refs").write_text("5")  # this process begins as a copy of one that has imported everything
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            with open(name, "ab") as file:
                os.dup2(file.fileno(), descriptor)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        sys.argv = ["rmtrain", *arguments]
        try:
            cli.main()
        except SystemExit as ending:
            code = ending.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        Path("ended").write_text(f"{code or 0} {_memory('VmHWM')}")


def _memory(name: str) -> int:
    return 1024 * int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
