"""Directories of a cache: built once by one process, whole or not at all, without leftovers."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import files
from rmtrain.errors import LONGEST_PROBLEM, DataError, RecipeError, TryAgain, missing
from rmtrain.files import expanded, get_or_build, new_directory, read_json, try_lock

ROOT = Path(__file__).resolve().parents[1]
BUILDER = """
import pathlib, sys, time
from rmtrain.files import get_or_build

def build(folder):
    (folder / "file").write_text("half")
    print("building", flush=True)
    time.sleep(600)

get_or_build(pathlib.Path(sys.argv[1]), build)
"""


def test_a_directory_appears_whole_and_private(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "key"

    def build(temporary: Path) -> None:
        (temporary / "file").write_text("x")
        assert not target.exists()

    get_or_build(target, build)
    assert (target / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["key"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def fill(target: Path, error: BaseException) -> None:
    def build(temporary: Path) -> None:
        (temporary / "file").write_text("half")
        raise error

    get_or_build(target, build)


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fill(tmp_path / "key", error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_try_again(tmp_path: Path, number: int) -> None:
    with pytest.raises(TryAgain, match=rf"^data.cache_dir: the disk of {tmp_path} "):
        fill(tmp_path / "key", OSError(number, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_an_unwritable_cache_is_a_recipe_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(RecipeError, match=r"^data.cache_dir: .*/file/cache: Not a directory$"):
        get_or_build(tmp_path / "file" / "cache" / "key", write("never"))


def write(text: str, seconds: float = 0.0) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "file").write_text(text[:1])
        time.sleep(seconds)
        (folder / "file").write_text(text)

    return build


def test_the_first_of_two_results_stays(tmp_path: Path) -> None:
    target = tmp_path / "key"
    with new_directory(target) as late:
        (late / "file").write_text("second")
        with new_directory(target) as early:
            (early / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["key"]


def test_one_builds_while_others_wait(tmp_path: Path) -> None:
    target, built = tmp_path / "key", list[str]()

    def build(folder: Path) -> None:
        built.append(threading.current_thread().name)
        write("whole", 0.5)(folder)

    threads = [threading.Thread(target=get_or_build, args=(target, build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["key"], "no lock and no part is left"


def test_a_failed_build_can_be_repeated(tmp_path: Path) -> None:
    target = tmp_path / "key"

    def fail(folder: Path) -> None:
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        get_or_build(target, fail)
    assert os.listdir(tmp_path) == []
    assert get_or_build(target, write("second")) == target
    assert (target / "file").read_text() == "second"


def test_an_existing_directory_is_not_written(tmp_path: Path) -> None:
    get_or_build(tmp_path / "key", write("first"))
    before = os.stat(tmp_path).st_mtime_ns
    get_or_build(tmp_path / "key", write("second"))
    assert (tmp_path / "key/file").read_text() == "first"
    assert os.stat(tmp_path).st_mtime_ns == before


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """The kernel releases it, and the next process removes the leftovers."""
    target = tmp_path / "key"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILDER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        assert try_lock(tmp_path / ".lock-key") is None, "guard: the lock is held"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob(".new-key-*"))) == 1, "guard: there are leftovers"
    get_or_build(target, write("own"))
    assert (target / "file").read_text() == "own"
    assert os.listdir(tmp_path) == ["key"]


def test_leftovers_of_dead_builders_are_removed(tmp_path: Path) -> None:
    """Those whose lock is held stay."""
    for name in (".new-key-aaaa", ".new-tokenizer-other-bbbb", ".new-alive-cccc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.arrow").write_text("half")
    living = try_lock(tmp_path / ".lock-alive")
    assert living is not None
    get_or_build(tmp_path / "key", write("x"))
    assert sorted(os.listdir(tmp_path)) == [".lock-alive", ".new-alive-cccc", "key"]
    living.release()
    assert files.PART == ".new-", "guard: the names above are those in use"


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks another process may be alive: it keeps its directory, and both build."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".new-key-aaaa").mkdir()
    get_or_build(tmp_path / "key", write("x"))
    assert (tmp_path / "key/file").read_text() == "x"
    assert (tmp_path / ".new-key-aaaa").exists()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users: run as root")
OTHER = 12345


@needs_root
@pytest.mark.parametrize("part", [".", "file"])
def test_a_strangers_directory_is_refused(tmp_path: Path, part: str) -> None:
    """Its content would decide what this user trains on; a file in it counts where others may enter the directory."""
    target = get_or_build(tmp_path / "key", write("x"))
    target.chmod(0o755)
    assert get_or_build(target, write("y")) == target, "guard: others may read it"
    os.chown(target / part, OTHER, OTHER)
    with pytest.raises(RecipeError, match=rf"^data.cache_dir: .*{target / part}\b") as error:
        get_or_build(target, write("y"))
    assert "RMTRAIN_CACHE" in str(error.value)
    assert part != "." or f"id {OTHER}" in str(error.value)


@pytest.mark.parametrize(("part", "mode"), [(".", 0o770), (".", 0o707), ("file", 0o664), ("file", 0o646)])
def test_a_directory_open_to_others_is_refused(tmp_path: Path, part: str, mode: int) -> None:
    """Except for files behind a closed directory, which the umask of some systems opens to the group."""
    target = get_or_build(tmp_path / "key", write("x"))
    (target / part).chmod(mode)
    if part == "file":
        assert get_or_build(target, write("y")) == target
        target.chmod(0o755)
    with pytest.raises(RecipeError, match=rf"^data.cache_dir: .*{target / part}\b"):
        get_or_build(target, write("y"))


def test_a_mount_that_opens_all_files_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before hours of work whose result could not be used."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda **names: str(open_directory(tmp_path / "part")))

    def fail(folder: Path) -> None:
        raise AssertionError("nothing is built")

    with pytest.raises(RecipeError, match=r"^data\.cache_dir: "):
        get_or_build(tmp_path / "key", fail)
    assert os.listdir(tmp_path) == []


def open_directory(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.mark.parametrize("path", ["~nosuchuser", "~nosuchuser/a", "~no such user/a"])
def test_unknown_user_has_no_folder(path: str) -> None:
    """Nothing is read from there, and a folder of that name is not made."""
    assert expanded(path) == Path(path)
    assert missing(path) == f"{path} does not exist"
    with pytest.raises(RecipeError, match=rf"^data\.cache_dir: {path}: .*\./~no"):
        expanded(path, "data.cache_dir")
    assert expanded("~/a", "data.cache_dir") == Path.home() / "a", "guard"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not JSON"),
        (b"[1]", "list"),
        (b"null", "NoneType"),
        (b"{} x", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": "\xff"}', "0xff"),
        (b'{"a": %s}' % (b"9" * 5000), "4300"),
        ("{}".encode("utf-16"), "not JSON"),
        (b'{"a": "%s"}' % (b"x" * 2000), "1,000 bytes"),
    ],
)
def test_other_content_than_json_is_refused(tmp_path: Path, content: bytes, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_bytes(content)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1000 if b"x" * 9 in content else 10**6)
    with pytest.raises(ValueError, match=found):
        read_json(tmp_path / "x.json", dict)
    (tmp_path / "x.json").write_bytes('{"a": "é"}'.encode())
    assert read_json(tmp_path / "x.json", dict) == {"a": "é"}


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    kinds = {"pipe": "a named pipe", "null": "a device", ".": "a directory"}
    for name, kind in kinds.items():
        assert missing(tmp_path / name).startswith(f"{tmp_path / name} is {kind}, ")
    assert all("does not exist" in missing(tmp_path / name) for name in ("loop", "none", "x" * 300, "a\0b"))


def test_long_problems_are_cut() -> None:
    """A value of a stranger can be of any length; what comes first is the place."""
    (problem,) = DataError(f"rows.jsonl:3: {'x' * 10**6}").problems
    assert problem.startswith("rows.jsonl:3: xxx")
    assert len(problem) == LONGEST_PROBLEM + 1
