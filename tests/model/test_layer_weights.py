"""Layers that are read one by one get the weights that transformers loads at once."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmtrain.errors import CheckpointError
from rmtrain.model.build import build_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import make_base, only_problem
from tests.model.test_architectures import base_of

KINDS = {"llama": 4, "mixtral": 4, "gemma4": 4, "nemotron_h": 4, "deepseek_v3": 4, "gpt2": 4, "zamba": 0}
"""Layers that are read one by one: fused experts, a text part, other names, buffers in layers, and layers that share weights."""
ADAPTABLE = [kind for kind in KINDS if kind not in ("nemotron_h", "zamba")]
"""PEFT refuses the linear layers of the others."""


@pytest.mark.parametrize(("model_type", "lora"), [*product(KINDS, [None]), *product(ADAPTABLE, [Lora(rank=2)])])
def test_read_by_layer_equals_read_at_once(model_type: str, lora: Lora | None, tokenizer: Any, tmp_path: Path) -> None:
    recipe = PretrainedModel(path=str(base_of(model_type, tokenizer, tmp_path)), dtype="float32")
    whole, read = (build_reward_model(recipe, lora, tokenizer, 1, by_layer) for by_layer in (False, True))
    assert read.layer_weights is not None
    assert len(read.layer_weights.waiting) == KINDS[model_type], "guard: they were left unread"
    read.load(read)
    expected, tensors = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in (whole, read))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name].dtype, tensors[name].requires_grad) == (tensor.dtype, tensor.requires_grad), name
        assert torch.equal(tensors[name], tensor), name
    assert read.layer_weights is None, "guard: everything was read"


def test_weights_that_are_not_finite_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path, tokenizer)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    model = build_reward_model(PretrainedModel(path=str(base)), None, tokenizer, 1, by_layer=True)
    with pytest.raises(CheckpointError) as refusal:
        model.load(model)
    assert "model.layers.1.mlp.up_proj.weight" in only_problem(refusal)
