"""Failing trackers, hubs and foreign machines: they never stop a run, and never lose its model."""

from pathlib import Path
from typing import Any

import pytest

from rmtrain.model.hub import uploaded_files
from tests.faults.driver import Fault
from tests.faults.runs import in_directory, left, lines
from tests.forks import FAST, ForkServer

TENSORBOARD = "tracking.to=[tensorboard]"
FAILURES: dict[str, Fault] = {
    "start raises": ("tracker-start", 1, "raise"),
    "start hangs": ("tracker-start", 1, "hang"),
    "log raises": ("tracker-log", 0, "raise"),
    "log hangs": ("tracker-log", 2, "hang"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=name, marks=[pytest.mark.long] * (name == "start hangs")) for name, fault in FAILURES.items()],
)
def test_trap_44_failing_tracker_never_stops_a_run(
    fault: Fault, place: Path, recipe: Path, server: ForkServer, undisturbed: dict[str, Any]
) -> None:
    """A tracker that raises or hangs costs one warning; metrics and weights equal those of an undisturbed run."""
    run = place / f"{fault[0]}-{fault[2]}"
    ended = server.run(*in_directory(recipe, run), TENSORBOARD, faults=[fault, *FAST])
    assert ended.code == 0, ended.stderr
    (warning,) = [line for line in ended.stderr.splitlines() if "trackers:" in line]
    assert "metrics.jsonl" in warning
    assert "hf_" not in ended.stderr, "the exception of the tracker has a token"
    assert left(run)["metrics"] == undisturbed["metrics"]
    assert left(run)["sha256"] == undisturbed["sha256"]


def test_trap_s7_failed_upload_leaves_a_finished_run(place: Path, recipe: Path, server: ForkServer) -> None:
    """The model is exported, and the error names the command that repeats the upload."""
    run = place / "upload"
    ended = server.run(*in_directory(recipe, run), "hub.push=true", "hub.id=nobody/nothing", HF_TOKEN="hf_test")
    assert ended.code == 1, ended.stderr
    assert "nobody/nothing" in ended.stderr
    assert f"rmtrain export {run} --push" in ended.stderr, "the command to repeat it"
    assert (run / "model/model.safetensors").is_file()
    assert server.run(*in_directory(recipe, run)).code == 4, "the run is finished"


def test_trap_s7_rows_and_paths_are_not_uploaded(place: Path, recipe: Path, server: ForkServer) -> None:
    run = place / "private"
    assert server.run(*in_directory(recipe, run)).code == 0
    files = uploaded_files(run / "model")
    assert "model.safetensors" in files
    text = "".join((run / "model" / name).read_text(encoding="utf-8") for name in files if not name.endswith(".safetensors"))
    first_row = (place / "train.jsonl").read_text().splitlines()[0]
    assert '"prompt": "' in first_row
    assert first_row.split('"')[3] not in text
    assert str(Path.home()) + "/" not in text
    assert not any(name.startswith(("optimizer", "ledger", "samples", "state")) for name in files)


@pytest.mark.long
def test_trap_36_weights_are_independent_of_hash_seeds(place: Path, recipe: Path, undisturbed: dict[str, Any]) -> None:
    """PYTHONHASHSEED and the number of tokenizing processes do not change the order of the data or the weights."""
    for seed in ("1", "2"):
        with ForkServer(PYTHONHASHSEED=seed) as other:
            run = place / f"hash-{seed}"
            ended = other.run(
                *in_directory(recipe, run), f"data.cache_dir={place}/cache-{seed}", "data.processes=2", "--deterministic"
            )
            assert ended.code == 0, ended.stderr
            assert left(run) == undisturbed
            assert '"deterministic": true' in (run / "environment.json").read_text()
    assert lines(place / "hash-1", "ledger") == lines(place / "hash-2", "ledger")
