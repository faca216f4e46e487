"""The recipes that ship inside the package, for `rmtrain init --list` and `--recipe`."""

import re
from pathlib import Path

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import near_miss
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.yaml import one_line, shorten

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "recipes"
SCHEMA_NAME = "recipe.schema.json"
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_NAME}"
"""The first line of a recipe outside of the package: editors check it with the schema in the same folder, also offline.

A path into the installed package would be wrong on the next machine, and the schema belongs to one version, so no address has it.
"""


def recipes() -> dict[str, Path]:
    """Return the file of each recipe in the package by its name, such as `quickstart`, sorted by name."""
    return {file.stem: file for file in sorted(RECIPES.rglob("*.yaml"), key=lambda file: file.stem)}


def text_of(name: str) -> str:
    """Return a recipe as text to be written elsewhere, next to a file `recipe.schema.json`; see `SCHEMA_LINE`.

    Raises:
        RecipeError: the package has no such recipe.
    """
    return re.sub(r"^# yaml-language-server: .*", SCHEMA_LINE, _file(name).read_text(encoding="utf-8"), count=1)


def files_of(name: str) -> dict[str, Path]:
    """Return the files in the package that a recipe reads, by their paths in the recipe, which start at the current directory.

    Raises:
        RecipeError: the package has no such recipe.
    """
    data = load_recipe(_file(name)).data
    files = {source.path: RECIPES.parent / source.path for source in (*data.train, *data.eval)}
    return {path: file for path, file in files.items() if file.is_file()}


def _file(name: str) -> Path:
    """The file of a recipe."""
    known = recipes()
    if name not in known:
        near = near_miss(name, known)
        hint = f"did you mean {near}?" if near else "rmtrain init --list shows all"
        raise RecipeError(one_line(f"--recipe {shorten(name)}: no such recipe; {hint}"))
    return known[name]
