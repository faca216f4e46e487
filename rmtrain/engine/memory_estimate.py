"""The memory that one process needs to train, estimated before anything is allocated.

One estimate serves `rmtrain train --dry-run` and `batching.max_tokens: auto`: weights + gradients + optimizer + buffers + activations.

The first four are arithmetic: what a strategy shards is divided by the number of processes, and `buffers` is what it gathers and collects.
What it offloads counts as main memory, `host`, and not as memory of the GPU.
Activations are traced: a micro-batch runs forward and backward on fake tensors, which have a shape, a type and a lifetime but no memory.
So LoRA, gradient checkpointing and the narrow last layer count as they run, in any architecture.

The estimate is an upper bound, because "fits" must not turn out to be wrong: gradients are always held (a step of a single micro-batch
needs less), micro-batches are made of the largest comparisons, and activations get a margin. It only grows with tokens.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PreTrainedTokenizerBase
from transformers.masking_utils import AttentionMaskInterface

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.batching.plan import Costs, gather
from rmtrain.data.artifact import TokenizedData
from rmtrain.engine.strategy_kind import StrategyKind
from rmtrain.errors import RecipeError
from rmtrain.model.attention import attend, layers_of
from rmtrain.model.build import UNQUANTIZED, attach_lora, can_load_by_layer, checkpoint_gradients, scratch_config
from rmtrain.model.classifier import (
    find_head,
    install_head,
    meta_classifier,
    prepare_config,
    quiet_transformers,
    set_module_dropout,
)
from rmtrain.model.layout_probe import FALLBACKS, LAYOUT_ERRORS
from rmtrain.model.mixture import check_balance
from rmtrain.model.model_files import ModelRef
from rmtrain.model.pretrained import LoadedModel, load_config
from rmtrain.model.reward_model import Adapted, RewardModel, adapted, computing_type
from rmtrain.recipe.schema import Lora, Optimizer, PretrainedModel, Recipe, ScratchModel

USABLE = 0.9
"""Share of a memory that tensors may take; the rest is for CUDA, for NCCL and for gaps between tensors."""
MARGIN = 1.05
"""Factor on traced activations, for what a trace does not see: workspaces of kernels, and sizes that allocators round up."""
TRACED_COMPARISONS = 4
"""The largest ones, from which a micro-batch of any size is scaled. On a CPU each costs time, being attended to by itself."""
MOST_TOKENS = 2**17
"""Largest budget that `auto` gives: larger micro-batches are no faster, and kernels that index with 32 bits reach their limit."""
FLOAT32 = 4
PACKED_TYPE = torch.bfloat16
"""The type that 4-bit weights are computed in; a meta model holds them in it."""
PACKED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: itself, and the scale of 64 weights, which is quantized again (arXiv:2305.14314, section 3)."""
FSDP2_LAYERS = 3
"""Layers that FSDP2 holds gathered: the one that computes, the next one, and the buffer in which it arrives."""
ZERO_COPIES = {"zero1": 5, "zero2": 5, "zero3": 4}
"""Float32 copies of a shard that DeepSpeed holds in main memory next to the one that it updates, with the optimizer offloaded: two moments,
the gradients of the step and those that accumulate, and in stages 1 and 2 updated weights on their way back."""
ZERO_BUCKET = 500_000_000
"""Gradients that DeepSpeed collects before it reduces them (`reduce_bucket_size`). On a GPU the bucket is allocated whole."""
ZERO3_LIVE, ZERO3_PREFETCHED = 1_000_000_000, 50_000_000
"""Weights that ZeRO-3 keeps gathered (`stage3_max_live_parameters`), and those that arrive (`stage3_prefetch_bucket_size`)."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of one process.

    buffers: weights that the strategy gathers, and gradients that it collects.
    activations: what a micro-batch adds, including copies of weights in the type that they are computed in.
    start: the most before the first step, while the strategy shards the model.
    host: main memory that holds what the strategy offloads from a GPU; on a CPU it is one of the parts.
    """

    name: StrategyKind
    processes: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    start: int
    host: int = 0

    @property
    def total(self) -> int:
        """The most that the process holds in a step."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations

    def fits(self, memory: int) -> bool:
        """Return whether the process can start and train within `memory` bytes."""
        return max(self.total, self.start) <= USABLE * memory


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of weights, and bytes as they are held.

    layer, outside: weights of the largest layer, and of everything outside of layers (embeddings, last norm, head).
    scales: bytes of the scales of 4-bit weights, which are not sharded with them; 0 without quantization.
    unpacked: bytes of the largest 4-bit tensor while it computes; 0 without quantization.
    """

    weights: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    layer: int
    outside: int
    layer_bytes: int
    outside_bytes: int
    scales: int
    unpacked: int

    @classmethod
    def of(cls, model: RewardModel, packed: bool) -> Self:
        """Count the parameters of a model; `packed`: of a meta model whose bfloat16 weights stand for 4-bit ones."""

        def is_packed(parameter: nn.Parameter) -> bool:
            return packed and parameter.dtype == PACKED_TYPE

        def held(parameters: Iterable[nn.Parameter]) -> int:
            return math.ceil(sum(p.numel() * PACKED_BYTES if is_packed(p) else p.nbytes for p in parameters))

        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        quantized = [parameter for parameter in parameters if is_packed(parameter)]
        layers = [list(layer.parameters()) for layer in layers_of(model.backbone)]
        counts = [sum(parameter.numel() for parameter in layer) for layer in layers]
        weights = sum(parameter.numel() for parameter in parameters)
        weight_bytes, layer_bytes = held(parameters), [held(layer) for layer in layers]
        return cls(
            weights=weights,
            trained=sum(parameter.numel() for parameter in trained),
            weight_bytes=weight_bytes,
            trained_bytes=sum(parameter.nbytes for parameter in trained),
            layer=max(counts, default=0),
            outside=weights - sum(counts),
            layer_bytes=max(layer_bytes, default=0),
            outside_bytes=max(0, weight_bytes - sum(layer_bytes)),
            scales=math.ceil(sum(parameter.numel() for parameter in quantized) * (PACKED_BYTES - 0.5)),
            unpacked=max((parameter.nbytes for parameter in quantized), default=0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTrace:
    """Bytes alive in a forward and backward of one micro-batch, at each moment when a tensor is made or ends.

    tokens: of the micro-batch. Weights, and gradients that were in place before, do not count.
    activations_M, casts_M, gradients_M, experts_M: int64. Casts are weights in the type that they are computed in. Gradients are those of
    single weights on their way into the ones in place. Experts are expert tensors with their adapters merged, which every process makes
    whole and keeps until backward, and the gradients of these.
    """

    tokens: int
    activations_M: NDArray[np.int64]
    casts_M: NDArray[np.int64]
    gradients_M: NDArray[np.int64]
    experts_M: NDArray[np.int64]

    def peak(self, tokens: int, activations_only: bool = False) -> int:
        """Return the most bytes alive at once in a micro-batch of `tokens` tokens; `activations_only`: without casts and gradients.

        Activations grow with the tokens and the rest does not, so one small trace gives all sizes, whichever moment is the peak of each.
        """
        fixed_M = self.experts_M if activations_only else self.experts_M + self.casts_M + self.gradients_M
        return math.ceil(float(np.max(fixed_M + self.activations_M * (tokens / self.tokens))))


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What the memory of a process depends on, in addition to its strategy.

    computing: type of the matrix products, as in `RewardModel`.
    by_layer: FSDP2 and ZeRO-3 hold one layer whole at a time while they shard the model; otherwise they hold all of it, as every other
        strategy does, and as they do with 4-bit weights.
    """

    layout: Layout
    computing: str
    sizes: ModelSizes
    trace: MemoryTrace
    optimizer: Optimizer
    on_gpu: bool
    adapted: Adapted | None = None
    by_layer: bool = True

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        data: TokenizedData,
        layout: Layout | Literal["auto"],
        on_gpu: bool,
    ) -> Self:
        """Trace the model of a recipe with the largest comparisons of `data`.

        Args:
            layout: of micro-batches; `auto`: the first that the model accepts (a run also compares rewards, which needs weights).
            on_gpu: a GPU is meant, of this machine or another.

        Raises:
            RecipeError: a wrong model section, a layout that the model refuses, no router to balance, or control flow that depends on
                values.
        """
        balance = recipe.objective.router_balance is not None
        computing = computing_type(recipe.training.precision, torch.device("cuda" if on_gpu else "cpu"))
        for candidate in FALLBACKS if layout == "auto" else (layout,):
            largest = np.argsort(-Costs.of(data, candidate).tokens, kind="stable")[:TRACED_COMPARISONS]
            batch = lay_out(gather(data, largest), tokenizer.pad_token_id, candidate)
            for narrow in (True, False):
                model = meta_model(recipe.model, recipe.lora, tokenizer)
                model.computing = computing
                if balance:
                    check_balance(model.backbone)
                sizes = ModelSizes.of(model, packed=recipe.model.quantization is not None)
                try:
                    trace = trace_memory(model, batch, candidate, narrow, on_gpu, balance)
                except LAYOUT_ERRORS:
                    continue
                # What is built whole, is built on the CPU, except for 4-bit weights.
                by_layer = can_load_by_layer(recipe.model, recipe.lora) or (on_gpu and recipe.model.quantization is None)
                return cls(candidate, computing, sizes, trace, recipe.optimizer, on_gpu, adapted(model), by_layer)
        raise RecipeError(f"batching.layout: {layout} is not for this model; set auto, or padded")

    def estimate(self, strategy: StrategyKind, processes: int, tokens: int) -> MemoryEstimate:
        """Estimate one of `processes` processes under a strategy, with micro-batches of at most `tokens` tokens."""
        sizes, on_cpu, (base, offloads, part) = self.sizes, not self.on_gpu, strategy.partition("_offload")
        offloads = "" if on_cpu else offloads
        weights, gradients, optimizer = sizes.weight_bytes, sizes.trained_bytes, optimizer_bytes(sizes, self.optimizer)
        buffers, start = 0, weights
        if self.by_layer and base in ("fsdp2", "zero3"):
            start = max(sizes.layer_bytes, sizes.outside_bytes)
        activations = math.ceil(MARGIN * self.trace.peak(tokens)) + sizes.unpacked
        if base == "ddp":
            buffers = gradients  # DDP reduces gradients in buckets, and adds micro-batches up next to them
        elif base == "fsdp2":
            # Layers are gathered in the type that they compute in, so nothing casts them; gradients are as computed, and as reduced.
            width = FLOAT32 if self.computing == "float32" else 2
            buffers = min(width * sizes.outside, sizes.outside_bytes) + FSDP2_LAYERS * min(width * sizes.layer, sizes.layer_bytes)
            width = min(width, sizes.trained_bytes // sizes.trained)
            buffers += (width + FLOAT32) * min(sizes.trained, max(sizes.layer, sizes.outside))
            activations = math.ceil(MARGIN * self.trace.peak(tokens, activations_only=True)) + sizes.unpacked
            weights, gradients, optimizer = (-(-whole // processes) for whole in (weights - sizes.scales, gradients, optimizer))
            weights += sizes.scales
            start += weights
        elif base != "single":
            # DeepSpeed updates a float32 copy of its shard, and has the shard's gradients once more while it does.
            shard = -(-FLOAT32 * sizes.trained // processes)
            buffers = FLOAT32 * (min(ZERO_BUCKET, sizes.trained) if on_cpu else ZERO_BUCKET)
            if base == "zero3":
                gathered = min(sizes.weights, ZERO3_LIVE) + min(sizes.weights, ZERO3_PREFETCHED)
                buffers += gathered * sizes.weight_bytes // sizes.weights
                weights = -(-weights // processes)
            weights, optimizer = weights + shard, 2 * shard
            gradients = gradients if base == "zero1" else shard
            activations = max(activations, 0 if offloads else shard)
            start += weights
        one = MemoryEstimate(strategy, processes, weights, gradients, optimizer, buffers, activations, start)
        return self._offloaded(one, base, part == "") if offloads else one

    def _offloaded(self, one: MemoryEstimate, base: str, with_weights: bool) -> MemoryEstimate:
        """Move what a strategy offloads from the GPU to main memory, and add the buffers of the copies between them.

        Args:
            one: the estimate without offload.
            base: its strategy.
            with_weights: weights move as well, if the strategy shards them.
        """
        sizes, shard = self.sizes, one.optimizer // 2
        if base == "fsdp2":  # shards of layers are copied to the GPU before they are gathered
            moved, buffers = one.weights - sizes.scales, -(-FSDP2_LAYERS * sizes.layer_bytes // one.processes)
            gradients, host = 0, moved + one.gradients + one.optimizer
        else:
            moved = one.weights if base == "zero3" and with_weights else shard
            buffers = 0 if base == "zero3" else FLOAT32 * min(sizes.trained, max(sizes.layer, sizes.outside))
            gradients, host = one.gradients if base == "zero1" else 0, moved + ZERO_COPIES[base] * shard
        return replace(
            one,
            weights=one.weights - moved,
            gradients=gradients,
            optimizer=0,
            buffers=one.buffers + buffers,
            start=one.start - moved,
            host=host,
        )

    def budget(self, strategy: StrategyKind, processes: int, memory: int, costs: Costs) -> int:
        """Return the most tokens with which a process fits into `memory` bytes, or those of the largest comparison if they are more."""
        low, high = int(costs.tokens.max()), MOST_TOKENS + 1  # `low` fits, or is the least there can be; `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.estimate(strategy, processes, middle).fits(memory) else (low, middle)
        return low


def optimizer_bytes(sizes: ModelSizes, optimizer: Optimizer) -> int:
    """Return the bytes of AdamW's two moments; in 8 bits there is a float32 scale for each 256 values."""
    return 2 * sizes.trained_bytes if optimizer.name == "adamw" else math.ceil(2 * (1 + FLOAT32 / 256) * sizes.trained)


GPU_ATTENTION = "rmtrain_segments_as_on_gpu"
AttentionInterface.register(GPU_ATTENTION, partial(attend, as_on_gpu=True))
AttentionMaskInterface.register(GPU_ATTENTION, lambda *_, **__: None)


def trace_memory(
    model: RewardModel, batch: MicroBatch, layout: Layout, narrow: bool, on_gpu: bool, balance: bool = False
) -> MemoryTrace:
    """Run a micro-batch on the CPU, of which only the sizes count, forward and backward on fake tensors.

    Args:
        model: a meta model; it is left with fake tensors.
        narrow: as in `RewardModel.use_layout`.
        on_gpu: take the path of a GPU through attention, also where torch has none.
        balance: as in `RewardModel.forward`.

    Raises:
        RecipeError: the model has control flow that depends on values.
        Exception: one of LAYOUT_ERRORS: the model refuses the layout.
    """
    if layout == "shared_prefix" and not model.pools_last_token:
        raise ValueError("an encoder reads a prompt together with each response")
    # torch without CUDA aborts in the backward of a fake CUDA tensor, so fake CPU tensors stand for those of a GPU elsewhere.
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu and has_gpu else "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants of kernels are real
        _materialize(model, device)
        model.use_layout(layout, narrow and model.pools_last_token)  # an encoder may pool all tokens, which only values show
        if on_gpu and not has_gpu and layout != "padded":
            model.backbone.set_attn_implementation(GPU_ATTENTION)
        try:
            return record_memory(model, batch.to(device), balance)
        except RuntimeError as error:
            if narrow or not (layout == "padded" or isinstance(error, DataDependentOutputException)):
                raise
            name, reason = type(model.backbone).__name__, str(error).partition("\n")[0].rstrip(".")
            problem = f"{name} has data-dependent control flow; its memory cannot be estimated without running it ({reason})"
            raise RecipeError(f"model: {problem}") from error


def record_memory(model: nn.Module, batch: MicroBatch, balance: bool = False) -> MemoryTrace:
    """Record the memory of a forward and backward, of fake tensors or real ones.

    Gradients are in place before, as for all but the first micro-batch of a step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    ledger = _Ledger(model)
    hooks = [parameter.register_hook(ledger.note_gradient) for parameter in trained]  # type: ignore[no-untyped-call]
    with ledger:
        sum(output.sum() for output in tree_leaves(model(batch, balance))).backward()
    for hook in hooks:
        hook.remove()
    return ledger.trace(sum(part.input_ids_RT.numel() for part in batch.rectangles()))


GRADIENT, EXPERTS = 2, 3
"""Kinds of storages, after activations and casts."""


class _Ledger(TorchDispatchMode):
    """Notes each storage from its first tensor to its end, except those that the model had before.

    `torch.distributed._tools.mem_tracker.MemTracker` finds the same peak, but it is private, takes three times as long, and keeps the peak
    alone: without the moments next to it, nothing follows for another number of tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.weights = {_storage_key(parameter) for parameter in model.parameters()}
        self.numbers = dict.fromkeys(map(_storage_key, (*model.parameters(), *model.buffers(), *gradients)), -1)
        # The frozen expert tensors under adapters, also transposed: nothing else that a step computes has three dimensions of such sizes.
        experts = [layer.get_param().shape for layer in model.modules() if isinstance(layer, ParamWrapper)]
        self.experts = {*experts, *(torch.Size((count, columns, rows)) for count, rows, columns in experts)}
        self.kinds: list[int] = []  # of each storage: an activation, a cast of a weight, the gradient of one, or merged experts
        self.events: list[tuple[int, int]] = []  # a storage, and its bytes: negative where it ends

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            result = _grouped_product(*args[:3])
        else:
            result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and _storage_key(args[0]) in self.weights
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, EXPERTS if tensor.shape in self.experts else int(is_cast))
        return result

    def _note(self, tensor: Tensor, kind: int) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.numbers and size:
            self.numbers[key] = len(self.kinds)
            self.kinds.append(kind)
            self.events.append((self.numbers[key], size))
            finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.events.append((self.numbers.pop(key), -size))  # the next storage may have the same address

    def note_gradient(self, gradient: Tensor) -> None:
        """Count a storage as a gradient from its beginning, which was noted when that was not known yet."""
        number = self.numbers.get(_storage_key(gradient), -1)
        if number >= 0:
            self.kinds[number] = GRADIENT

    def trace(self, tokens: int) -> MemoryTrace:
        """Return what was alive after each event, by kind."""
        numbers, sizes = np.array(self.events, dtype=np.int64).T
        kinds = np.array(self.kinds)[numbers]
        return MemoryTrace(tokens, *(np.cumsum(np.where(kinds == kind, sizes, 0)) for kind in range(4)))


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _grouped_product(left: Tensor, right: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The product of a mixture of experts: torch computes it in any type, but knows its fake result in bfloat16 alone."""
    groups: tuple[int, ...] = ()
    if left.ndim == right.ndim:
        groups = (len(offsets),) if left.ndim == 2 and offsets is not None else tuple(left.shape[:1])
    return left.new_empty(*groups, left.shape[-2], right.shape[-1])


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Replace meta tensors by empty ones on the device; parameters that are tied stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                blank = torch.empty_like(parameter, device=device, requires_grad=False)
                made[id(parameter)] = nn.Parameter(blank, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device=device)


def meta_model(model: PretrainedModel | ScratchModel, lora: Lora | None, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """Return the model of a recipe in training mode, as `build_reward_model` makes it but without memory for its weights.

    4-bit weights are held in bfloat16, in which they compute, and everything else of such a model in float32.

    Raises:
        RecipeError: no such model, no `config.json`, sizes that do not fit together, or a LoRA target that is not a linear layer.
    """
    dtype: torch.dtype = getattr(torch, model.dtype)
    if isinstance(model, ScratchModel):
        config, trusted = scratch_config(model.scratch, tokenizer), False
    else:
        trusted = model.trust_remote_code
        config = load_config(ModelRef(model.path, model.revision, "model.path", trusted).checked())
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, len(tokenizer))
    prepare_config(config, model.dropout)
    with quiet_transformers():
        hf = meta_classifier(config, RecipeError, trusted)
    head = find_head(hf, RecipeError)
    set_module_dropout(hf, model.dropout)
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(dtype if model.quantization is None else torch.float32)
    for name, module in hf.named_modules():
        is_packed = model.quantization is not None and isinstance(module, nn.Linear)
        if is_packed and not any(re.fullmatch(pattern, part) for pattern in UNQUANTIZED for part in name.split(".")):
            module.weight.data = module.weight.data.to(PACKED_TYPE)
    install_head(hf, head, None, 0)
    if head.pools_last_token:
        hf.config.pad_token_id = None  # or transformers looks for it among token ids, which have no values here
    backbone = LoadedModel(hf, head, new_head=True, new_modules=(), new_tokens=range(0))
    if model.gradient_checkpointing:
        checkpoint_gradients(backbone, frozen_inputs=lora is not None)
    return RewardModel(hf if lora is None else attach_lora(backbone, lora, None, 0), head, None, dtype).train()
