"""The recipes of `recipes/models` fit the GPUs that they are for, by the estimate of a dry run; docs/MODELS.md has the numbers."""

import re
from pathlib import Path

import pytest

from rmtrain.recipe.library import recipes
from rmtrain.recipe.load import load_recipe
from tests.library_models import MODELS, NAMES, estimate, row, table_rows

FEW = {"qwen3-0.6b-full-1x24gb", "modernbert-base-full-1x24gb"}
NUMBER = r"\d[\d,]*(?:\.\d+)?"


def test_page_lists_every_recipe() -> None:
    """In the order of the library; each is named after its model, what trains, and its machine."""
    assert [re.findall("`(.*?)`", line)[0] for line in table_rows()] == NAMES
    assert {load_recipe(recipes()[name]).model.path for name in NAMES} == set(MODELS)
    for name in NAMES:
        recipe = load_recipe(recipes()[name])
        trains = "full" if recipe.lora is None else "qlora" if recipe.model.quantization else "lora"
        assert recipe.run.name == name
        assert re.fullmatch(rf"[a-z0-9.-]+-{trains}-[18]x(24|80)gb", name)
        assert ("8x" in name) == ("--processes 8" in recipes()[name].read_text(encoding="utf-8"))
        needs_extra = recipe.model.quantization is not None or recipe.optimizer.name == "adamw_8bit"
        assert needs_extra == ("rmtrain[8bit]" in recipes()[name].read_text(encoding="utf-8"))
    assert len(NAMES) > 12, "guard"


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in NAMES])
def test_recipe_fits_its_gpu(name: str, tmp_path: Path) -> None:
    """With comparisons of the maximum length; the model has as many weights as published, and the page has the same numbers."""
    document = estimate(name, tmp_path)
    recipe = load_recipe(recipes()[name])
    assert document["fits"], row(name, document)
    weights = document["parameters"] - (0 if recipe.lora is None else document["trainable"])
    assert weights / 1e9 == pytest.approx(MODELS[recipe.model.path][0], rel=0.01)
    assert 0.97 * 2 * recipe.data.max_length < document["largest_micro_batch"] <= document["max_tokens"], "guard: longest rows"
    (documented,) = (line for line in table_rows() if f"`{name}`" in line)
    numbers = [
        [float(number.replace(",", "")) for number in re.findall(NUMBER, line.split("|", 2)[2])]
        for line in (documented, row(name, document))
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.03, abs=0.1), "run python -m tests.library_models"
    assert len(numbers[0]) == 7, "guard"
