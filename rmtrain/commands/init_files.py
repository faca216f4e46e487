"""What `rmtrain init` needs no data for: the recipes of the package, and new files. Nothing heavy is imported here."""

import logging
import os
from pathlib import Path

from rmtrain.errors import RecipeError
from rmtrain.files import expanded
from rmtrain.recipe.library import SCHEMA_NAME, files_of, recipes, text_of
from rmtrain.recipe.schema import json_schema

logger = logging.getLogger("rmtrain")


def listing() -> str:
    """Return a line for each recipe of the package: its name and its first comment."""
    width = max(map(len, recipes()))
    return "".join(f"{name:<{width}}  {first_comment(file)}\n" for name, file in recipes().items())


def first_comment(file: Path) -> str:
    """Return the first comment of a recipe that is not for an editor."""
    comments = (line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next((line for line in comments if not line.startswith("yaml-language-server")), "")


def shipped(name: str, output: Path | None) -> str:
    """Return a recipe of the package; with `output`, also write it there and the data that it names below the current directory.

    Raises RecipeError where there is no such recipe, or the output exists. Data files that exist are not changed.
    """
    text = text_of(name)
    if output is None:
        return text
    write_new(output, text)
    for path, file in files_of(name).items():
        if os.path.lexists(path):
            logger.info("%s exists and is not changed", path)
            continue
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(file.read_bytes())
        logger.info("wrote %s, which the recipe reads", path)
    return text


def refuse_existing(output: Path) -> None:
    """Raise RecipeError where there is something at a path."""
    if os.path.lexists(expanded(output, "--output")):
        raise RecipeError(f"--output: {output} exists and is never overwritten; choose another name, or remove it")


def write_new(output: Path, text: str) -> None:
    """Write a recipe, and next to it the schema that `SCHEMA_LINE` names, unless it is there; raises RecipeError as `refuse_existing`."""
    refuse_existing(output)
    path = expanded(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    logger.info("wrote %s", output)
    schema = path.with_name(SCHEMA_NAME)
    if not os.path.lexists(schema):
        schema.write_text(json_schema(), encoding="utf-8")
