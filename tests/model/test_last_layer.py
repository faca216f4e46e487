"""The last layer computes only what the head reads, where that is right. Layouts and gradients are in test_layouts.py."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.model.layout_probe import choose_layout
from rmtrain.model.reward_model import RewardModel
from tests.model.builders import build
from tests.model.test_layouts import CHOSEN, EXACT, PAD, SPECIAL, amplified, comparisons, special


def rows_through(model: RewardModel, layer: int, batch: MicroBatch) -> list[int]:
    """Count the tokens that each matrix and norm of a layer gets in one forward, in the order of calls; experts are left out."""
    layers = next(module for module in model.backbone.base_model.modules() if isinstance(module, nn.ModuleList))
    seen: list[int] = []

    def note(module: nn.Module, args: Any, _: Any) -> None:
        seen.append(args[0].numel() // args[0].shape[-1])

    hooks = [
        module.register_forward_hook(note)
        for name, module in layers[layer].named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | Conv1D) and "mlp" not in name
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


ENCODERS = ("bert", "distilbert", "modernbert")


@pytest.mark.parametrize("architecture", [*EXACT, *(name for name in SPECIAL if CHOSEN[name] == "shared_prefix"), *ENCODERS])
def test_last_layer_computes_only_read_tokens(architecture: str, tokenizer: Any) -> None:
    """It computes keys and values of all tokens, and everything else of the tokens that are read."""
    model = special(architecture) if architecture in SPECIAL else amplified(build(architecture, tokenizer, hidden_size=64))
    layout: Layout = "packed" if architecture in ENCODERS else "shared_prefix"
    assert choose_layout(model, "auto", comparisons(), PAD) == layout
    batch = lay_out(comparisons(), PAD, layout)
    responses, tokens = len(batch.reward_column_S), batch.tokens
    last, first = rows_through(model, -1, batch), rows_through(model, 0, batch)
    assert set(first) == {tokens}, "every layer but the last sees every token"
    wide = last.index(responses)
    assert set(last[:wide]) == {tokens}
    assert set(last[wide:]) == {responses}
    assert responses in last[wide:], "the end of the layer sees only the tokens that are read"
    assert responses < tokens / 4, "guard: most tokens are not read"


class NeedsAllTokens(nn.Module):
    """A layer that fails on a selection of tokens."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("segments") is not None and hidden.shape[1] < 30:
            raise RuntimeError("this layer wants all tokens")
        out: torch.Tensor = self.layer(hidden, **kwargs)
        return out


def test_layer_that_needs_all_tokens_gets_them(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The layout is kept, the last layer is computed whole, and the run logs it."""
    plain = amplified(build("llama", tokenizer, hidden_size=64)).eval()
    stubborn = copy.deepcopy(plain)
    stubborn.backbone.base_model.layers[-1] = NeedsAllTokens(stubborn.backbone.base_model.layers[-1])
    wrapped = RewardModel(stubborn.backbone, stubborn.head, None, torch.float32)
    rows = comparisons(len(tokenizer))
    with caplog.at_level(logging.INFO, logger="rmtrain"):
        assert choose_layout(wrapped, "auto", rows, PAD) == "shared_prefix"
    assert "last layer" in caplog.text
    plain.use_layout("shared_prefix")
    batch = lay_out(rows, PAD, "shared_prefix")
    with torch.no_grad():
        torch.testing.assert_close(wrapped(batch), plain(batch), rtol=1e-5, atol=1e-5)


def test_copied_model_uses_its_own_last_layer(tokenizer: Any) -> None:
    """The hooks do not refer to the model from which it was copied."""
    model = amplified(build("llama", tokenizer, hidden_size=64)).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.backbone.base_model.layers[-1].parameters():
            parameter.mul_(1.5)
    batch = lay_out(comparisons(len(tokenizer)), PAD, "shared_prefix")
    rewards = {}
    with torch.no_grad():
        for name, one in (("model", model), ("other", other)):
            for layout in ("padded", "shared_prefix"):
                one.use_layout(layout)
                rewards[name, layout] = one(lay_out(comparisons(len(tokenizer)), PAD, layout))
    torch.testing.assert_close(rewards["other", "shared_prefix"], rewards["other", "padded"], rtol=1e-5, atol=1e-5)
    assert (rewards["other", "padded"] - rewards["model", "padded"]).abs().max() > 0.01, "guard: the layers differ"
    assert batch.segments is not None
    assert batch.segments.read_at_N is None
