"""Errors become lines and exit codes: in one process, in a rank of `--processes`, and in a rank of another launcher."""

import errno
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rmtrain.cli import quick_imports
from rmtrain.command_line.exits import fail_on_missed
from rmtrain.errors import GateMissed, RmtrainError
from tests.forks import rmtrain
from tests.runs import ROOT, environment_of_process, tiny_recipe, write_recipe

ERRORS = {
    "a refusal": ('DataError("a.jsonl:3: no text", "a.jsonl:5: no text")', 3, ["a.jsonl:3: no text", "a.jsonl:5: no text"]),
    "a signal": ("Stopped(15)", 143, ["stopped by SIGTERM"]),
    "a full disk": (f'OSError({errno.ENOSPC}, "no space", "/data/x")', 75, ["/data/x"]),
    "a file that is not ours": (f'OSError({errno.EACCES}, "Permission denied", "/data/x")', 1, ["/data/x: Permission denied"]),
}
"""Errors by name: the expression, the exit code, and a part of each line."""
BUGS = ['KeyError("nobody foresaw this")', f'OSError({errno.ENOENT}, "No such file", "/data/x")', 'RuntimeError("shape")']
LOST = ['RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")', 'DistBackendError("NCCL error")']


def exits(error: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The end of a process that meets an error."""
    script = f"""
from rmtrain.errors import *
from rmtrain.command_line.exits import exit_with_error
class DistBackendError(RuntimeError): pass
try:
    raise {error}
except BaseException as error:
    exit_with_error(error)
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=ROOT, env=environment_of_process(**environment), capture_output=True, text=True, timeout=60
    )


def rank(number: int, reports: Path | None = None) -> dict[str, str]:
    environment = {"RANK": str(number), "WORLD_SIZE": "2"}
    return environment if reports is None else environment | {"RMTRAIN_REPORTS": str(reports)}


@pytest.mark.parametrize("what", ERRORS)
def test_error_becomes_lines_and_code(what: str, tmp_path: Path) -> None:
    """One line per problem: printed by one process, or left in a report for the launcher."""
    error, code, texts = ERRORS[what]
    alone, rank_0, rank_1 = exits(error), exits(error, **rank(0, tmp_path)), exits(error, **rank(1, tmp_path))
    assert [ended.returncode for ended in (alone, rank_0, rank_1)] == [code] * 3
    assert_lines(alone.stderr.splitlines(), "error: ", texts)
    assert rank_0.stderr == rank_1.stderr == "", "the launcher prints"
    prefixes = ["error: ", "error: " if what == "a signal" else "error: rank 1: "]
    for number, prefix in enumerate(prefixes):
        report = read(tmp_path, number)
        assert_lines(report["lines"], prefix, texts)
        assert (report["rank"], report["code"], report["may_follow"]) == (number, code, what == "a signal")


def assert_lines(lines: list[str], prefix: str, texts: list[str]) -> None:
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        assert line.startswith(prefix)
        assert text in line


def read(folder: Path, number: int) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / f"{number}.json").read_text())
    return report


@pytest.mark.parametrize("error", BUGS)
def test_bug_shows_its_traceback(error: str, tmp_path: Path) -> None:
    alone, other = exits(error), exits(error, **rank(1, tmp_path))
    assert (alone.returncode, other.returncode) == (1, 1)
    assert alone.stderr.count("Traceback") == 1
    first, second, *_, last = read(tmp_path, 1)["lines"]
    assert first.startswith("error: rank 1: ")
    assert second.startswith("Traceback")
    assert last.startswith(error.partition("(")[0].replace("OSError", "FileNotFoundError"))
    assert not read(tmp_path, 1)["may_follow"]


@pytest.mark.parametrize("error", LOST)
def test_lost_peer_is_no_bug(error: str, tmp_path: Path) -> None:
    """A collective that fails because another rank ended is not reported as a bug, and may be retried."""
    ended = exits(error, **rank(0, tmp_path))
    assert ended.returncode == 75
    (line,) = read(tmp_path, 0)["lines"]
    assert line.startswith("error: ")
    assert read(tmp_path, 0)["may_follow"]
    assert exits(error).returncode == 1, "guard: one process has no peers"


def test_ranks_of_other_launchers_print() -> None:
    refusal, stop = ERRORS["a refusal"][0], ERRORS["a signal"][0]
    printed = [exits(error, **rank(number)).stderr.splitlines() for error in (refusal, stop) for number in range(2)]
    assert [len(lines) for lines in printed] == [2, 2, 1, 0], "all ranks stop together, and rank 0 prints that"
    assert all(line.startswith("error: rank 1: ") for line in printed[1])
    assert not any("rank" in line for line in printed[0])


def test_rank_0_has_precedence(tmp_path: Path) -> None:
    """The other ranks wait a moment before they report; a launcher that stops them in it hears only rank 0."""
    began = time.monotonic()
    exits(ERRORS["a refusal"][0], **rank(0, tmp_path))
    alone = time.monotonic() - began
    exits(ERRORS["a refusal"][0], **rank(1, tmp_path))
    assert read(tmp_path, 1)["time"] > read(tmp_path, 0)["time"]
    assert time.monotonic() - began - alone > 1.0, "guard: it waited"


@pytest.mark.parametrize("verb", ["preprocess", "train", "eval", "inspect"])
def test_options_of_other_trainers_are_answered(verb: str) -> None:
    """All unknown options at once, in a line each: the key that is meant, or the option of ours."""
    options = ["--learning_rate", "1e-5", "--per_device_train_batch_size=8", "--jsn", "--dataset_name", "x", "--lora-r=8"]
    ended = rmtrain(verb, "r.yaml", *options)
    assert ended.returncode == 2
    words = ["optimizer.lr=...", "training.batch_size", "--json?", "data.train=[{path: ...}]", "lora.rank=..."]
    names = ["--learning_rate", "--per_device_train_batch_size", "--jsn", "--dataset_name", "--lora-r"]
    lines = ended.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == names
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines


def test_overrides_may_have_dashes(tmp_path: Path) -> None:
    """`--a.b=v` and `--a.b v` are overrides, `--config` and `-c` name the recipe, and a value may look like an option."""
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path))
    for option in ("--config", "-c", "--recipe"):
        ended = rmtrain("preprocess", option, recipe, "--optimizer.lr=7", "--training.batch_size", "0")
        assert ended.returncode == 2
        lines = ended.stderr.splitlines()
        assert [line.split("  ")[0] for line in lines] == [
            "error: override optimizer.lr=7",
            "error: override training.batch_size=0",
        ]
    found = rmtrain("inspect", recipe, "--find", "--learning_rate", "--data.max_length=96")
    assert found.returncode == 0, found.stderr
    scored = rmtrain("score", "m", "in.jsonl", "--batch_size", "8", "-o", "out")
    assert scored.returncode == 2
    assert "training." not in scored.stderr, "score takes no keys of a recipe"


def test_missed_gate_names_required_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    gates: dict[str, dict[str, Any]] = {
        "accuracy": {"required": 0.7, "value": 0.65, "passed": False},
        "loss": {"required": 0.5, "value": None, "passed": False},
        "ties": {"required": 0.1, "value": 0.0, "passed": True},
    }
    with pytest.raises(GateMissed) as missed:
        fail_on_missed(gates, "hub: no token")
    accuracy, loss, hub = missed.value.problems
    assert accuracy.startswith("gate accuracy: ")
    assert all(number in accuracy for number in ("0.7", "0.6500", "0.0500"))
    assert loss.startswith("gate loss: ")
    assert hub == "hub: no token"
    with pytest.raises(RmtrainError) as failed:
        fail_on_missed({"ties": gates["ties"]}, "hub: no token")
    assert failed.value.exit_code == 1
    fail_on_missed({"ties": gates["ties"]})
    for required, value, digits in ((1e-7, 0.0, "1e-07"), (0.6, 0.59999, "0.59999"), (0.3, 0.3 + 1e-9, "1e-09")):
        with pytest.raises(GateMissed) as close:
            fail_on_missed({"rm_bench": {"required": required, "value": value, "passed": False}})
        (line,) = close.value.problems
        assert digits in line
        assert float(line.partition("missed by ")[2]) > 0
    monkeypatch.setenv("RANK", "1")
    fail_on_missed(gates)


def test_imports_collect_no_garbage() -> None:
    """Collections stop while a verb is imported, and go on afterwards, also if an import fails."""
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        with pytest.raises(ImportError), quick_imports():
            raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0, "what was imported is left out of later collections"
    finally:
        gc.unfreeze()
