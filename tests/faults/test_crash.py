"""kill -9 anywhere loses at most the steps since the last checkpoint: the results are those of an undisturbed run."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmtrain.engine.checkpoint import Checkpoints
from rmtrain.recipe.load import load_recipe
from tests.faults.driver import Fault
from tests.faults.runs import STEPS, every_row_once_an_epoch, full_recipe, in_directory, left, lines, steps_saved, wait_until
from tests.forks import FAST, ForkServer

POINTS: list[list[Fault]] = [
    [("open", 1, "kill")],
    [("mark", 1, "kill")],
    [("replace", 1, "kill")],
    [("replace", 3, "kill")],
    [("rehearse", 1, "kill")],
    [("step", 1, "kill")],
    [("step", 4, "kill")],
    [("record", 8, "kill")],
    [("tensors", 1, "kill")],
    [("tensors", 2, "kill")],
    [("tensors", 3, "kill")],
    [("json", 3, "kill")],
    [("json", 4, "kill")],
    [("sync", 8, "kill")],
    [("rename", 2, "kill")],
    [("sync", 10, "kill")],
    [("rotate", 3, "kill")],
    [("unlink", 2, "kill")],
    [("rmdir", 1, "kill")],
    [("evaluate", 2, "kill")],
    [("rewind", 1, "kill")],
    [("scores", 1, "kill")],
    [("export", 1, "kill")],
    [("reload", 1, "kill")],
    [("finish", 1, "kill")],
]
"""Around every write: the marker, the tensors of a checkpoint, its state and manifest, its rename, rotation, records, the export."""


def valid_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints; raises if one of them is not valid."""
    marker = run / "run.json"
    if not marker.exists():
        return []
    checkpoints = Checkpoints(run / "checkpoints", json.loads(marker.read_text())["run_id"])
    return [checkpoints.read(checkpoints.path(step)).step for step in steps_saved(run)]


def finish(run: Path, recipe: Path, server: ForkServer) -> None:
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr


def test_trap_28_kills_at_every_point_lose_nothing(
    place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    """One run, killed at one point after the other, ends with the results of an undisturbed run."""
    run, killed = place / "points", 0
    for faults in POINTS:
        before = valid_steps(run)
        ended = server.run(*in_directory(recipe, run), faults=[*faults, *([] if faults[0][0] == "reload" else FAST)])
        assert ended.code in (0, -signal.SIGKILL), (faults, ended.stderr)
        assert len(valid_steps(run)) >= min(1, len(before)), faults
        if ended.code == 0:
            break
        killed += 1
    else:
        finish(run, recipe, server)
    assert killed >= 12, "guard: most points were met before the run had ended"
    assert left(run) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("faults", POINTS, ids=lambda faults: f"{faults[0][0]}-{faults[0][1]}")
def test_trap_28_repeated_kills_lose_nothing(
    faults: list[Fault], place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    run = place / f"point-{faults[0][0]}-{faults[0][1]}"
    with_reload = [] if faults[0][0] == "reload" else FAST
    codes = [server.run(*in_directory(recipe, run), faults=[*faults, *with_reload]).code for _ in range(3)]
    assert codes[0] == -signal.SIGKILL or faults[0][0] == "rewind", "guard: it was killed"
    valid_steps(run)
    if 0 not in codes:
        finish(run, recipe, server)
    assert left(run) == undisturbed


def wait_for_steps(run: Path, before: bytes, count: int, steps: int, over: Callable[[], bool]) -> None:
    """Wait until a run whose ledger was `before` has done `count` more steps, or the last of `steps`, or has ended."""
    wait_until(lambda: ledger_bytes(run) != before or over())
    enough = min(ledger_bytes(run).count(b"\n") + count, steps)  # the first change may be that the ledger is cut back
    wait_until(lambda: ledger_bytes(run).count(b"\n") >= enough or over())


def kill_at_random(server: ForkServer, recipe: Path, run: Path, moment: random.Random, steps: int = STEPS) -> int:
    """Start the run, kill it during a step, save, evaluation or export, and return its exit code."""
    before, child = ledger_bytes(run), server.start(*in_directory(recipe, run))
    wait_for_steps(run, before, moment.randint(2, 4), steps, lambda: not alive(child.pid))
    time.sleep(moment.uniform(0.0, 0.02))
    child.signal(signal.SIGKILL)
    return child.wait().code


def kill_early(server: ForkServer, recipe: Path, run: Path, moment: random.Random) -> int:
    """Start the run, kill it at any time of its first half second, and return its exit code."""
    child = server.start(*in_directory(recipe, run))
    time.sleep(moment.uniform(0.0, 0.5))
    child.signal(signal.SIGKILL)
    return child.wait().code


def ledger_bytes(run: Path) -> bytes:
    file = run / "ledger.jsonl"
    return file.read_bytes() if file.exists() else b""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_kills_at_random_moments_lose_nothing(place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]) -> None:
    run, moment, kills, verified = place / "random", random.Random(5), 0, 0
    while kill_at_random(server, recipe, run, moment) == -signal.SIGKILL:
        verified += len(valid_steps(run))
        kills += 1
        if kills == 6:
            finish(run, recipe, server)
            break
    assert left(run) == undisturbed
    assert every_row_once_an_epoch(lines(run, "ledger"), load_recipe(recipe))
    assert kills >= 3, "guard: it was killed"
    assert verified > 0, "guard: there were checkpoints to verify"


@pytest.mark.long
def test_hundred_random_kills_lose_nothing(place: Path, server: ForkServer) -> None:
    """One run of 400 steps, killed a hundred times: during its start, and in its steps, saves and evaluations."""
    epochs, moment, verified, kills = 80, random.Random(11), 0, 100
    recipe = full_recipe(place / "long", training={"epochs": epochs, "batch_size": 8, "precision": "float32"})
    finish(place / "long/whole", recipe, server)
    run = place / "long/killed"
    for kill in range(kills):
        is_early = kill % 5 == 4
        code = kill_early(server, recipe, run, moment) if is_early else kill_at_random(server, recipe, run, moment, 5 * epochs)
        assert code == -signal.SIGKILL, f"kill {kill}"
        verified += len(valid_steps(run))
    assert len(lines(run, "ledger")) < 5 * epochs, "guard: the run was still training at the last kill"
    reached = max(valid_steps(run))
    finish(run, recipe, server)
    assert left(run, 5 * epochs) == left(place / "long/whole", 5 * epochs)
    assert every_row_once_an_epoch(lines(run, "ledger"), load_recipe(recipe))
    print(f"{kills} kills, {reached} of {5 * epochs} steps reached, {verified} checkpoints verified, none unusable")
