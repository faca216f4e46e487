"""The adapter of a reward model alone: small, and loaded by whoever has the base model."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rmtrain.batching.layout import lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.export import ADAPTER, GOLDEN, Golden, write_export
from rmtrain.model.load import FACTS, load_reward_model
from rmtrain.model.reward_model import RewardModel, evaluating, unwrap

TOLERANCE = 1e-3
"""How far rewards may be from those of the merged weights, absolute plus relative."""


def export_adapter(model: nn.Module, tokenizer: Any, directory: Path, golden: Golden, extra: Mapping[str, Any]) -> Path:
    """Write the adapter with its head and tokenizer beside `directory`, load it over its base, compare rewards, and move it there.

    Arguments are those of `export_model`.

    Returns:
        `directory`.

    Raises:
        RecipeError: the model has no adapter, or its base began as random numbers that nobody else has.
        CheckpointError: the directory holds something else, or what is loaded gives other rewards.
    """
    reward_model = unwrap(model)
    if not isinstance(reward_model.hf, PeftModel):
        raise RecipeError("--adapter: the run trained all weights and has no adapter; leave it out")
    if reward_model.origin is None:
        raise RecipeError("--adapter: its base model has random weights that are nowhere; leave it out to have merged ones")
    if directory.exists() and not (directory / FACTS).is_file():
        raise CheckpointError(f"{directory} exists and is no export of rmtrain (it has no {FACTS}); choose another directory")
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        whole = Path(folder) / "model"
        write_export(model, tokenizer, whole, golden, extra)
        for name in (GOLDEN, FACTS):
            shutil.move(whole / name, whole / ADAPTER / name)
        _check(reward_model, whole / ADAPTER, golden)
        if directory.exists():
            shutil.rmtree(directory)
        shutil.move(whole / ADAPTER, directory)
    return directory


def _check(model: RewardModel, adapter: Path, golden: Golden) -> None:
    loaded, tokenizer = load_reward_model(str(adapter), model.device)
    for _, ids in golden:
        expected, found = (_reward(each, tokenizer.pad_token_id, list(ids)) for each in (model, loaded))
        if not abs(expected - found) <= TOLERANCE * (1 + abs(expected)):
            raise CheckpointError(f"the adapter does not load as it was saved: a golden reward is {found}, expected {expected}")


def _reward(model: RewardModel, pad_token_id: int, ids: list[int]) -> float:
    with evaluating(model), torch.no_grad():
        model.use_layout("padded")
        return float(model(lay_out([TokenizedComparison("golden", "golden", (ids,), 0, 0, ())], pad_token_id).to(model.device)))
