"""An artifact survives: killed builders, several at once, disks that are full or cannot be written. Each in processes of their own."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import pairs, write_jsonl
from tests.runs import ROOT

ROWS = 400
SLOW = """
import os, time

def rows(row):
    with open(os.environ["TRACE"], "a") as trace:
        trace.write(f"{os.getpid()}\\n")
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return row
"""
RECIPE = """\
run: {{name: tiny, output_dir: {folder}/run}}
data:
  train: [{{path: {folder}/rows.jsonl, prepare: "slow:rows", holdout: 0.2, dedup: true, cap: {{by: chosen, rows: 9}}}}]
  chat_template: simple_chat
  max_length: 64
  cache_dir: {folder}/cache
model: {{scratch: {{architecture: llama, hidden_size: 16, layers: 1, heads: 1, vocab_size: 300}}, tokenizer: {folder}/tokenizer}}
optimizer: {{lr: 1e-3}}
"""
PREPARE = """
import sys
from rmtrain.data import loading
from rmtrain.data.prepare import prepare
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import RmtrainError
from rmtrain.recipe.load import load_recipe

loading.BATCH_ROWS = 20
recipe = load_recipe(sys.argv[1], sys.argv[2:])
try:
    made = prepare(recipe.data, load_tokenizer(recipe.model, recipe.data))
    print(made.directory)
except RmtrainError as error:
    print(*error.problems, sep="\\n", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a tokenizer, a function that is slow on demand, and a recipe of all that."""
    from tests.helpers import byte_bpe

    folder = tmp_path_factory.mktemp("faults")
    rows = pairs(ROWS - 20)
    write_jsonl(folder / "rows.jsonl", [*rows, *rows[:20]])
    byte_bpe().save_pretrained(folder / "tokenizer")
    (folder / "slow.py").write_text(SLOW)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


def start(folder: Path, cache: Path, *overrides: str, pause: float = 0.0, **settings: Any) -> subprocess.Popen[str]:
    """A process that prepares the data into a cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TRACE": str(trace_of(cache)),
        "PAUSE": str(pause),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", PREPARE, str(folder / "recipe.yaml"), f"data.cache_dir={cache}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **settings)


def trace_of(cache: Path) -> Path:
    """Where the rows that were prepared are counted: beside the disk of the cache, which may be full."""
    return cache.parent.parent / f"{cache.name}.trace"


def finished(process: subprocess.Popen[str]) -> Path:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return Path(out.strip().splitlines()[-1])


def traced(cache: Path) -> list[int]:
    """The process that prepared each row so far."""
    trace = trace_of(cache)
    return [int(line) for line in trace.read_text().split()] if trace.exists() else []


def wait_for_rows(cache: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(traced(cache)) < count:
        assert time.monotonic() < end, "guard: the builder goes on"
        time.sleep(0.01)


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a build gives that nothing happens to."""
    cache = tmp_path_factory.mktemp("undisturbed") / "disk" / "cache"
    made = content(finished(start(folder, cache)))
    assert len(traced(cache)) == ROWS
    assert set(made) == {"train.arrow", "eval.arrow", "manifest.json", "dropped.jsonl", "gathered.jsonl"}
    splits = json.loads(made["manifest.json"])["splits"]
    assert splits["train"]["waterfall"]["rows"]["dropped"]["duplicate"] > 5, "guard: state over batches matters"
    assert splits["eval"]["waterfall"]["rows"]["kept"] > 20, "guard"
    return made


@pytest.mark.parametrize("seed", range(4))
def test_trap_14_killed_at_any_moment_and_run_again_it_is_the_same_to_the_byte(
    folder: Path, tmp_path: Path, undisturbed: dict[str, bytes], seed: int
) -> None:
    cache, rng = tmp_path / "disk" / "cache", random.Random(seed)
    process = start(folder, cache, f"data.processes={1 + seed % 2}", pause=0.001)
    wait_for_rows(cache, rng.randrange(1, ROWS))
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = [name for name in os.listdir(cache) if not name.startswith(".")]
    assert all(content(cache / name) == undisturbed for name in whole), "it appears whole or not at all"
    assert content(finished(start(folder, cache))) == undisturbed
    assert not [name for name in os.listdir(cache) if name.startswith(".")], "leftovers are gone"


def test_of_three_at_once_one_builds_and_the_others_take_its_result(
    folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    cache = tmp_path / "disk" / "cache"
    processes = [start(folder, cache, pause=0.004) for _ in range(3)]
    directories = {finished(process) for process in processes}
    assert len(directories) == 1
    assert content(directories.pop()) == undisturbed
    assert len(traced(cache)) == ROWS, "each row was prepared once"
    assert len(set(traced(cache))) == 1
    assert len(os.listdir(cache)) == 1


def test_when_the_builder_is_killed_one_of_those_who_wait_builds(
    folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    cache = tmp_path / "disk" / "cache"
    processes = {process.pid: process for process in (start(folder, cache, pause=0.004) for _ in range(3))}
    wait_for_rows(cache, 60)
    builder = processes.pop(traced(cache)[0])
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    for process in processes.values():
        assert content(finished(process)) == undisturbed
    builders = list(dict.fromkeys(traced(cache)))
    assert builders[0] == builder.pid
    assert len(builders) == 2, "one of the two, not both"
    assert traced(cache).count(builders[1]) == ROWS
    assert len(os.listdir(cache)) == 1


def test_trap_40_a_killed_worker_ends_the_build_with_a_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "disk" / "cache"
    process = start(folder, cache, "data.processes=2", pause=0.004)
    wait_for_rows(cache, 40)
    os.kill(traced(cache)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "a process of data.processes ended before its work was done, killed or out of memory; set fewer processes\n"
    assert os.listdir(cache) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kilobytes; without the right to mount one, it is the largest file that is limited instead."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode == 0
    yield disk
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_in_a_line_and_nothing_is_left_half_written(folder: Path, small_disk: Path) -> None:
    cache = small_disk / "cache"
    is_mount = os.path.ismount(small_disk)

    def limit_files() -> None:
        if not is_mount:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(folder, cache, preexec_fn=limit_files) if not is_mount else start(folder, cache)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors == f"data.cache_dir: the disk of {cache} is full; make room, or name another directory\n"
    assert os.listdir(cache) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that may be made read-only by `protect`."""
    folder = tmp_path / "protected"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True)
    folder.chmod(0o700)


def protect(folder: Path) -> None:
    """Take away the right to write, from root, too, where it may mount."""
    folder.chmod(0o500)
    if os.geteuid() == 0:
        bound = ["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,bind,ro", str(folder)]
        if any(subprocess.run(command, capture_output=True).returncode for command in bound):
            pytest.skip("root may write anywhere here, and may not mount")


def test_a_cache_that_cannot_be_written_is_told_and_one_that_holds_the_data_is_enough(
    folder: Path, read_only: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    made = finished(start(folder, read_only / "full"))
    (read_only / "empty").mkdir()
    protect(read_only)
    assert content(finished(start(folder, read_only / "full", pause=60))) == undisturbed, "guard: nothing was built again"
    assert made.parent == read_only / "full"
    for cache in (read_only / "absent", read_only / "empty") if os.geteuid() == 0 else (read_only / "absent",):
        process = start(folder, cache)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2, errors
        assert errors.startswith(f"data.cache_dir: cannot write to {cache}: ")
        assert errors.count("\n") == 1
