"""Train, inspect and evaluate reward models from one YAML recipe."""

from importlib import import_module
from typing import Any

_HOMES = {
    "load_recipe": "rmtrain.recipe.load",
    "preprocess": "rmtrain.commands.preprocess",
    "train": "rmtrain.commands.train",
    "evaluate": "rmtrain.commands.evaluate",
    "visualize_tokens": "rmtrain.report.comparison_view",
    "CHAT_TEMPLATES": "rmtrain.data.text.templates",
    "RewardScorer": "rmtrain.evaluation.scorer",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rmtrain' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
