"""Shared machines: what other people, schedulers and clean-ups do to a run is noticed, and ends in one line."""

import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain.engine.rank import check_variables
from rmtrain.engine.run_check import LOCK, check_output_dir
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.errors import RecipeError, TryAgain
from rmtrain.files import get_or_build, temporary_folder, try_lock, unwritable
from tests.data.test_artifact import COMPARISONS, write
from tests.forks import fork_server, rmtrain
from tests.runs import ROOT, environment_of_process, tiny_recipe, write_recipe

NEVER = ["/proc/none/x", "/sys/x", "/proc/self/fd/x", "/dev/null/x"]


@pytest.mark.parametrize("place", NEVER)
def test_places_that_take_no_file_are_named(place: str, tmp_path: Path) -> None:
    """As directory of a run and as cache, for root as well, who has all permissions there."""
    recipe = tiny_recipe(tmp_path, run={"name": "x", "output_dir": place})
    with pytest.raises(RecipeError, match=r"^run\.output_dir: "):
        check_output_dir(recipe)
    with pytest.raises(RecipeError, match=r"^data\.cache_dir: "):
        get_or_build(Path(place) / "key", lambda _: None)
    assert unwritable(tmp_path / "new/folder") is None, "guard: others are fine"
    assert "new" not in os.listdir(tmp_path)


VARIABLES: dict[str, dict[str, str]] = {
    "WORLD_SIZE": {"WORLD_SIZE": "4"},
    "LOCAL_RANK": {"LOCAL_RANK": "0"},
    "RANK": {"RANK": "1", "WORLD_SIZE": "1"},
    "RANK, WORLD_SIZE": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
    "RANK, LOCAL_RANK, WORLD_SIZE": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    "LOCAL_RANK, WORLD_SIZE": {"RANK": "0", "LOCAL_RANK": "-1", "WORLD_SIZE": "x"},
}


@pytest.mark.parametrize("names", VARIABLES)
def test_stray_variables_of_launchers_are_named(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for one in ({}, {"WORLD_SIZE": "1"}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}):
        with monkeypatch.context() as context:
            for name, value in one.items():
                context.setenv(name, value)
            check_variables()
    for name, value in VARIABLES[names].items():
        monkeypatch.setenv(name, value)
    shown = "RANK, WORLD_SIZE" if names == "RANK" else names
    with pytest.raises(RecipeError, match=rf"^{shown}: .*unset {shown}, ") as refused:
        check_variables()
    assert len(refused.value.problems) == 1


def test_stray_variables_end_a_command_with_2() -> None:
    for variables in ({"WORLD_SIZE": "abc"}, {"LOCAL_RANK": "1"}):
        ended = rmtrain("schema", **variables)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"error: {next(iter(variables))}: ")
        assert len(ended.stderr.splitlines()) == 1


def test_removed_lock_is_taken_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Removed, it is locked again with a warning; replaced, another process may work there, and this one stops."""
    recipe = tiny_recipe(tmp_path)
    run = RunDirectory.open(recipe, {})
    run.sync()
    assert not caplog.records, "guard: an untouched lock says nothing"
    (run.path / LOCK).unlink()
    run.sync()
    assert str(run.path / LOCK) in caplog.text
    assert try_lock(run.path / LOCK) is None, "it is locked again"
    (run.path / LOCK).unlink()
    other = try_lock(run.path / LOCK)
    for call in (run.sync, run.finish):
        with pytest.raises(TryAgain, match=rf"{LOCK}: "):
            call()
    assert other is not None
    other.release()
    with pytest.raises(TryAgain):
        run.sync()
    shutil.rmtree(run.path)
    with pytest.raises(TryAgain, match=str(run.path)):
        run.sync()


def cut(file: Path) -> None:
    os.truncate(file, 100)


def overwrite(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-100] + b"\0" * 100)


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


@pytest.mark.parametrize("change", [cut, overwrite, grow])
def test_changed_cache_file_is_named(change: Callable[[Path], None], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS])
    assert data[1] == COMPARISONS[1], "guard: it can be read"
    change(data._file)
    with pytest.raises(TryAgain, match=rf"^{data._file}: "):
        data[0]


def test_removed_cache_file_is_still_read(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.arrow", [COMPARISONS])
    copy = data._file.read_bytes()
    data._file.unlink()
    assert data[0] == COMPARISONS[0]
    data._file.write_bytes(copy[:50])
    assert data[2] == COMPARISONS[2], "another file of that name is not the mapped one"


BUS = """
import mmap, os, sys
from rmtrain.engine.rank import report_lost_pages
report_lost_pages()
with open(sys.argv[1], "r+b") as file:
    pages = mmap.mmap(file.fileno(), 0)
    os.truncate(sys.argv[1], 0)
    print(pages[5000])
"""


def test_lost_pages_end_in_a_line(tmp_path: Path) -> None:
    """The cut may come between the check and the access."""
    for size in (2, 3, 9):
        (tmp_path / "file").write_bytes(bytes(size * mmap.PAGESIZE))
        command = [sys.executable, "-c", BUS, str(tmp_path / "file")]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment_of_process(), timeout=60)
        assert (ended.returncode, ended.stdout) == (75, ""), ended.stderr
        assert ended.stderr.startswith("error: ")
        assert len(ended.stderr.splitlines()) == 1
    bare = [sys.executable, "-c", BUS.replace("report_lost_pages()\n", "None\n", 1), str(tmp_path / "file")]
    (tmp_path / "file").write_bytes(bytes(2 * mmap.PAGESIZE))
    assert subprocess.run(bare, cwd=ROOT, env=environment_of_process(), timeout=60).returncode == -signal.SIGBUS, "guard"


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), ValueError("No space left"), OSError(122, "quota")])
def test_full_temporary_folder_is_named(problem: Exception) -> None:
    with pytest.raises(TryAgain, match=r"^TMPDIR: /"), temporary_folder():
        raise problem
    with temporary_folder() as folder:
        assert folder.is_dir(), "guard"


def test_no_home_is_named(tmp_path: Path) -> None:
    """`~` of a user that does not exist, in each path of a recipe."""
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path))
    for key in ("data.cache_dir", "run.output_dir"):
        ended = rmtrain("train", recipe, f"{key}=~nobody-of-this-name/x")
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("error: ")
        assert key in ended.stderr
        assert "~nobody-of-this-name" in ended.stderr
        assert "Traceback" not in ended.stderr


FULL_AND_CLOSED = [
    (["schema"], "/dev/full", 75, "error: "),
    (["--help"], "/dev/full", 75, "error: "),
    (["--version"], "/dev/full", 75, "error: "),
    (["schema"], None, 141, ""),
    (["--help"], None, 141, ""),
    (["--version"], None, 141, ""),
]


@pytest.mark.parametrize(("arguments", "target", "code", "says"), FULL_AND_CLOSED)
def test_full_or_closed_standard_output(arguments: list[str], target: str | None, code: int, says: str) -> None:
    """A full device is named; a reader that went away, such as `head`, is no error to talk about."""
    if target is None:
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    command = [sys.executable, "-m", "rmtrain", *arguments]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment_of_process())
    os.close(writer)
    assert ended.returncode == code, ended.stderr
    assert [line[:7] for line in ended.stderr.splitlines()] == ([says] if says else [])


def test_finished_run_says_so_on_full_stdout(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path, training={"batch_size": 8, "precision": "float32", "max_steps": 1}))
    program = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from rmtrain.cli import main; main()"
    (tmp_path / "full.py").write_text(program)
    ended = fork_server().run("train", recipe, program=str(tmp_path / "full.py"))
    assert ended.code == 75, ended.stderr
    assert "finished" in ended.stderr.splitlines()[-1]
    assert str(tmp_path / "run") in ended.stderr.splitlines()[-1]
    assert rmtrain("train", recipe).returncode == 4, "guard: it is"
