import errno
import os
import stat
from pathlib import Path

import pytest

from rmtrain.data.cache import new_directory
from rmtrain.errors import RecipeError, TryAgain


def test_a_directory_appears_whole_and_private(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "key"
    with new_directory(target) as temporary:
        (temporary / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["key"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def fill(target: Path, error: BaseException) -> None:
    with new_directory(target) as temporary:
        (temporary / "file").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fill(tmp_path / "key", error)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_try_again(tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match=r"^data.cache_dir: the disk of .* is full; make room, or name another directory$"):
        fill(tmp_path / "key", OSError(errno.ENOSPC, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with (
        pytest.raises(RecipeError, match=r"^data.cache_dir: cannot write to "),
        new_directory(tmp_path / "file" / "cache" / "key"),
    ):
        pass


def test_of_two_that_build_the_same_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "key"
    with new_directory(target) as late:
        (late / "file").write_text("second")
        with new_directory(target) as early:
            (early / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["key"]
