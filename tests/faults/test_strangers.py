"""What strangers' trackers, hubs and machines do to a run: they do not stop it, and never lose its model."""

from pathlib import Path
from typing import Any

import pytest

from rmtrain.model.hub import uploaded_files
from tests.faults.driver import Fault
from tests.faults.nursery import FAST, Nursery
from tests.faults.runs import in_directory, left, lines

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
def test_trap_44_a_tracker_that_fails_or_hangs_never_stops_a_run(
    fault: Fault, place: Path, recipe: Path, nursery: Nursery, undisturbed: dict[str, Any]
) -> None:
    run = place / f"{fault[0]}-{fault[2]}"
    ended = nursery.run(*in_directory(recipe, run), TENSORBOARD, faults=[fault, FAST])
    assert ended.code == 0, ended.stderr
    (warning,) = [line for line in ended.stderr.splitlines() if "trackers:" in line]
    assert "metrics.jsonl" in warning
    assert "hf_" not in ended.stderr, "what it raised held a token"
    assert left(run)["metrics"] == undisturbed["metrics"]
    assert left(run)["sha256"] == undisturbed["sha256"]


def test_trap_s7_an_upload_that_fails_leaves_a_finished_run_and_the_command_to_repeat_it(
    place: Path, recipe: Path, nursery: Nursery
) -> None:
    run = place / "upload"
    ended = nursery.run(*in_directory(recipe, run), "hub.push=true", "hub.id=nobody/nothing")
    assert ended.code == 1, ended.stderr
    assert "hub: nobody/nothing was not uploaded: " in ended.stderr
    assert f"Retry: rmtrain export {run} --push" in ended.stderr
    assert (run / "model/model.safetensors").is_file()
    assert nursery.run(*in_directory(recipe, run)).code == 4, "it is finished"


def test_trap_s7_neither_rows_nor_paths_are_uploaded(place: Path, recipe: Path, nursery: Nursery) -> None:
    run = place / "private"
    assert nursery.run(*in_directory(recipe, run)).code == 0
    files = uploaded_files(run / "model")
    assert "model.safetensors" in files
    text = "".join((run / "model" / name).read_text(encoding="utf-8") for name in files if not name.endswith(".safetensors"))
    first_row = (place / "train.jsonl").read_text().splitlines()[0]
    assert '"prompt": "' in first_row
    assert first_row.split('"')[3] not in text
    assert str(Path.home()) + "/" not in text
    assert not any(name.startswith(("optimizer", "ledger", "samples", "state")) for name in files)


@pytest.mark.long
def test_trap_36_the_same_recipe_gives_the_same_weights_whatever_python_hashes(
    place: Path, recipe: Path, undisturbed: dict[str, Any]
) -> None:
    for seed in ("1", "2"):
        with Nursery(PYTHONHASHSEED=seed) as other:
            run = place / f"hash-{seed}"
            ended = other.run(
                *in_directory(recipe, run), f"data.cache_dir={place}/cache-{seed}", "data.processes=2", "--deterministic"
            )
            assert ended.code == 0, ended.stderr
            assert left(run) == undisturbed
            assert '"deterministic": true' in (run / "environment.json").read_text()
    assert lines(place / "hash-1", "ledger") == lines(place / "hash-2", "ledger")
