"""Train, inspect and evaluate reward models from one YAML recipe."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from rmtrain.errors import (
    CheckpointError,
    DataError,
    GateMissed,
    NumericError,
    RecipeError,
    RmtrainError,
    Stopped,
    TryAgain,
)

_HOMES = {
    "load_recipe": "rmtrain.recipe.load",
    "Recipe": "rmtrain.recipe.schema",
    "preprocess": "rmtrain.commands.preprocess",
    "train": "rmtrain.commands.train",
    "evaluate": "rmtrain.commands.evaluate",
    "visualize_tokens": "rmtrain.report.token_strip",
    "CHAT_TEMPLATES": "rmtrain.data.text.templates",
    "RewardScorer": "rmtrain.evaluation.scorer",
}
_ERRORS = (CheckpointError, DataError, GateMissed, NumericError, RecipeError, RmtrainError, Stopped, TryAgain)
__all__ = [*_HOMES, *(error.__name__ for error in _ERRORS), "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that the command line starts without torch."""
    if name == "__version__":
        return version("rmtrain")
    if name not in _HOMES:
        raise AttributeError(f"module 'rmtrain' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
