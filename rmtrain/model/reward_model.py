"""Tokens to rewards: one module, one forward, for every model.

Tensor legend: R rows, T tokens of a row, N responses, H hidden size.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rmtrain.batching.layout import Layout, MicroBatch
from rmtrain.model.attention import ATTENTION, SegmentsNotSeen
from rmtrain.model.head import HeadSpec, head_of
from rmtrain.model.last_layer import narrow_last_layer
from rmtrain.model.pretrained import ModelRef


class RewardModel(nn.Module):
    """A transformers or PEFT model and the place of its head.

    Everything a step needs happens in `forward`: hooks of DDP, FSDP and ZeRO fire nowhere else.

    Attributes:
        hf: the transformers model (with a RewardHead), or the PEFT model around it.
        head: where the head is.
        origin: what the base weights were loaded from; None: they began as random numbers.
        dtype: type of the base weights; trained adapters and the head are float32.
        autocast: whether matrix products run in bfloat16, whatever the type of the weights.
    """

    def __init__(self, hf: nn.Module, head: HeadSpec, origin: ModelRef | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.hf = hf
        self.head = head
        self.origin = origin
        self.dtype = dtype
        self.autocast = False
        self._accepted = frozenset(inspect.signature(self.core.base_model.forward).parameters)
        self._own_attention: str = self.core.config._attn_implementation
        self._mixed = self._mixes_types()
        self._can_narrow = self.head.pools_last_token and narrow_last_layer(self.core)
        self._narrow = False

    @property
    def core(self) -> Any:
        """The transformers model, adapters included where there are some."""
        return self.hf.get_base_model() if isinstance(self.hf, PeftModel) else self.hf

    @property
    def pools_last_token(self) -> bool:
        """True: a causal model, read at the last token. False: an encoder, read as its own head does."""
        return self.head.pools_last_token

    @property
    def head_weight_1H(self) -> Tensor:
        """The weights of the head in use, [1, H] float32."""
        return head_of(self.core, self.head).weight

    @property
    def longest(self) -> int | None:
        """Tokens that the position embeddings hold; None where positions are computed and nothing breaks."""
        embeddings = [
            module for name, module in self.core.named_modules() if isinstance(module, nn.Embedding) and _is_positional(name)
        ]
        return min((module.num_embeddings - _offset(module) for module in embeddings), default=None)

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.head_weight_1H.device

    def use_layout(self, layout: Layout, narrow: bool = True) -> None:
        """Set the attention that a layout needs: within segments for a single row, the model's own for padded rows.

        Args:
            narrow: compute the last layer of a single row only where rewards are read, if the model has a list of layers.
        """
        self._narrow = narrow and self._can_narrow
        self.core.set_attn_implementation(self._own_attention if layout == "padded" else ATTENTION)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Rewards of a micro-batch.

        Causal models are read at the last real token, which the layout says; transformers would look for the last token
        that is not the pad id. Weights of two types (float32 beside bfloat16) compute under bfloat16 autocast.

        Returns:
            rewards_N, float32, in the order of the batch's responses.
        """
        device = batch.input_ids_RT.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._mixed or self.autocast):
            return self._at_last_token(batch) if self.pools_last_token else self._from_logits(batch)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Last hidden states of a causal model where rewards are read, [N, H]."""
        core = self.core
        extra: dict[str, Any] = {"position_ids": batch.position_ids_RT, "use_cache": False}
        if batch.segments is not None and "position_ids" not in self._accepted:
            raise SegmentsNotSeen
        if hasattr(core.config, "vision_config"):  # such models refuse to train on text that is not marked as text
            extra["token_type_ids"] = torch.zeros_like(batch.input_ids_RT)
        accepted = {name: value for name, value in extra.items() if name in self._accepted}
        if batch.segments is not None:
            accepted["segments"] = replace(batch.segments, read_at_N=batch.reward_column_N if self._narrow else None)
        hidden_RTH: Tensor = core.base_model(input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT, **accepted)[0]
        return hidden_RTH[batch.reward_row_N, batch.reward_column_N]

    def _at_last_token(self, batch: MicroBatch) -> Tensor:
        rewards_N1: Tensor = self.core.get_submodule(self.head.name)(self.hidden(batch))
        return rewards_N1[:, 0].clone()

    def _from_logits(self, batch: MicroBatch) -> Tensor:
        logits_R1: Tensor = self.core(input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT).logits
        return logits_R1.to(torch.promote_types(logits_R1.dtype, torch.float32))[batch.reward_row_N, 0]

    def _mixes_types(self) -> bool:
        outside_head = {
            parameter.dtype
            for name, parameter in self.core.named_parameters()
            if parameter.is_floating_point() and name.split(".")[0] != self.head.root
        }
        return {torch.float32, torch.bfloat16} <= outside_head


def unwrap(model: nn.Module) -> RewardModel:
    """The RewardModel within wrappers of torch.compile (`_orig_mod`) and of DDP (`module`)."""
    while not isinstance(model, RewardModel):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        assert isinstance(inner, nn.Module), f"no RewardModel within {type(model).__name__}"
        model = inner
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def trainable_summary(model: nn.Module) -> dict[str, dict[str, int]]:
    """Numbers of parameters by type: `{"total": {"float32": n, ...}, "trainable": {...}}`. 4-bit weights count as `nf4`."""
    total: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        kind = str(parameter.dtype).removeprefix("torch.") if state is None else "nf4"
        count = parameter.numel() if state is None else state.shape.numel()
        total[kind] += count
        trainable[kind] += count if parameter.requires_grad else 0
    return {"total": dict(total), "trainable": {kind: count for kind, count in trainable.items() if count}}


def _is_positional(name: str) -> bool:
    return name.rpartition(".")[2] in ("wpe", "embed_positions", "position_embeddings")


def _offset(module: nn.Embedding) -> int:
    """Rows before position 0: OPT's two, and the rows up to the pad id in RoBERTa's line."""
    if module.padding_idx is not None:
        return module.padding_idx + 1
    offset: int = getattr(module, "offset", 0)
    return offset
