"""A trace without memory against the same model with memory, and against what autograd says that it saves."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.engine.memory_trace import Sizes, meta_model, takes, trace, traced
from rmtrain.model.build import build_reward_model
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Architecture, Lora, ScratchModel

LAYERS = 3


def rows(count: int = 4, longer: int = 0) -> list[TokenizedComparison]:
    """Pairs with prompts and responses of different lengths."""
    made = []
    for number in range(count):
        prompt = [5] * (20 + number + longer)
        sequences = (prompt + [6] * 30, prompt + [7] * (25 + 3 * number))
        made.append(TokenizedComparison(str(number), "test", sequences, len(prompt), len(prompt)))
    return made


def settings(architecture: str, **model: Any) -> ScratchModel:
    sizes = Architecture(architecture=architecture, hidden_size=64, layers=LAYERS, heads=4, max_positions=128)
    return ScratchModel(scratch=sizes, **model)


def real_model(model: ScratchModel, lora: Lora | None, tokenizer: Any, layout: Layout, autocast: bool) -> RewardModel:
    built = build_reward_model(model, lora, tokenizer, 1)
    built.autocast = autocast
    built.use_layout(layout)
    return built


def outlined_peak(model: ScratchModel, lora: Lora | None, tokenizer: Any, layout: Layout, autocast: bool) -> int:
    outlined = meta_model(model, lora, tokenizer)
    outlined.autocast = autocast
    return trace(outlined, lay_out(rows(), tokenizer.pad_token_id, layout), layout, on_gpu=False).peak()


def saved_bytes(model: RewardModel, layout: Layout, pad_token_id: int) -> int:
    """What autograd keeps of a forward, each storage once and weights not at all."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rewards = model(lay_out(rows(), pad_token_id, layout))
    assert rewards.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gpt2", "gemma2", "mixtral"])
def test_a_trace_without_memory_is_that_of_the_real_model(
    tokenizer: Any, architecture: str, layout: Layout, autocast: bool
) -> None:
    model = settings(architecture)
    batch = lay_out(rows(), tokenizer.pad_token_id, layout)
    real = traced(real_model(model, None, tokenizer, layout, autocast), batch).peak()
    outlined = outlined_peak(model, None, tokenizer, layout, autocast)
    assert outlined == pytest.approx(real, rel=0.001 if layout == "padded" else 0.05)
    assert real > 20 * batch.input_ids_RT.numel() * 64 * 2, "guard: activations of several layers were counted"


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_gradient_checkpointing_is_traced_as_it_runs(tokenizer: Any, architecture: str, lora: Lora | None) -> None:
    layout: Layout = "shared_prefix" if architecture == "llama" else "padded"
    peaks = {}
    for checkpointing in (False, True):
        model = settings(architecture, gradient_checkpointing=checkpointing)
        batch = lay_out(rows(), tokenizer.pad_token_id, layout)
        real = traced(real_model(model, lora, tokenizer, layout, False), batch).peak()
        peaks[checkpointing] = outlined_peak(model, lora, tokenizer, layout, False)
        assert peaks[checkpointing] == pytest.approx(real, rel=0.05)
    assert peaks[True] < 0.8 * peaks[False], "guard: checkpointing was in force"


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_trace_holds_what_autograd_saves_and_little_more(tokenizer: Any, autocast: bool) -> None:
    model = real_model(settings("llama"), None, tokenizer, "shared_prefix", autocast)
    saved = saved_bytes(model, "shared_prefix", tokenizer.pad_token_id)
    alive = traced(model, lay_out(rows(), tokenizer.pad_token_id, "shared_prefix")).peak()
    assert saved <= alive < 1.25 * saved, "the forward's own results and one layer of backward come on top"
    assert saved > 100_000, "guard: something was saved"


def test_casts_of_weights_are_counted_apart_and_gradients_are_all_there_at_the_end(tokenizer: Any) -> None:
    batch = lay_out(rows(), tokenizer.pad_token_id, "shared_prefix")
    in_bfloat16 = traced(real_model(settings("llama"), None, tokenizer, "shared_prefix", True), batch).alive_M3
    in_float32 = traced(real_model(settings("llama"), None, tokenizer, "shared_prefix", False), batch).alive_M3
    sizes = Sizes.of(real_model(settings("llama"), None, tokenizer, "shared_prefix", False), packed=False)
    matrices = LAYERS * sizes.layer.weights
    assert 0.95 * 2 * matrices < in_bfloat16[:, 1].max() < 1.05 * 2 * matrices
    assert in_float32[:, 1].max() == 0
    for moments in (in_bfloat16, in_float32):
        assert moments[:, 2].max() == sizes.all.trained_bytes
        assert (np.diff(moments[:, 2]) >= 0).all()
    assert in_bfloat16[:, 0].max() < in_float32[:, 0].max(), "guard: activations are narrower in bfloat16"


def test_a_model_takes_a_layout_without_weights_where_the_probe_of_a_run_tries_it(tokenizer: Any) -> None:
    taken = {}
    for architecture in ("llama", "bloom", "stablelm", "bert"):
        batch = lay_out(rows(2), tokenizer.pad_token_id, "shared_prefix")
        outlined = meta_model(settings(architecture), None, tokenizer)
        taken[architecture] = takes(outlined, batch, "shared_prefix", on_gpu=False, narrow=True)
    assert taken == {"llama": True, "bloom": False, "stablelm": False, "bert": False}


def test_an_outlined_model_has_the_weights_of_the_real_one(tokenizer: Any) -> None:
    kinds = [(architecture, lora) for architecture in ("llama", "gpt2", "bert") for lora in (None, Lora(rank=4))]
    for architecture, lora in kinds:
        outlined, built = (
            {name: (parameter.shape, parameter.dtype, parameter.requires_grad) for name, parameter in made.named_parameters()}
            for made in (
                meta_model(settings(architecture), lora, tokenizer),
                build_reward_model(settings(architecture), lora, tokenizer, 1),
            )
        )
        assert outlined == built
        assert any(trains for _, _, trains in built.values()), "guard: something trains"
