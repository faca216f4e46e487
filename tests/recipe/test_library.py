"""The recipes in the package: what is listed, what comes with a recipe, and how it reads in another folder."""

import json
import re
from pathlib import Path

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.library import RECIPES, SCHEMA_NAME, files_of, recipes, text_of
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import json_schema
from tests.runs import ROOT


def test_every_recipe_is_listed_once() -> None:
    """By the name of its file, in order; the folder `recipes` of a checkout is the package's."""
    files = list(RECIPES.rglob("*.yaml"))
    assert sorted(recipes().values()) == sorted(files)
    assert list(recipes()) == sorted(file.stem for file in files)
    assert recipes()["quickstart"].samefile(ROOT / "recipes/quickstart.yaml")
    assert len(files) > 20, "guard"


@pytest.mark.parametrize("name", recipes())
def test_recipes_say_what_they_are(name: str) -> None:
    """The second line describes it, and another one is the command that runs it from the folder above `recipes`."""
    lines = recipes()[name].read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# [A-Z].{20,140}", lines[1])
    command = f"rmtrain train {recipes()[name].relative_to(RECIPES.parent)}"
    assert any(line.startswith("# rmtrain train ") and command in line for line in lines)


def test_quickstart_comes_with_its_data(tmp_path: Path) -> None:
    """The paths are those in the recipe, so that it trains where they are copied to."""
    files = files_of("quickstart")
    data = load_recipe(recipes()["quickstart"]).data
    assert list(files) == [source.path for source in (*data.train, *data.eval)]
    assert all(file.stat().st_size > 10_000 for file in files.values())
    assert files_of("qwen3-0.6b-full-1x24gb") == {}, "datasets of the Hub are no files"


@pytest.mark.parametrize("name", recipes())
def test_schema_is_found_in_any_folder(name: str, tmp_path: Path) -> None:
    """In place the first line names the schema of the package; a copy names the one that is written next to it."""
    file, copy = recipes()[name], tmp_path / "deep/er/mine.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text(text_of(name), encoding="utf-8")
    (copy.parent / SCHEMA_NAME).write_text(json_schema(), encoding="utf-8")
    for place in (file, copy):
        (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)\n", place.read_text(encoding="utf-8"))
        schema = json.loads((place.parent / named).read_text(encoding="utf-8"))
        assert schema["title"] == "rmtrain recipe"
    assert load_recipe(copy) == load_recipe(file)


@pytest.mark.parametrize(
    ("name", "hint"), [("quickstrat", "did you mean quickstart?"), ("\x1b[31m", "--list"), ("../x", "--list")]
)
def test_unknown_recipes_are_refused(name: str, hint: str) -> None:
    for use in (text_of, files_of):
        with pytest.raises(RecipeError) as refused:
            use(name)
        (problem,) = refused.value.problems
        assert problem.startswith("--recipe ")
        assert hint in problem
        assert problem.isprintable()
