"""`rmtrain train --sweep`: one run for each combination of values, one after the other, each in a process of its own.

A process of its own gives each run the memory, the random numbers and the errors of a single run. Nothing here loads torch.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from rmtrain.command_line.options import CommandResult
from rmtrain.engine.rank import SIGNALS
from rmtrain.engine.run_check import check_output_dir, is_done, run_path
from rmtrain.engine.run_records import RunRecord, read_run
from rmtrain.engine.run_set import RunSet
from rmtrain.errors import EXIT_CODES, CheckpointError, GateMissed, RecipeError, RmtrainError, Stopped, TryAgain
from rmtrain.recipe.combinations import SweptRun
from rmtrain.recipe.load import MARKER
from rmtrain.report.console import NoWrap
from rmtrain.report.runs_view import runs_document, runs_report
from rmtrain.report.tables import Column, Row, Table

WORST_FIRST = (1, 5, 4, 3, 2, 75, 6)
"""Exit codes of runs, the worst first: a sweep exits with the worst one."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run of a sweep, and what is to be done for it: `start`, `resume`, or `skip`, since it is finished."""

    swept: SweptRun
    directory: Path
    todo: str


def plan_sweep(runs: Sequence[SweptRun]) -> list[PlannedRun]:
    """Return what is to be done for each run.

    Raises:
        RecipeError, CheckpointError: directories that are refused, all at once; see `check_output_dir`.
    """
    planned, errors = [], list[RmtrainError]()
    for run in runs:
        try:
            done = is_done(run.recipe)
            path = run_path(run.recipe.run.output_dir) if done else check_output_dir(run.recipe)
            planned.append(PlannedRun(run, path, "skip" if done else "resume" if (path / MARKER).exists() else "start"))
        except (RecipeError, CheckpointError) as error:
            errors.append(error)
    if errors:
        problems = dict.fromkeys(problem for error in errors for problem in error.problems)
        raise (RecipeError if any(isinstance(error, RecipeError) for error in errors) else CheckpointError)(*problems)
    return planned


def list_sweep(planned: Sequence[PlannedRun]) -> CommandResult:
    """Return the runs of a sweep without training: `--dry-run`."""
    columns = (Column("run"), Column("values", "text"), Column("directory", "text"), Column("", "text"))
    words = {"start": "starts", "resume": "resumes", "skip": "is finished"}
    rows = [
        Row((str(number), run.swept.description, str(run.directory), words[run.todo])) for number, run in enumerate(planned, 1)
    ]
    listed = [{"directory": str(run.directory), "values": dict(run.swept.values), "todo": run.todo} for run in planned]
    return CommandResult(NoWrap(Table("Runs of the sweep", columns, rows)), {"sweep": listed})


def sweep(planned: Sequence[PlannedRun], arguments: Sequence[str], options: Sequence[str], console: Console) -> CommandResult:
    """Train the runs that are not finished, and return the table of all.

    A run that fails does not stop the others; `failures` of the document has the exit code of each.

    Args:
        arguments: recipe and overrides of the command line.
        options: further options of each run.

    Raises:
        Stopped: a signal ended the sweep, after the current run was saved; the same command resumes it.
    """
    codes: dict[str, int] = {}
    for number, run in enumerate(planned, start=1):
        code = train_run(run, f"run {number} of {len(planned)}", arguments, options, console)
        if code is not None:
            codes[str(run.directory)] = code
    records = [_record(run.directory, codes) for run in planned]
    for record in records:  # finished before this command
        codes.setdefault(str(record.path), GateMissed.exit_code if record.gates_missed else 0)
    found = RunSet(records)
    failures = {path: code for path, code in codes.items() if code}
    return CommandResult(runs_report(found), {**runs_document(found), "failures": failures})


def train_run(run: PlannedRun, place: str, arguments: Sequence[str], options: Sequence[str], console: Console) -> int | None:
    """Train one of several runs in a process of its own, and return its exit code; None if it is finished already.

    Raises:
        Stopped: a signal ended it, after it was saved.
    """
    if run.todo == "skip":
        console.print(Text(f"{place} is finished: {run.directory}", style="dim"))
        return None
    console.print(Text.assemble(("\n" + place, "bold cyan"), f"  {run.swept.description}  → {run.directory}"))
    try:
        code = run_process([sys.executable, "-m", "rmtrain", "train", *arguments, *run.swept.overrides, *options])
    except Stopped as stopped:
        message = f"stopped by {stopped.signal.name} in {place}; run the same command to resume"
        raise Stopped(stopped.signal, message) from None
    if code:
        console.print(Text(f"{place} ended with exit code {code}: {meaning(code)}", style="red"))
    return code


def _record(directory: Path, codes: Mapping[str, int]) -> RunRecord:
    """Read a run; one that was refused before it had a directory has failed."""
    record, code = read_run(directory), codes.get(str(directory), 0)
    if code and record.state == "damaged":
        return replace(record, state="failed", problems=[meaning(code)])
    return record


def raise_worst(failures: Mapping[str, int]) -> None:
    """Raise the worst failure of a sweep, with a line for each run that failed."""
    if failures:
        error = RmtrainError(*(f"{path}: exit code {code}: {meaning(code)}" for path, code in failures.items()))
        error.exit_code = min(failures.values(), key=lambda code: WORST_FIRST.index(code) if code in WORST_FIRST else -1)
        raise error


def meaning(code: int) -> str:
    """Return what an exit code of a run means."""
    return EXIT_CODES.get(code, "Failed.").rstrip(".").lower()


@dataclass
class Forwarding:
    """The process that gets the signals of this one, and the first signal that came."""

    process: "subprocess.Popen[bytes] | None" = None
    received: int | None = None

    def handle(self, number: int, _: FrameType | None) -> None:
        """Note a signal and forward it. The process decides how it ends: it saves, and a second signal ends it at once."""
        self.received = self.received or number
        if self.process is not None:
            self.process.send_signal(number)


@contextmanager
def forwarding() -> Iterator[Forwarding]:
    """Forward the signals that stop a command, instead of raising `Stopped`."""
    forwarded = Forwarding()
    previous = {number: signal.signal(number, forwarded.handle) for number in SIGNALS}
    try:
        yield forwarded
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_process(command: Sequence[str]) -> int:
    """Run a command with its output on stderr, and return its exit code; 75 if it was killed.

    Raises:
        Stopped: a signal came to this process, which was forwarded, or to the command alone.
    """
    environment = dict(os.environ)
    if not {"", os.getcwd()} & set(sys.path):
        environment["PYTHONSAFEPATH"] = "1"  # `python -m` would import from the working directory, which this command does not
    with forwarding() as forwarded:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment)
        forwarded.process = process
        if forwarded.received is not None:  # before there was a process
            process.send_signal(forwarded.received)
        code = process.wait()
    if forwarded.received is not None:
        raise Stopped(forwarded.received)
    if code - 128 in (*SIGNALS, signal.SIGPIPE):
        raise Stopped(code - 128)
    return code if code >= 0 else TryAgain.exit_code
