"""The file of `prepare` travels with the recipe, comes from beside it and from nowhere else, and never changes under a run."""

import sys
from pathlib import Path

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.load import dump_recipe, hook_files, load_recipe, parse_recipe
from rmtrain.recipe.schema import PairSource
from rmtrain.recipe.sources import MAX_BYTES, read_hook
from tests.recipe.test_selection import RECIPE, load

CODE = "def rows(row):\n    return row\n"


def test_the_file_is_read_with_the_recipe_and_is_not_run(tmp_path: Path) -> None:
    recipe = load(tmp_path, "prepare: clean:rows", clean="raise SystemExit('this must not run')")
    (source,) = recipe.data.train
    assert source.hook is not None
    assert (source.hook.name, source.hook.function, source.hook.file) == ("clean:rows", "rows", tmp_path / "clean.py")
    assert hook_files(recipe) == {"clean.py": b"raise SystemExit('this must not run')"}
    (tmp_path / "clean.py").write_text(CODE)
    assert hook_files(recipe)["clean.py"] != CODE.encode(), "guard: what was read stays"


def test_recipes_are_equal_wherever_the_same_file_lies(tmp_path: Path) -> None:
    recipe = load(tmp_path, "prepare: clean:rows", clean=CODE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(dump_recipe(recipe))
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+  data.train.0.prepare: expected clean.py beside the recipe"):
        load_recipe(tmp_path / "run/recipe.yaml")
    for name, code in hook_files(recipe).items():
        (tmp_path / "run" / name).write_bytes(code)
    assert load_recipe(tmp_path / "run/recipe.yaml") == recipe
    (tmp_path / "run/clean.py").write_text(CODE + "# other")
    assert load_recipe(tmp_path / "run/recipe.yaml") != recipe


def test_only_the_directory_of_the_recipe_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/clean.py").write_text(CODE)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here"), *sys.path])
    with pytest.raises(RecipeError, match=r"prepare: expected clean.py beside the recipe"):
        load(tmp_path / "there", "prepare: clean:rows")
    load(tmp_path / "there", "dedup: true")
    with pytest.raises(RecipeError, match=r"^override data.train.0.prepare=clean:rows  data.train.0.prepare: expected clean.py"):
        load_recipe(tmp_path / "there/recipe.yaml", ["data.train.0.prepare=clean:rows"])
    assert load(tmp_path / "here", "prepare: clean:rows").data.train[0].hook is not None, "guard"


def test_a_recipe_that_is_no_file_has_no_place_for_it() -> None:
    with pytest.raises(
        RecipeError, match=r"^text  data.train.0.prepare: clean.py must lie beside the recipe, and this recipe is no file"
    ):
        parse_recipe(RECIPE.format(keys="prepare: clean:rows"), "text")
    assert PairSource(path="pairs.jsonl", prepare="clean:rows").hook is None


def test_a_file_that_is_no_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.py").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"big.py: expected at most 1024 KiB of code"):
        read_hook("big:rows", tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match=r"folder.py: Is a directory"):
        read_hook("folder:rows", tmp_path)
