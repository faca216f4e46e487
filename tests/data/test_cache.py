import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from rmtrain.data import cache
from rmtrain.data import cache as claim
from rmtrain.data.cache import ABANDONED_SECONDS, Claim, get_or_build, new_directory
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_try_again(tmp_path: Path, number: int) -> None:
    with pytest.raises(TryAgain, match=r"^data.cache_dir: the disk of .* is full; make room, or name another directory$"):
        fill(tmp_path / "key", OSError(number, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(RecipeError, match=r"^data.cache_dir: cannot write to .*: Not a directory$"):
        get_or_build(tmp_path / "file" / "cache" / "key", write("never"))


def write(text: str, seconds: float = 0.0):
    def make(folder: Path, held: Claim) -> None:
        (folder / "file").write_text(text[:1])
        held.said = f"{text} says"
        time.sleep(seconds)
        (folder / "file").write_text(text)

    return make


def test_of_two_that_build_the_same_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "key"
    with new_directory(target) as late:
        (late / "file").write_text("second")
        with new_directory(target) as early:
            (early / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["key"]


def test_one_makes_it_and_others_wait_and_hear_of_it(tmp_path: Path) -> None:
    target, heard = tmp_path / "key", list[str]()
    makers = [
        threading.Thread(target=get_or_build, args=(target, write(name, 1.5), heard.append)) for name in ("one", "two", "three")
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    made = (target / "file").read_text()
    assert made in ("one", "two", "three")
    assert set(heard) <= {"", f"{made} says"}
    assert f"{made} says" in heard
    assert os.listdir(tmp_path) == ["key"], "no lock and no part is left"


def test_who_waits_makes_it_when_the_maker_has_failed(tmp_path: Path) -> None:
    target = tmp_path / "key"

    def fail(folder: Path, held: Claim) -> None:
        time.sleep(0.5)
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        get_or_build(target, fail)
    assert os.listdir(tmp_path) == []
    assert get_or_build(target, write("second")) == target
    assert (target / "file").read_text() == "second"


def test_what_is_there_is_taken_without_a_write(tmp_path: Path) -> None:
    get_or_build(tmp_path / "key", write("first"))
    before = os.stat(tmp_path).st_mtime_ns
    get_or_build(tmp_path / "key", write("second"))
    assert (tmp_path / "key/file").read_text() == "first"
    assert os.stat(tmp_path).st_mtime_ns == before


def test_a_maker_without_a_sign_of_life_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SILENCE_SECONDS", 0.5)
    held = claim.claim(tmp_path / ".lock-key")
    assert held is not None, "guard: held as by another process, and never heard of"
    (tmp_path / ".new-key-abc").mkdir()
    get_or_build(tmp_path / "key", write("own"))
    assert (tmp_path / "key/file").read_text() == "own"
    assert (tmp_path / ".new-key-abc").exists(), "what may still be in use is left alone"
    held.release()


def test_leftovers_of_dead_makers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for name in (".new-key-aaaa", ".new-tokenizer-other-bbbb", ".new-alive-cccc", ".new-oldstyle", ".new-young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.arrow").write_text("half")
    old = time.time() - ABANDONED_SECONDS - 10
    for path in (tmp_path / ".new-oldstyle", tmp_path / ".new-oldstyle/train.arrow", tmp_path / ".new-alive-cccc"):
        os.utime(path, (old, old))
    (tmp_path / "alive").mkdir()
    living = claim.claim(tmp_path / ".lock-alive")
    assert living is not None
    get_or_build(tmp_path / "key", write("x"))
    assert sorted(os.listdir(tmp_path)) == [".lock-alive", ".new-alive-cccc", ".new-young", "alive", "key"]
    living.release()
    assert cache.PART == ".new-", "guard: the names above are those that are used"
