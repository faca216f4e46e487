"""From tokens to rewards: one module with one forward, for every model.

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
from rmtrain.model.attention import ATTENTION, SegmentsNotSeen, restrict_last_layer
from rmtrain.model.head import HeadSpec, head_of
from rmtrain.model.pretrained import ModelRef


class RewardModel(nn.Module):
    """A transformers or PEFT model with a RewardHead, and where that head is.

    Everything that a step computes happens in `forward`, because the hooks of DDP, FSDP and ZeRO fire only there.

    Attributes:
        hf: the transformers model, or the PEFT model around it.
        head: name and kind of the head.
        base_ref: source of the base weights; None: they were initialized from a seed.
        dtype: dtype of the base weights; trained adapters and the head are float32.
        autocast: compute matrix products in bfloat16, whatever the dtype of the weights.
    """

    def __init__(self, hf: nn.Module, head: HeadSpec, base_ref: ModelRef | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.hf = hf
        self.head = head
        self.base_ref = base_ref
        self.dtype = dtype
        self.autocast = False
        self._accepted = frozenset(inspect.signature(self.backbone.base_model.forward).parameters)
        self._own_attention: str = self.backbone.config._attn_implementation
        outside_head = {
            parameter.dtype
            for name, parameter in self.backbone.named_parameters()
            if parameter.is_floating_point() and name.partition(".")[0] != head.root
        }
        # What trains is float32, also on a bfloat16 base; without autocast, products of the two dtypes would fail.
        self._has_mixed_dtypes = {torch.float32, torch.bfloat16} <= outside_head
        self._can_restrict = head.pools_last_token and restrict_last_layer(self.backbone)
        self._last_token_only = False

    @property
    def backbone(self) -> Any:
        """The transformers model, including adapters if it has some."""
        return self.hf.get_base_model() if isinstance(self.hf, PeftModel) else self.hf

    @property
    def pools_last_token(self) -> bool:
        """True: a causal model, read at the last token. False: an encoder, read by its own head."""
        return self.head.pools_last_token

    @property
    def head_weight_1H(self) -> Tensor:
        """The weights of the head in use, [1, H] float32."""
        return head_of(self.backbone, self.head).weight

    @property
    def max_positions(self) -> int | None:
        """The number of tokens that the position embeddings hold; None if positions are computed (rotary, ALiBi)."""
        sizes = []
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("wpe", "embed_positions", "position_embeddings"):
                # Rows before position 0: OPT has two, and RoBERTa those up to the pad id.
                offset = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
                sizes.append(module.num_embeddings - offset)
        return min(sizes, default=None)

    @property
    def device(self) -> torch.device:
        """The device of the head."""
        return self.head_weight_1H.device

    def use_layout(self, layout: Layout, last_token_only: bool = True) -> None:
        """Set the attention that a layout needs: within segments for a single row, the model's own for padded rows.

        With `last_token_only`, the last layer of a single row is computed only where rewards are read, if the model has a list of layers.
        """
        self._last_token_only = last_token_only and self._can_restrict
        self.backbone.set_attn_implementation(self._own_attention if layout == "padded" else ATTENTION)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Return rewards_N, float32, in the order of the batch's responses.

        Causal models are read at the last token that the layout names; transformers would look for the last one that is not the pad id.
        """
        device = batch.input_ids_RT.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._has_mixed_dtypes or self.autocast):
            if self.pools_last_token:
                rewards_N1: Tensor = self.backbone.get_submodule(self.head.name)(self.hidden(batch))
                return rewards_N1[:, 0].clone()  # FSDP2 refuses a view as the output of a module
            logits_R1: Tensor = self.backbone(input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT).logits
            return logits_R1.to(torch.promote_types(logits_R1.dtype, torch.float32))[batch.reward_row_N, 0]

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Compute the last hidden states of a causal model where rewards are read, [N, H]."""
        extra: dict[str, Any] = {"position_ids": batch.position_ids_RT, "use_cache": False}
        if batch.segments is not None and "position_ids" not in self._accepted:
            raise SegmentsNotSeen
        if hasattr(self.backbone.config, "vision_config"):  # such models refuse to train on text that is not marked as text
            extra["token_type_ids"] = torch.zeros_like(batch.input_ids_RT)
        accepted = {name: value for name, value in extra.items() if name in self._accepted}
        if batch.segments is not None:
            accepted["segments"] = replace(batch.segments, read_at_N=batch.reward_column_N if self._last_token_only else None)
        hidden_RTH: Tensor = self.backbone.base_model(
            input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT, **accepted
        )[0]
        return hidden_RTH[batch.reward_row_N, batch.reward_column_N]


def unwrap(model: nn.Module) -> RewardModel:
    """Return the RewardModel inside wrappers of torch.compile (`_orig_mod`) and DDP (`module`)."""
    while not isinstance(model, RewardModel):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        assert isinstance(inner, nn.Module), f"no RewardModel inside {type(model).__name__}"
        model = inner
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and restore the mode of each module at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def trainable_summary(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by dtype: `{"total": {"float32": n, ...}, "trainable": {...}}`. 4-bit weights count as `nf4`."""
    total: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        kind = str(parameter.dtype).removeprefix("torch.") if state is None else "nf4"
        count = parameter.numel() if state is None else state.shape.numel()
        total[kind] += count
        trainable[kind] += count if parameter.requires_grad else 0
    return {"total": dict(total), "trainable": {kind: count for kind, count in trainable.items() if count}}
