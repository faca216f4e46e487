import sys
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.rows.hook import load_function, through_hook
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.load import read_hook
from rmtrain.recipe.schema import PairSource

CODE = """
from dataclasses import dataclass

@dataclass
class Side:
    text: "str"

def rows(row):
    kind = row["kind"]
    if kind == "keep":
        return {"chosen": Side(row["a"]).text}
    if kind == "split":
        return [{"n": 1}, {"n": 2}]
    if kind == "one":
        return [{"n": 1}]
    if kind == "drop":
        return None
    if kind == "none":
        return []
    if kind == "print":
        print("hello")
        return row
    if kind == "number":
        return 7
    if kind == "numbers":
        return [{}, 7]
    return inner(row)

def inner(row):
    return row["absent"]["x"]

constant = 3
"""


def source_with(folder: Path, code: str = CODE, name: str = "mine:rows") -> PairSource:
    (folder / "mine.py").write_text(code)
    source = PairSource(path="pairs.jsonl", prepare=name)
    source.take(read_hook(name, folder))
    return source


def through(source: PairSource, **row: Any) -> list[tuple[Any, Any]]:
    return list(through_hook(row, 12, source))


def test_row_becomes_one_several_or_none(tmp_path: Path) -> None:
    source = source_with(tmp_path)
    assert through(source, kind="keep", a="x") == [(12, {"chosen": "x"})]
    assert through(source, kind="split") == [("12.0", {"n": 1}), ("12.1", {"n": 2})]
    assert through(source, kind="one") == [("12.0", {"n": 1})]
    assert through(source, kind="drop") == through(source, kind="none") == []


def test_failure_names_row_file_and_line(tmp_path: Path) -> None:
    """A failure of the function, or a wrong result, names row, file, line and function in one line."""
    source = source_with(tmp_path)
    line = CODE.splitlines().index('    return row["absent"]["x"]') + 1
    expected = {
        "fail": (f"pairs:12: {tmp_path}/mine.py:{line}: rows: ", "KeyError: 'absent'"),
        "number": (f"pairs:12: {tmp_path}/mine.py: rows: ", "got int"),
        "numbers": (f"pairs:12: {tmp_path}/mine.py: rows: ", "list with int"),
    }
    for kind, (place, problem) in expected.items():
        with pytest.raises(DataError) as raised:
            through(source, kind=kind)
        assert str(raised.value).startswith(place)
        assert str(raised.value).endswith(problem)


def test_long_errors_are_cut_to_one_line(tmp_path: Path) -> None:
    source = source_with(tmp_path, "def rows(row):\n    raise ValueError('a\\nb' * 999)\n")
    with pytest.raises(DataError) as raised:
        through(source, kind="x")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize(
    ("code", "name", "problem"),
    [
        ("def rows(row:\n", "mine:rows", r"^prepare: .*/mine.py:1: SyntaxError: "),
        ("x = 1\ny = x / 0\n", "mine:rows", r"^prepare: .*/mine.py:2: ZeroDivisionError: division by zero$"),
        ("import nothing_of_this_name\n", "mine:rows", r"^prepare: .*/mine.py:1: ModuleNotFoundError: "),
        (CODE, "mine:absent", r"^prepare: .*/mine.py .*\babsent$"),
        (CODE, "mine:constant", r"^prepare: .*/mine.py .*\bconstant$"),
    ],
)
def test_file_without_working_function_is_refused(tmp_path: Path, code: str, name: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as raised:
        through(source_with(tmp_path, code, name), kind="keep")
    assert "\n" not in str(raised.value)


def test_bytes_read_with_recipe_run(tmp_path: Path) -> None:
    """The bytes read with the recipe are run, even if the file changes; no search path changes and no file is written."""
    before = list(sys.path)
    source = source_with(tmp_path, "def rows(row):\n    return {'version': 1}\n")
    (tmp_path / "mine.py").write_text("def rows(row):\n    return {'version': 2}\n")
    assert through(source) == [(12, {"version": 1})]
    assert through(source_with(tmp_path, "def rows(row):\n    return {'version': 2}\n")) == [(12, {"version": 2})]
    assert sys.path == before
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"], "no compiled file next to the recipe"
    assert source.hook is not None
    parts = source.hook.code, source.hook.function, str(source.hook.file)
    assert load_function(*parts) is load_function(*parts), "loaded once"


def test_prints_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    through(source_with(tmp_path), kind="print")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_prepare_needs_recipe_file() -> None:
    with pytest.raises(RecipeError, match=r"^pairs: prepare: .*load_recipe"):
        through(PairSource(path="pairs.jsonl", prepare="mine:rows"))
