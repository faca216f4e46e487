"""NaN losses: no update, the rows are reported, and after a few such steps the run ends on all processes with one exit code."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rmtrain.engine.run_records import read_run
from tests.faults.driver import Fault
from tests.faults.runs import STEPS, full_recipe, in_directory, lines, steps_saved, weights
from tests.forks import FAST, ON_CPU, ForkServer


def nan_in(*steps: int) -> list[Fault]:
    """Return faults with a NaN loss in these steps; on a GPU the first call is the warm-up, and each step has one micro-batch."""
    return [*(("backward", torch.cuda.is_available() + step, "nan") for step in steps), *FAST]


def test_trap_21_a_nan_step_changes_nothing(place: Path, recipe: Path, server: ForkServer) -> None:
    """The rows of the step are reported, and the next step trains again."""
    run = place / "one"
    ended = server.run(*in_directory(recipe, run), "checkpoints.every=1", "checkpoints.keep=20", faults=nan_in(5))
    assert ended.code == 0, ended.stderr
    (warning,) = [line for line in ended.stderr.splitlines() if "step 5: " in line]
    assert "train:" in warning
    before, after, later = (weights(run, step) for step in (4, 5, 6))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], later[name]) for name in after), "guard: the next step is one"
    ledger = {line["step"]: line["ids"] for line in lines(run, "ledger")}
    assert lines(run, "nonfinite") == [{"step": 5, "ids": ledger[5]}]
    assert steps_saved(run) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("first", [1, 6])
def test_trap_21_three_nans_in_a_row_stop(first: int, place: Path, recipe: Path, server: ForkServer) -> None:
    run = place / f"three-{first}"
    ended = server.run(*in_directory(recipe, run), faults=nan_in(first, first + 1, first + 2))
    assert ended.code == 5, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: step {first + 2}: ")
    assert "nonfinite.jsonl" in error
    record = read_run(run)
    assert record.state == "failed"
    assert record.problems[0] == error.removeprefix("error: ")
    assert [line["step"] for line in lines(run, "nonfinite")] == [first, first + 1, first + 2]
    assert all(torch.isfinite(tensor).all() for step in steps_saved(run) for tensor in weights(run, step).values())
    kept = [step for step in (first, first + 1, first + 2) if step <= steps_saved(run)[-1]]
    ended = server.run(*in_directory(recipe, run))
    assert ended.code == 0, ended.stderr
    assert [line["step"] for line in lines(run, "nonfinite")] == kept, "the steps that were repeated were finite"
    assert (read_run(run).state, read_run(run).problems) == ("finished", []), "guard: the error is forgotten"


@pytest.mark.long
def test_trap_21_nan_on_one_rank_stops_both(place: Path, server: ForkServer) -> None:
    recipe, run = full_recipe(place / "two"), place / "two/run"
    faults: list[Any] = [("backward", step, "nan@1") for step in (4, 5, 6)]
    result = server.run(*in_directory(recipe, run), faults=faults, processes=2, **ON_CPU)
    assert result.code == 5
    assert "error: step 6: " in result.stderr, result.stderr
    assert [line["step"] for line in lines(run, "nonfinite")] == [4, 5, 6]
    before = weights(run, 4)
    assert all(torch.isfinite(tensor).all() for tensor in before.values())
