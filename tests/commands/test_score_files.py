"""What `rmtrain score` reads and writes: nothing is lost, whatever happens to the input and the output."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmtrain.commands.score_files import CHUNK, ScoreFiles, check_paths
from rmtrain.errors import DataError, RecipeError, RmtrainError, TryAgain
from tests.commands.test_score import rows, run
from tests.exports import tiny_export
from tests.helpers import write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("score-files") / "model"))


def replace(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.write_text("another\n")


TAMPERING: dict[str, Callable[[Path], Any]] = {
    "removed": Path.unlink,
    "moved": lambda path: path.rename(path.with_suffix(".moved")),
    "replaced": replace,
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, 100),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"{}\n"),
}


@pytest.mark.parametrize("at", [1, 2], ids=["before a chunk", "at the end"])
@pytest.mark.parametrize("how", TAMPERING)
def test_output_that_changes_meanwhile_is_75(
    how: str, at: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed, replaced or emptied by another process while it is written; the same command then starts again, or refuses it."""
    source, out = write_jsonl(tmp_path / "in.jsonl", rows(CHUNK + 9)), tmp_path / "out.jsonl"
    original, calls = ScoreFiles.write, []

    def write(files: ScoreFiles, chunks: Any) -> int:
        written = original(files, chunks)
        calls.append(written)
        if len(calls) == at:
            TAMPERING[how](out)
        return written

    monkeypatch.setattr(ScoreFiles, "write", write)
    with pytest.raises(TryAgain, match=rf"^{out}: ") as refused:
        run(model, source, out)
    assert len(refused.value.problems) == 1
    assert not out.exists() or b"\0" not in out.read_bytes()
    assert len(calls) == at, "guard: it was noticed at once"
    monkeypatch.undo()
    if how in ("removed", "emptied", "moved"):
        assert run(model, source, out).document["resumed_after"] == 0
        run(model, source, tmp_path / "whole.jsonl")
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_input_of_equal_ends_is_refused(model: str, tmp_path: Path) -> None:
    """The hash covers every line that was scored, also those that the output does not have any more."""
    made, out = rows(2 * CHUNK + 20), tmp_path / "out.jsonl"
    run(model, write_jsonl(tmp_path / "in.jsonl", made), out)
    whole, settings = out.read_bytes(), (tmp_path / "out.settings.json").read_bytes()
    lines = [json.dumps(row) for row in made]
    others = {
        "first line": ["{}", *lines[1:]],
        "middle": [*lines[:CHUNK], lines[0], *lines[CHUNK + 1 :]],
        "a space": [*lines[:9], lines[9].replace(": ", ":  ", 1), *lines[10:]],
        "swapped": [lines[1], lines[0], *lines[2:]],
        "an empty line": [*lines[:5], "", *lines[5:]],
        "only the first": lines[:1],
        "nothing": [],
    }
    for name, content in others.items():
        other = tmp_path / "other.jsonl"
        other.write_text("".join(f"{line}\n" for line in content))
        with pytest.raises(DataError, match=rf"^{out}:.*other\.jsonl"):
            run(model, other, out, skip_bad=True)
        assert out.read_bytes() == whole, name
        assert (tmp_path / "out.settings.json").read_bytes() == settings, name
    grown = write_jsonl(tmp_path / "grown.jsonl", [*made, *rows(3, seed=5)])
    assert run(model, grown, out).document["resumed_after"] == len(made), "an input that grew is the same up to there"
    assert out.read_bytes().startswith(whole)
    assert len(others) >= 3, "guard"


def test_output_is_never_the_input(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By no name: a hard link, a symbolic link, a descriptor, standard input, or the settings that are written next to it."""
    source = write_jsonl(tmp_path / "in.jsonl", rows(3))
    before = source.read_bytes()
    os.link(source, tmp_path / "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to(source)
    os.link(source, tmp_path / "own.settings.json")
    with source.open("rb") as held:
        for given, target in (
            *((source, tmp_path / name) for name in ("hard.jsonl", "soft.jsonl", "in.jsonl", "own.jsonl")),
            (tmp_path / "hard.jsonl", source),
            (source, f"/dev/fd/{held.fileno()}"),
            (f"/dev/fd/{held.fileno()}", source),
        ):
            with pytest.raises(RecipeError, match="input"):
                run(model, given, target, fresh=True)
            assert source.read_bytes() == before
        saved = os.dup(0)
        os.dup2(held.fileno(), 0)
        try:
            with pytest.raises(RecipeError, match=r"in\.jsonl: .*input"):
                run(model, "-", source, fresh=True)
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert source.read_bytes() == before
    run(model, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").stat().st_size, "guard: another name is fine"


def test_settings_of_another_file_are_kept(model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(3))
    run(model, source, tmp_path / "a.jsonl")
    (tmp_path / "mine.settings.json").write_text('{"precious": 1}')
    (tmp_path / "list.settings.json").write_text("[]")
    for target, error in (("a.txt", RecipeError), ("mine.jsonl", RecipeError), ("list.jsonl", RmtrainError)):
        settings = (tmp_path / target).with_suffix(".settings.json")
        before = settings.read_bytes()
        with pytest.raises(error, match=rf"^{settings}: "):
            run(model, source, tmp_path / target)
        assert settings.read_bytes() == before
        run(model, source, tmp_path / target, fresh=True)
        assert settings.read_bytes() != before, "guard: --fresh replaces it"


def test_damaged_settings_of_input_are_refused(model: str, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", rows(3)), tmp_path / "out.jsonl"
    run(model, source, out)
    file = tmp_path / "out.settings.json"
    settings, whole = json.loads(file.read_text()), out.read_bytes()
    for damaged in ([], {}, {"lines": "x", "sha256": ""}, {"lines": None, "sha256": "a"}, 7):
        file.write_text(json.dumps(settings | {"input": damaged}))
        with pytest.raises(RecipeError, match=rf"^{file}: input: "):
            run(model, source, out)
        assert out.read_bytes() == whole
    file.write_text(json.dumps(settings))
    assert run(model, source, out).document["resumed_after"] == 3, "guard: undamaged it is resumed"


def test_fresh_keeps_output_until_rewards_come(model: str, tmp_path: Path) -> None:
    """An input that cannot be scored costs no earlier output."""
    out = tmp_path / "out.jsonl"
    run(model, write_jsonl(tmp_path / "in.jsonl", rows(5)), out)
    whole = out.read_bytes()
    for name, content in (("bad", "{oops\n"), ("empty", ""), ("blank", "\n\n"), ("other", '{"a": 1e999}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError):
            run(model, tmp_path / name, out, fresh=True)
        assert out.read_bytes() == whole
    assert run(model, tmp_path / "in.jsonl", out, fresh=True).document["resumed_after"] == 0
    assert out.read_bytes() == whole, "guard: it was written again"


@pytest.mark.parametrize(
    "name", ["out.jsonl.gz", "out.GZ", "out.jsonl.zst", "out.xz", "out.parquet", "folder", "file/out", "proc"]
)
def test_unusable_outputs_are_refused(name: str, model: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows(1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    target = "/proc/none/out.jsonl" if name == "proc" else str(tmp_path / name)
    with pytest.raises(RecipeError, match=rf"^{target}: ") as refused:
        run(model, source, target)
    assert len(refused.value.problems) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_legal_json_ends_nothing(model: str, tmp_path: Path) -> None:
    """Numbers that no float64 holds and deep values stay as they are, also when the output is resumed."""
    deep = "[" * 400 + "]" * 400
    values = ["1e999", "-1e999", "1" + "0" * 400, "0." + "3" * 60, deep, '"\\u0000\\u2028"', '{"a":{}}', "true"]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "q", "response": "a", "meta": {value}}}\n' for value in values))
    run(model, source, out)
    whole = out.read_text()
    for value, line in zip(values, whole.split("\n"), strict=False):
        assert f'"meta": {value}, "reward": ' in line
    assert run(model, source, out).document["resumed_after"] == len(values)
    assert out.read_text() == whole
    assert whole.count("\n") == len(values), "guard: every line was scored"
    assert sys.getrecursionlimit() > 400, "guard: deep, and legal"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing"])
def test_inputs_that_are_not_files_are_named(kind: str, tmp_path: Path) -> None:
    """They are refused before they are opened: to open a pipe waits for its writer."""
    source = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "in.jsonl")
    if kind == "pipe":
        os.mkfifo(source)
    with pytest.raises(RecipeError) as refused:
        check_paths(str(source), str(tmp_path / "out.jsonl"))
    assert str(source) in str(refused.value)
    assert not (tmp_path / "out.jsonl").exists()
    source = tmp_path / "file.jsonl"
    source.write_text("{}")
    check_paths(str(source), str(tmp_path / "out.jsonl"))
