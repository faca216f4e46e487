"""From tokens to rewards: one module with one forward, for every model.

Tensor legend: R rows, T tokens of a row, N responses, S distinct sequences, H hidden size.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from rmtrain.batching.layout import Layout, MicroBatch
from rmtrain.model.attention import ATTENTION, SegmentsNotSeen, restrict_last_layer, unpack_last_layer
from rmtrain.model.classifier import HeadSpec, device_of, head_of
from rmtrain.model.layer_weights import LayerWeights
from rmtrain.model.mixture import router_balance
from rmtrain.model.model_files import ModelRef
from rmtrain.recipe.schema import Precision


class RewardModel(nn.Module):
    """A transformers or PEFT model with a RewardHead, and where that head is.

    Everything that a step computes happens in `forward`, because the hooks of DDP, FSDP and ZeRO fire only there.

    Attributes:
        hf: the transformers model, or the PEFT model around it.
        head: name and kind of the head.
        base_ref: source of the base weights; None: they were initialized from a seed.
        dtype: dtype of the base weights; trained adapters and the head are float32.
        new_head: the head was initialized from a seed.
        layer_weights: reads the layers, which have no weights yet; None: the model is whole.
        sharded: layers gather their weights in each call, so that every rank has to call them equally often.
        computing: type of the matrix products: float32 for that of the weights, or bfloat16 or float16, whatever theirs is.
        can_restrict: the last layer of a single row can be computed only where rewards are read.
    """

    def __init__(
        self,
        hf: nn.Module,
        head: HeadSpec,
        base_ref: ModelRef | None,
        dtype: torch.dtype,
        new_head: bool = False,
        layer_weights: LayerWeights | None = None,
    ) -> None:
        super().__init__()
        self.hf = hf
        self.head = head
        self.base_ref = base_ref
        self.dtype = dtype
        self.new_head = new_head
        self.layer_weights = layer_weights
        self.computing = "float32"
        self.sharded = False
        self._accepted = frozenset(inspect.signature(self.backbone.base_model.forward).parameters)
        self._own_attention: str = self.backbone.config._attn_implementation
        outside_head = {
            parameter.dtype
            for name, parameter in self.backbone.named_parameters()
            if parameter.is_floating_point() and name.partition(".")[0] != head.root
        }
        # What trains is float32, also on a bfloat16 base; without autocast, products of the two dtypes would fail.
        self._has_mixed_dtypes = {torch.float32, torch.bfloat16} <= outside_head
        self.can_restrict = restrict_last_layer(self.backbone)
        self._can_unpack = not head.pools_last_token and unpack_last_layer(self.backbone)
        self._read_tokens_only = False

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
        for module in self._positions():
            # Rows before position 0: OPT has two, and RoBERTa those up to the pad id.
            offset = int(getattr(module, "offset", 0)) if module.padding_idx is None else module.padding_idx + 1
            sizes.append(module.num_embeddings - offset)
        return min(sizes, default=None)

    def _positions(self) -> list[nn.Embedding]:
        """Return the position embeddings; none if positions are computed."""
        names = ("wpe", "embed_positions", "position_embeddings")
        modules = ((name.rpartition(".")[2], module) for name, module in self.backbone.named_modules())
        return [module for name, module in modules if name in names and isinstance(module, nn.Embedding)]

    @property
    def declared_positions(self) -> int | None:
        """The number of tokens that the model is made for, by its configuration or its embeddings: servers cut or refuse longer texts."""
        declared = getattr(self.backbone.config.get_text_config(), "max_position_embeddings", None)
        return min((limit for limit in (self.max_positions, declared) if isinstance(limit, int) and limit > 0), default=None)

    @property
    def device(self) -> torch.device:
        """The device that the head computes on."""
        return device_of(self.head_weight_1H)

    def load(self, module: nn.Module) -> None:
        """Read the layers of a module that have no weights yet, if any; raises CheckpointError as `LayerWeights.load`."""
        if self.layer_weights is not None:
            self.layer_weights.load(module)
            if module is self:
                self.layer_weights = None

    def use_layout(self, layout: Layout, read_tokens_only: bool = True) -> None:
        """Set the attention that a layout needs: within segments for a single row, the model's own for padded rows.

        With `read_tokens_only`, the last layer of a single row is computed only where rewards are read, if the model has a list of layers:
        at the last token, and of encoders at the first, which is wrong for heads that read more; `choose_layout` finds out.
        """
        self._read_tokens_only = read_tokens_only and self.can_restrict
        self.backbone.set_attn_implementation(self._own_attention if layout == "padded" else ATTENTION)

    def forward(
        self, batch: MicroBatch | Callable[[], Tensor], balance: bool = False
    ) -> Tensor | tuple[Tensor, Tensor] | Exception:
        """Return rewards_N, float32, in the order of the batch's responses; with `balance`, also the `router_balance` of the batch.

        Causal models are read at the last token that the layout names; transformers would look for the last one that is not the pad id.
        In place of a batch, it also takes the function of `run`.
        """
        if callable(batch):
            try:
                return batch()
            except Exception as error:
                return error
        with self._autocast(batch.input_ids_RT.device):
            if not self.pools_last_token:
                logits_S1 = torch.cat([self._logits(part) for part in self._parts(batch)])
                return logits_S1.to(torch.promote_types(logits_S1.dtype, torch.float32))[batch.sequence_N, 0]
            hidden_SH, router_logits = self._run(batch, balance)
            rewards_S1: Tensor = self.backbone.get_submodule(self.head.name)(hidden_SH)
            rewards_N = rewards_S1[batch.sequence_N, 0]
            if not balance:
                return rewards_N
            masks = [part.attention_mask_RT for part in batch.rectangles()]
            mask_1T = torch.cat([mask_RT.reshape(1, -1) for mask_RT in masks if mask_RT is not None], 1) if batch.blocks else None
            if mask_1T is not None:  # parts that only keep step with other ranks do not count
                mask_1T = F.pad(mask_1T, (0, len(router_logits[0]) - mask_1T.shape[1]))
            return rewards_N, router_balance(self.backbone, router_logits, mask_1T)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Compute what the head reads, [S, H], as `forward` does: a causal model's last hidden states, or what an encoder makes of its own.

        Where the head of an encoder reads every token, and pools afterwards, it is what it returns.
        """
        return self.run(partial(self._hidden, batch))

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Call a function within `forward`, so that it has the weights that a strategy gathers for a forward.

        Its errors are raised after the forward: the hooks of ZeRO-3 have to see the end of what they saw begin.
        """
        outcome: Tensor | Exception = self(function)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _hidden(self, batch: MicroBatch) -> Tensor:
        with self._autocast(batch.input_ids_RT.device):
            if self.pools_last_token:
                return self._run(batch)[0]
            read: list[Tensor] = []
            hook = head_of(self.backbone, self.head).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
            try:
                logits = [self._logits(part) for part in self._parts(batch)]
            finally:
                hook.remove()
            return torch.cat(read if read[0].ndim == 2 else logits)

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which matrix products are computed in `computing`, or in bfloat16 where weights of both types meet."""
        is_lower = self.computing != "float32"
        dtype: torch.dtype = getattr(torch, self.computing) if is_lower else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=self._has_mixed_dtypes or is_lower)

    def _parts(self, batch: MicroBatch) -> list[MicroBatch]:
        """Return the rectangles of a micro-batch, filled up with single tokens, which nothing reads, to as many as any rank has."""
        parts = batch.rectangles()
        if self.sharded and batch.blocks:
            most = torch.tensor(len(parts), device=batch.input_ids_RT.device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            (token,) = replace(batch, blocks=((0, 1, 1),), reward_column_S=torch.zeros_like(batch.reward_column_S)).rectangles()
            parts += [token] * (int(most) - len(parts))
        return parts

    def _logits(self, part: MicroBatch) -> Tensor:
        """Return the outputs of an encoder's own head for a rectangle, [S, 1]."""
        inputs: dict[str, Any] = {"input_ids": part.input_ids_RT, "attention_mask": part.attention_mask_RT}
        if part.segments is not None:
            if not self._can_unpack:
                raise SegmentsNotSeen
            rows_SL, mask_SL = part.segments.padded_rows(part.input_ids_RT.device)
            read_at_S = rows_SL[:, 0] if self._read_tokens_only else None
            segments = replace(part.segments, causal=False, rows_SL=rows_SL, read_at_N=read_at_S)
            first = max(
                (embedding.padding_idx + 1 for embedding in self._positions() if embedding.padding_idx is not None), default=0
            )
            inputs |= {"attention_mask": mask_SL, "position_ids": first + part.position_ids_RT, "segments": segments}
        logits_S1: Tensor = self.backbone(**inputs).logits
        return logits_S1

    def _run(self, batch: MicroBatch, balance: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the last hidden states where rewards are read, [S, H], and with `balance` the logits of each router, [tokens, experts]."""
        if batch.segments is not None and "position_ids" not in self._accepted:
            raise SegmentsNotSeen
        hidden, router_logits = [], []
        for part in self._parts(batch):
            extra: dict[str, Any] = {"position_ids": part.position_ids_RT, "use_cache": False}
            if hasattr(self.backbone.config, "vision_config"):  # such models refuse to train on text that is not marked as text
                extra["token_type_ids"] = torch.zeros_like(part.input_ids_RT)
            accepted = {name: value for name, value in extra.items() if name in self._accepted}
            if part.segments is not None:
                # The router of the last layer has to see all tokens as well, or its share of the balance would be that of a few.
                reads_one_each = len(part.reward_column_S) == sum(map(len, part.segments.responses))
                read_tokens_only = self._read_tokens_only and reads_one_each and not balance
                accepted["segments"] = replace(part.segments, read_at_N=part.reward_column_S if read_tokens_only else None)
            if balance:
                accepted["output_router_logits"] = True
            outputs = self.backbone.base_model(input_ids=part.input_ids_RT, attention_mask=part.attention_mask_RT, **accepted)
            hidden.append(outputs[0][part.reward_row_S, part.reward_column_S])
            router_logits.append(outputs.router_logits if balance else ())
        return torch.cat(hidden), tuple(map(torch.cat, zip(*router_logits, strict=True)))


def computing_type(precision: Precision, device: torch.device) -> str:
    """Return the type of the matrix products on a device under a `training.precision`: float32, bfloat16 or float16.

    T4 and V100 have no bfloat16: they compute it by way of float32, more slowly than float32 itself, and torch calls that supported.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    lacks_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if lacks_bfloat16 else "bfloat16"


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


class Adapted(NamedTuple):
    """What adapters change: numbers of linear layers and of expert tensors, and the share of all frozen weights that these are."""

    linear_layers: int
    expert_tensors: int
    share: float


def adapted(model: nn.Module) -> Adapted | None:
    """Count what the adapters of a model change; None without adapters."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    experts = [layer for layer in layers if isinstance(layer, ParamWrapper)]
    changed = [layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight for layer in layers]
    frozen = sum(_count(parameter) for parameter in model.parameters() if not parameter.requires_grad)
    return Adapted(len(layers) - len(experts), len(experts), sum(map(_count, changed)) / frozen) if layers else None


def trainable_summary(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by dtype: `{"total": {"float32": n, ...}, "trainable": {...}}`. 4-bit weights count as `nf4`."""
    total: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        kind = str(parameter.dtype).removeprefix("torch.") if state is None else "nf4"
        count = _count(parameter)
        total[kind] += count
        trainable[kind] += count if parameter.requires_grad else 0
    return {"total": dict(total), "trainable": {kind: count for kind, count in trainable.items() if count}}


def _count(parameter: Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())
