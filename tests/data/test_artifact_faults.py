"""An artifact survives killed builders, several builders at once, and disks that are full or cannot be written.

Each builder is a process of its own.
"""

import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pytest

from rmtrain.data.prepare import prepare
from rmtrain.data.rows import loading
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.errors import RmtrainError
from rmtrain.recipe.load import load_recipe
from tests.helpers import byte_bpe, pairs, write_jsonl
from tests.runs import rmtrain

PROCESSES, NUMBERS = get_context("forkserver"), count()
PROCESSES.set_forkserver_preload(["tests.data.test_artifact_faults"])

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, a tokenizer, a function that is slow on demand, and a recipe of these."""
    folder = tmp_path_factory.mktemp("faults")
    rows = pairs(ROWS - 20)
    write_jsonl(folder / "rows.jsonl", [*rows, *rows[:20]])
    byte_bpe().save_pretrained(folder / "tokenizer")
    (folder / "slow.py").write_text(SLOW)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


class Builder:
    """A process that prepares the data into a cache, as any command does. It is forked from one that has imported everything."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *overrides: str,
        pause: float = 0.0,
        largest_file: int | None = None,
        user: int | None = None,
    ) -> None:
        self.printed = trace_of(cache).with_name(f"printed-{next(NUMBERS)}")
        environment = {"TRACE": str(trace_of(cache)), "PAUSE": str(pause)}
        overrides = (f"data.cache_dir={cache}", *overrides)
        self.process = PROCESSES.Process(target=build, args=(folder, overrides, environment, self.printed, largest_file, user))
        self.process.start()

    def kill(self) -> None:
        """Kill it, without a chance to clean up."""
        self.process.kill()
        self.process.join()

    def end(self) -> tuple[int | None, str]:
        """Wait for its end; returns its exit code and output."""
        self.process.join(60)
        return self.process.exitcode, self.printed.read_text()

    def result(self) -> Path:
        """Return the directory that it built or found."""
        code, printed = self.end()
        assert code == 0, printed
        return Path(printed.splitlines()[-1])


def build(
    folder: Path,
    overrides: Sequence[str],
    environment: Mapping[str, str],
    printed: Path,
    largest_file: int | None,
    user: int | None,
) -> None:
    """Prepare the data; runs in the process."""
    os.environ.update(environment)
    out = os.open(printed, os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    loading.BATCH_ROWS = 20
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    if user is not None:  # after the imports of the above: another user may not be able to read this Python
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    try:
        made = prepare(recipe.data, tokenizer)
    except RmtrainError as error:
        os.write(1, "".join(f"{problem}\n" for problem in error.problems).encode())
        os._exit(error.exit_code)
    os.write(1, f"{made.directory}\n".encode())


def trace_of(cache: Path) -> Path:
    """Return the file that counts the rows; it is outside of the cache, whose disk may be full."""
    return cache.parent.parent / f"{cache.name}.trace"


def traced(cache: Path) -> list[int]:
    """Return the process of each row that was prepared so far."""
    trace = trace_of(cache)
    return [int(line) for line in trace.read_text().split()] if trace.exists() else []


def wait_for_rows(cache: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(traced(cache)) < count:
        assert time.monotonic() < end, "guard: the builder makes progress"
        time.sleep(0.01)


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a build that nothing happens to."""
    cache = tmp_path_factory.mktemp("undisturbed") / "disk" / "cache"
    made = content(Builder(folder, cache).result())
    assert len(traced(cache)) == ROWS
    assert set(made) == {"train.arrow", "eval.arrow", "manifest.json", "dropped.jsonl", "gathered.jsonl"}
    splits = json.loads(made["manifest.json"])["splits"]
    assert splits["train"]["waterfall"]["rows"]["dropped"]["duplicate"] > 5, "guard: state over batches matters"
    assert splits["eval"]["waterfall"]["rows"]["kept"] > 20, "guard"
    return made


@pytest.mark.parametrize("seed", range(4))
def test_trap_14_a_killed_build_can_be_repeated(folder: Path, tmp_path: Path, undisturbed: dict[str, bytes], seed: int) -> None:
    """Killed at any moment and run again, it writes the same bytes and removes the leftovers."""
    cache, rng = tmp_path / "disk" / "cache", random.Random(seed)
    builder = Builder(folder, cache, f"data.processes={1 + seed // 3}", pause=0.001)
    wait_for_rows(cache, rng.randrange(1, ROWS))
    time.sleep(rng.random() * 0.05)
    builder.kill()
    whole = [name for name in os.listdir(cache) if not name.startswith(".")]
    assert all(content(cache / name) == undisturbed for name in whole), "it appears whole or not at all"
    assert content(Builder(folder, cache).result()) == undisturbed
    assert not [name for name in os.listdir(cache) if name.startswith(".")], "leftovers are gone"


def test_one_of_three_builders_builds(folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The others wait for its result and use it."""
    cache = tmp_path / "disk" / "cache"
    builders = [Builder(folder, cache, pause=0.002) for _ in range(3)]
    directories = {builder.result() for builder in builders}
    assert len(directories) == 1
    assert content(directories.pop()) == undisturbed
    assert len(traced(cache)) == ROWS, "each row was prepared once"
    assert len(set(traced(cache))) == 1
    assert len(os.listdir(cache)) == 1


def test_a_waiting_process_replaces_a_killed_builder(folder: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """One of those that wait builds, not both."""
    cache = tmp_path / "disk" / "cache"
    processes = {builder.process.pid: builder for builder in (Builder(folder, cache, pause=0.002) for _ in range(3))}
    wait_for_rows(cache, 60)
    first = traced(cache)[0]
    processes.pop(first).kill()
    for waiting in processes.values():
        assert content(waiting.result()) == undisturbed
    builders = list(dict.fromkeys(traced(cache)))
    assert builders[0] == first
    assert len(builders) == 2, "one of the two, not both"
    assert traced(cache).count(builders[1]) == ROWS
    assert len(os.listdir(cache)) == 1


def test_trap_40_a_killed_worker_ends_the_build(folder: Path, tmp_path: Path) -> None:
    """With one line and without leftovers."""
    cache = tmp_path / "disk" / "cache"
    builder = Builder(folder, cache, "data.processes=2", pause=0.004)
    wait_for_rows(cache, 40)
    os.kill(traced(cache)[0], signal.SIGKILL)
    code, printed = builder.end()
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith("data.processes:")
    assert os.listdir(cache) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounts a small disk: run as root where that may mount; the test of a limit for files stands in for it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def check_full(builder: Builder, cache: Path) -> None:
    """Check that a builder reports the full disk and leaves nothing."""
    code, printed = builder.end()
    assert (code, printed.count("\n")) == (75, 1)
    assert printed.startswith(f"data.cache_dir: the disk of {cache} ")
    assert os.listdir(cache) == []


def test_a_full_disk_leaves_nothing(folder: Path, small_disk: Path) -> None:
    cache = small_disk / "cache"
    check_full(Builder(folder, cache), cache)


def test_a_file_size_limit_counts_as_full_disk(folder: Path, tmp_path: Path) -> None:
    """Quotas end a write in this way."""
    cache = tmp_path / "disk" / "cache"
    check_full(Builder(folder, cache, largest_file=20_000), cache)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that may be made read-only by `protect`."""
    folder = tmp_path / "protected"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True)
    folder.chmod(0o700)


def protect(folder: Path) -> None:
    """Make a folder read-only, for root as well where it may mount."""
    folder.chmod(0o500)
    if os.geteuid() == 0:
        bound = ["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,bind,ro", str(folder)]
        if any(subprocess.run(command, capture_output=True).returncode for command in bound):
            pytest.skip("root may write anywhere: run as another user, or where root may mount")


def test_a_read_only_cache_can_be_used(folder: Path, read_only: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A read-only cache that has the data is enough; otherwise the command says that it cannot write."""
    made = Builder(folder, read_only / "full").result()
    (read_only / "empty").mkdir()
    protect(read_only)
    assert made.parent == read_only / "full"
    assert content(Builder(folder, read_only / "full", pause=60).result()) == undisturbed, "guard: nothing was built again"
    shown = rmtrain("preprocess", folder / "recipe.yaml", f"data.cache_dir={made.parent}", TRACE=str(trace_of(made.parent)))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("the directory is read-only") == 2, "findings and lengths are printed but not stored"
    for cache in (read_only / "absent", read_only / "empty") if os.geteuid() == 0 else (read_only / "absent",):
        code, printed = Builder(folder, cache).end()
        assert code == 2, printed
        assert printed.startswith(f"data.cache_dir: cannot write to {cache}: ")
        assert printed.count("\n") == 1


def append(file: Path) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps({"prompt": "late?", "chosen": "late", "rejected": "later"}) + "\n")


def swap(file: Path) -> None:
    write_jsonl(file.with_name("new.jsonl"), pairs(ROWS, prompts=40)).rename(file)


@pytest.mark.parametrize("change", [append, swap])
def test_trap_14_a_file_that_changes_is_not_cached(
    folder: Path, tmp_path: Path, undisturbed: dict[str, bytes], change: Callable[[Path], None]
) -> None:
    """The rows that were read are not those of the key; once nothing writes, the same command works."""
    copy = shutil.copytree(folder, tmp_path / "folder")
    (copy / "recipe.yaml").write_text(RECIPE.format(folder=copy))
    before, cache = (copy / "rows.jsonl").read_bytes(), tmp_path / "disk" / "cache"
    builder = Builder(copy, cache, pause=0.004)
    wait_for_rows(cache, 20)
    change(copy / "rows.jsonl")
    code, printed = builder.end()
    assert (code, printed.count("\n")) == (75, 1), printed
    assert printed.startswith(f"{copy}/rows.jsonl: ")
    assert os.listdir(cache) == []
    (copy / "rows.jsonl").write_bytes(before)
    assert content(Builder(copy, cache).result()) == undisturbed


ALICE, BOB = 23456, 34567


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: run as root")
def test_two_users_of_one_cache(folder: Path, undisturbed: dict[str, bytes]) -> None:
    """Of a cache that both may write to, each user uses only their own files; the error for the second one names the owner."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        copy = shutil.copytree(folder, place / "data")
        copy.chmod(0o755)
        (copy / "recipe.yaml").write_text(RECIPE.format(folder=copy))
        cache = place / "disk" / "cache"
        cache.mkdir(parents=True)
        cache.chmod(0o1777)
        trace_of(cache).touch()
        trace_of(cache).chmod(0o666)
        made = Builder(copy, cache, user=ALICE).result()
        assert (made.stat().st_uid, stat.S_IMODE(made.stat().st_mode)) == (ALICE, 0o700)
        assert content(Builder(copy, cache, user=ALICE).result()) == undisturbed
        for user in (BOB, None):
            code, printed = Builder(copy, cache, user=user).end()
            assert (code, printed.count("\n")) == (2, 1), printed
            assert printed.startswith(f"data.cache_dir: {made} belongs to the user with id {ALICE}; ")
            assert "RMTRAIN_CACHE" in printed
        (cache / f".new-{'0' * 32}-dead").mkdir(mode=0o700)
        for left in (cache / f".new-{'0' * 32}-dead", cache / f".lock-{'0' * 32}"):
            left.touch(mode=0o600)
            os.chown(left, ALICE, ALICE)
        other = Builder(copy, cache, "data.max_length=63", user=BOB).result()
        assert (other.parent, other.stat().st_uid) == (cache, BOB), "other data: leftovers of another user are no obstacle"
        made.chmod(0o777)
        code, printed = Builder(copy, cache, user=ALICE).end()
        assert (code, printed.startswith(f"data.cache_dir: other users may write to {made}; ")) == (2, True), printed
        cache.chmod(0o755)
        os.chown(cache, ALICE, ALICE)
        code, printed = Builder(copy, cache, "data.max_length=62", user=BOB).end()
        assert (code, f"belongs to the user with id {ALICE}" in printed) == (2, True), printed
        assert len(traced(cache)) == 2 * ROWS, "guard: two artifacts were built"
