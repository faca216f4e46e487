"""The model card of a run's model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmtrain.data.text.special_tokens import edge_tokens
from rmtrain.recipe.load import dump_recipe
from rmtrain.recipe.schema import PretrainedModel, Recipe
from rmtrain.report.card import model_card


def card_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    waterfall: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> str:
    """The card of what a recipe trained; other arguments are those of `model_card`."""
    base = recipe.model.path if isinstance(recipe.model, PretrainedModel) and not Path(recipe.model.path).exists() else None
    sources = [source for source in (*recipe.data.train, *recipe.data.eval) if not Path(source.path).expanduser().exists()]
    return model_card(
        name=recipe.run.name,
        path=recipe.hub.id or recipe.run.name,
        base_model=base,
        adapted=recipe.lora is not None,
        datasets={source.title: source.path for source in sources},
        splits={source.title: source.split for source in sources if source.split is not None},
        waterfall=waterfall,
        evaluation=evaluation,
        recipe=dump_recipe(recipe),
        max_length=recipe.data.max_length,
        add_special_tokens=not edge_tokens(tokenizer).in_template,
        versions=versions,
    )
