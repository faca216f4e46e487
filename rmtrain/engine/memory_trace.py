"""What each process keeps of a model and its training under each strategy, from what one process would keep of all of it.

One process and DDP keep everything. FSDP2 and ZeRO keep pieces, and beside them what they gather in order to compute, and what they
collect before it is sent. Every strategy begins with the whole model on each GPU, and cuts it up there.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import AttentionMaskInterface

from rmtrain.batching.layout import Layout, MicroBatch, Segments
from rmtrain.errors import RecipeError
from rmtrain.model.attention import VARLEN_TYPES, KeysWanted, LastTokens, attend
from rmtrain.model.build import UNQUANTIZED, checkpoint_gradients, scratch_config
from rmtrain.model.head import find_head, install_head, meta_classifier
from rmtrain.model.hf_setup import quiet_transformers, set_dropout, set_module_dropout, set_single_output
from rmtrain.model.last_layer import layers_of
from rmtrain.model.layout_probe import LAST_TOKEN_ERRORS, LAYOUT_ERRORS
from rmtrain.model.lora import attach_lora
from rmtrain.model.pretrained import LoadedModel, ModelRef, load_config
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Lora, Optimizer, PretrainedModel, ScratchModel

PACKED_TYPE = torch.bfloat16
"""What 4-bit weights compute in; a model without memory has them in it."""


def meta_model(model: PretrainedModel | ScratchModel, lora: Lora | None, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """The model of a recipe in training mode, as `build_reward_model` makes it but without memory for its weights.

    4-bit weights stand there in bfloat16, in which they compute, and all else of such a model in float32.

    Raises:
        RecipeError: no such model, no `config.json`, sizes that do not go together, or a target of LoRA that is no linear layer.
    """
    dtype: torch.dtype = getattr(torch, model.dtype)
    with quiet_transformers():
        hf = meta_classifier(
            _config(model, tokenizer), RecipeError, isinstance(model, PretrainedModel) and model.trust_remote_code
        )
    place = find_head(hf, RecipeError)
    set_module_dropout(hf, model.dropout)
    _set_types(hf, dtype, packed=model.quantization is not None)
    install_head(hf, place, None, None, 0)
    if place.pools_last_token:
        hf.config.pad_token_id = None  # else transformers looks for it among token ids, which have no values here
    backbone = LoadedModel(hf, place, new_head=True, new_modules=(), new_tokens=range(0))
    if model.gradient_checkpointing:
        checkpoint_gradients(backbone, frozen_inputs=lora is not None)
    return RewardModel(hf if lora is None else attach_lora(backbone, lora, None, 0), place, None, dtype).train()


def _config(model: PretrainedModel | ScratchModel, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    if isinstance(model, ScratchModel):
        config = scratch_config(model.scratch, tokenizer)
    else:
        origin = ModelRef(model.path, model.revision, "model.path", RecipeError, model.trust_remote_code)
        config = load_config(origin.checked())
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, len(tokenizer))
    set_single_output(config)
    set_dropout(config, model.dropout)
    return config


def _set_types(hf: PreTrainedModel, dtype: torch.dtype, packed: bool) -> None:
    """The type of each weight: that of the recipe; where linear layers are packed, theirs and float32 for all others."""
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(torch.float32 if packed else dtype)
    for name, module in hf.named_modules() if packed else ():
        if isinstance(module, nn.Linear) and not _is_whole(name):
            module.weight.data = module.weight.data.to(PACKED_TYPE)


def _is_whole(name: str) -> bool:
    """Whether 4-bit weights leave a module whole."""
    return any(re.fullmatch(pattern, part) for pattern in UNQUANTIZED for part in name.split("."))


OUTLINED_CPU, OUTLINED_GPU = "rmtrain_outlined_cpu", "rmtrain_outlined_gpu"
PACKED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: itself, and the scale of its 64, which is packed again (arXiv:2305.14314, section 3)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, or all that is outside of layers.

    weights, trained: how many there are, and how many of them train. bytes, trained_bytes: what they take as they are held.
    """

    weights: int
    bytes: int
    trained: int
    trained_bytes: int

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], packed: bool) -> Self:
        """Count parameters; of a model with 4-bit weights those in bfloat16 are these."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return cls(
            weights=sum(parameter.numel() for parameter in parameters),
            bytes=sum(_bytes_held(parameter, packed) for parameter in parameters),
            trained=sum(parameter.numel() for parameter in trained),
            trained_bytes=sum(_bytes_held(parameter, packed) for parameter in trained),
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model is made of.

    all: everything. rest: what is outside of layers: embeddings, last norm, head. layer: the largest layer.
    largest: weights of the largest tensor that trains. matrices: weights of all that train and have at least 4096.
    unpacked: bytes of the largest 4-bit tensor while it computes; 0 where there are none.
    """

    all: Part
    rest: Part
    layer: Part
    largest: int
    matrices: int
    unpacked: int

    @classmethod
    def of(cls, model: RewardModel, packed: bool) -> Self:
        """Count the parameters of a model, outlined or not."""
        parameters = list(model.parameters())
        layers = [list(layer.parameters()) for layer in layers_of(model.backbone)]
        inside = {id(parameter) for layer in layers for parameter in layer}
        trained = [parameter.numel() for parameter in parameters if parameter.requires_grad]
        return cls(
            all=Part.of(parameters, packed),
            rest=Part.of([parameter for parameter in parameters if id(parameter) not in inside], packed),
            layer=max((Part.of(layer, packed) for layer in layers), key=lambda part: part.bytes, default=Part(0, 0, 0, 0)),
            largest=max(trained),
            matrices=sum(numel for numel in trained if numel >= 4096),
            unpacked=max((2 * p.numel() for p in parameters if packed and p.dtype == PACKED_TYPE), default=0),
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes alive, beside the weights, at each new tensor of a forward and backward that began without gradients.

    alive_M3: int64 [moments, 3]: activations, casts of weights, gradients.
    """

    alive_M3: NDArray[np.int64]

    def peak(self, gradients: float = 0.0, casts: float = 1.0) -> int:
        """The most that was alive.

        Args:
            gradients: the share of those in place that counts; 0: they have a place of their own.
            casts: the same of casts of weights.
        """
        return int((self.alive_M3 @ np.array([1.0, casts, gradients])).max())

    @property
    def last(self) -> int:
        """Activations at the end of backward, when the gradients of the embeddings come."""
        return int(self.alive_M3[-1, 0])


def trace(
    model: RewardModel, batch: MicroBatch, layout: Layout, on_gpu: bool, weights: torch.dtype | None = None, narrow: bool = True
) -> Trace:
    """Run a micro-batch forward and backward without memory.

    Args:
        model: outlined, with `autocast` as in the run; it is left with tensors that have no values.
        batch: on the CPU; of its values only the sizes count.
        layout: of the batch.
        on_gpu: a GPU is meant. Where torch can make none of its tensors, others stand for them, and only attention knows the difference.
        weights: the type of the weights, where a strategy gathers them in another one than they are held in.
        narrow: as of `RewardModel.use_layout`.

    Raises:
        RecipeError: the model does not run without values, or not in the layout.
    """
    with _without_values(model, layout, on_gpu, weights, narrow) as device:
        return traced(model, batch.to(device))


def takes(model: RewardModel, batch: MicroBatch, layout: Layout, on_gpu: bool, narrow: bool) -> bool:
    """Whether a model runs in a layout. Arguments are those of `trace`, raises as it does."""
    if layout != "padded" and not model.pools_last_token:
        return False  # an encoder looks both ways
    refusals = LAST_TOKEN_ERRORS if narrow else LAYOUT_ERRORS
    with _without_values(model, layout, on_gpu, None, narrow) as device, torch.no_grad():
        try:
            model(batch.to(device))
        except refusals:
            return False
    return True


@contextmanager
def _without_values(
    model: RewardModel, layout: Layout, on_gpu: bool, weights: torch.dtype | None, narrow: bool
) -> Iterator[torch.device]:
    """Within it the model is one of fake tensors, set to the layout. Gives the device that they are said to be on."""
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    values = FakeTensorMode(allow_non_fake_inputs=True)  # constants of kernels are real numbers
    with values, _GroupedProducts():  # type: ignore[no-untyped-call]
        materialize(model, device, weights)
        model.use_layout(layout, narrow)
        if layout != "padded":
            model.backbone.set_attn_implementation(OUTLINED_GPU if on_gpu else OUTLINED_CPU)
        try:
            yield device
        except LAYOUT_ERRORS as error:
            raise RecipeError(f"batching.layout: {layout} is not for this model; set auto, or padded") from error
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise RecipeError(
                f"--dry-run: {type(model.backbone).__name__} looks at values to choose what it computes, so that its activations cannot be "
                f"known without a run ({reason})"
            ) from error


def traced(model: RewardModel, batch: MicroBatch) -> Trace:
    """The trace of a forward and backward of tensors as they are, with memory or without."""
    ledger = _Ledger(model)
    with ledger:
        model(batch).sum().backward()
    return Trace(np.array(ledger.moments, dtype=np.int64))


def materialize(model: nn.Module, device: torch.device, weights: torch.dtype | None = None) -> None:
    """Put tensors of the device in the place of those of the meta device; `weights`: with parameters of this type."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    blank = torch.empty(parameter.shape, dtype=weights or parameter.dtype, device=device)
                    made[id(parameter)] = nn.Parameter(blank, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


class _GroupedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the products of a mixture of experts, which torch computes in any type but outlines in bfloat16 alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._grouped_mm.default:
            return func(*args, **(kwargs or {}))
        left, right = args[0], args[1]
        groups = (len(args[2]),) if left.ndim == right.ndim == 2 else left.shape[:1] if left.ndim == right.ndim else ()
        return left.new_empty(*groups, left.shape[-2], right.shape[-1])


class _Ledger(TorchDispatchMode):
    """Notes each storage from its first tensor to its last, except those of weights and buffers, which were there before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = [0, 0, 0]
        self.moments: list[tuple[int, ...]] = [(0, 0, 0)]
        self.parameters = {_storage(parameter) for parameter in model.parameters()}
        self.kinds: dict[int, int] = dict.fromkeys(self.parameters | {_storage(buffer) for buffer in model.buffers()}, -1)
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def __exit__(self, *arguments: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*arguments)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and _storage(args[0]) in self.parameters
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor, int(is_cast))
        return result

    def _note(self, tensor: Tensor, kind: int) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.kinds or not size:
            return
        self.kinds[key] = kind
        finalize(storage, self._forget, key, size)
        self.alive[kind] += size
        self.moments.append(tuple(self.alive))

    def _forget(self, key: int, size: int) -> None:
        self.alive[self.kinds.pop(key)] -= size

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        key = storage._cdata
        if self.kinds.get(key, 2) != 2:
            self.alive[self.kinds[key]] -= storage.nbytes()
            self.alive[2] += storage.nbytes()
            self.kinds[key] = 2
            self.moments.append(tuple(self.alive))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True, slots=True)
class _Copies:
    """What attention copies of a row, in tokens: `keys` and values; and `masks`, in scores."""

    keys: int
    masks: int


def _copies(segments: Segments, window: int | None, last: bool, fused: bool) -> _Copies:
    """One kernel gathers all keys; a call for each response copies those of a prefix and a later response, and needs a mask there."""
    keys, masks = 0, 0
    for prefix, lengths in zip(segments.prefixes, segments.responses, strict=True):
        for number, length in enumerate(lengths):
            seen, asked = prefix + length, length if number else prefix + length
            is_copied = fused or (number > 0 and prefix > 0)
            is_masked = (asked != seen and not last) or (window is not None and window < seen)
            keys += seen if is_copied else 0
            masks += (1 if last else asked) * seen if is_masked and not fused else 0
    return _Copies(keys, masks)


class _Attention(torch.autograd.Function):
    """Keeps and gives what attention keeps and gives."""

    @staticmethod
    def forward(ctx: Any, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, copies: _Copies, fused: bool) -> Tensor:
        """[1, T, H, D]. Of pieces, each output is kept beside the whole row that is made of them."""
        _, heads, tokens, size = query_1HTD.shape
        gathered = [one.new_empty(one.shape[1], copies.keys, size) for one in (key_1HTD, value_1HTD)]
        normalizers = query_1HTD.new_empty(heads, tokens, dtype=torch.float32)
        out_1THD = query_1HTD.new_empty(1, tokens, heads, size)
        kept = (query_1HTD, out_1THD) if fused else (query_1HTD, key_1HTD, value_1HTD, out_1THD.clone())
        ctx.save_for_backward(*kept, *gathered, normalizers, query_1HTD.new_empty(copies.masks))
        ctx.shapes = [(one.shape, one.dtype) for one in (query_1HTD, key_1HTD, value_1HTD)]
        return out_1THD

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of the pieces or of what was gathered, then those of the row."""
        of_parts = [gradients[0].new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        return *(torch.empty_like(one) for one in of_parts), None, None


def _attend_outlined(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    on_gpu: bool,
    segments: Segments | KeysWanted | LastTokens | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """In the place of `attend`, for what it leaves to a fused kernel."""
    if (
        segments is None
        or isinstance(segments, KeysWanted)
        or any(options.get(name) is not None for name in ("softcap", "s_aux"))
    ):
        return attend(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, segments=segments, **options)
    last = isinstance(segments, LastTokens)
    if isinstance(segments, LastTokens):
        key_1HTD, value_1HTD, segments = segments.key_1HTD, segments.value_1HTD, segments.segments
    fused = on_gpu and query_1HTD.dtype in VARLEN_TYPES
    kind = query_1HTD.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query_1HTD, key_1HTD, value_1HTD = (one.to(dtype) for one in (query_1HTD, key_1HTD, value_1HTD))
    copies = _copies(segments, options.get("sliding_window"), last, fused)
    out_1THD: Tensor = _Attention.apply(query_1HTD, key_1HTD, value_1HTD, copies, fused)  # type: ignore[no-untyped-call]
    return out_1THD, None


for _name, _on_gpu in ((OUTLINED_CPU, False), (OUTLINED_GPU, True)):
    AttentionInterface.register(_name, partial(_attend_outlined, on_gpu=_on_gpu))
    AttentionMaskInterface.register(_name, lambda *_, **__: None)


def _bytes_held(parameter: nn.Parameter, packed: bool) -> int:
    if packed and parameter.dtype == PACKED_TYPE:
        return math.ceil(PACKED_BYTES * parameter.numel())
    return parameter.numel() * parameter.element_size()


Name = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
NAMES: tuple[Name, ...] = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")
SHARDING: tuple[Name, ...] = ("fsdp2", "zero1", "zero2", "zero3")
GATHERED_LAYERS = 3
"""FSDP2: a layer that computes, the next one, and the bytes that arrived, from which it is made."""
BUCKET = 500_000_000
"""Gradients that DeepSpeed collects before it sends them (`reduce_bucket_size`); it makes room for all of them at once."""
GATHERED_WEIGHTS = 1_000_000_000
"""ZeRO-3: weights that stay gathered for the next layer that needs them (`stage3_max_live_parameters`)."""
PREFETCHED_WEIGHTS = 50_000_000
"""ZeRO-3: weights that arrive at once (`stage3_prefetch_bucket_size`), and are copied from where they arrive."""
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Training:
    """What one process keeps, and how it is trained.

    trace: of the largest micro-batch of the plan. gathered: the same where FSDP2 gathers the weights; it keeps no casts of them.
    rehearsal: of the micro-batch that a run computes before its first step, as heavy as any could be.
    gathered_bytes: of a weight that FSDP2 gathers.
    optimizer: of the recipe.
    micro_batches: of a rank in a step, the most.
    on_gpu: AdamW needs no memory for a step there.
    """

    sizes: Sizes
    trace: Trace
    gathered: Trace
    rehearsal: Trace
    gathered_bytes: int
    optimizer: Optimizer
    micro_batches: int
    on_gpu: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of one process. The sum of all but `start` is the most it holds in a step.

    start: the most it holds before it has gradients and optimizer: while the model is cut up, and in the rehearsal.
    buffers: what the strategy gathers and collects. activations: what comes on top of all else at the peak, or in the optimizer's step.
    """

    name: Name
    processes: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    start: int

    @property
    def total(self) -> int:
        """The most that the process ever holds."""
        return max(self.weights + self.gradients + self.optimizer + self.buffers + self.activations, self.start)


def share(name: Name, processes: int, training: Training) -> Share:
    """What each of so many processes keeps under a strategy."""
    if name == "single":
        return _whole(training)
    if name == "ddp":
        return _replicated(processes, training)
    return _fsdp2(processes, training) if name == "fsdp2" else _zero(name, processes, training)


def moments(sizes: Sizes, optimizer: Optimizer) -> int:
    """Bytes of AdamW's two moments. In 8 bits those of tensors of at least 4096, with a scale for each 256."""
    if optimizer.name == "adamw":
        return 2 * sizes.all.trained_bytes
    return round(sizes.matrices * 2 * (1 + FLOAT32 / 256)) + (sizes.all.trained - sizes.matrices) * 2 * FLOAT32


def _whole(training: Training) -> Share:
    sizes = training.sizes
    return Share(
        name="single",
        processes=1,
        weights=sizes.all.bytes,
        gradients=sizes.all.trained_bytes,
        optimizer=moments(sizes, training.optimizer),
        buffers=0,
        activations=max(_computing(training), _stepping(training, sizes.largest * FLOAT32)),
        start=sizes.all.bytes + training.rehearsal.peak(gradients=1.0) + sizes.unpacked,
    )


def _replicated(processes: int, training: Training) -> Share:
    """Gradients lie in buckets, and beside them while micro-batches add up before they are reduced."""
    sizes, accumulates = training.sizes, training.micro_batches > 1
    return Share(
        name="ddp",
        processes=processes,
        weights=sizes.all.bytes,
        gradients=sizes.all.trained_bytes,
        optimizer=moments(sizes, training.optimizer),
        buffers=sizes.all.trained_bytes if accumulates else 0,
        activations=max(training.trace.peak() + sizes.unpacked, _stepping(training, sizes.largest * FLOAT32)),
        start=sizes.all.bytes + sizes.all.trained_bytes + training.rehearsal.peak(gradients=1.0) + sizes.unpacked,
    )


def _fsdp2(processes: int, training: Training) -> Share:
    """The peak is within the layers, or where the gradients of the embeddings are whole, at the end."""
    sizes, gathered = training.sizes, training.gathered
    width, reduced = training.gathered_bytes, training.gathered_bytes + FLOAT32
    within = width * (sizes.rest.weights + GATHERED_LAYERS * sizes.layer.weights) + reduced * sizes.layer.trained
    at_end = width * (sizes.rest.weights + sizes.layer.weights) + reduced * sizes.rest.trained
    busiest = max(within + gathered.peak(), at_end + gathered.last)
    piece = _piece(sizes.all.bytes, processes)
    return Share(
        name="fsdp2",
        processes=processes,
        weights=piece,
        gradients=_piece(sizes.all.trained_bytes, processes),
        optimizer=_piece(moments(sizes, training.optimizer), processes),
        buffers=max(within, at_end),
        activations=max(busiest - max(within, at_end), 0),
        start=piece + max(sizes.all.bytes, within + training.rehearsal.peak(casts=0.0)),
    )


def _zero(name: Name, processes: int, training: Training) -> Share:
    """Of DeepSpeed the pieces to update are float32 and lie beside all other weights, be those whole or, in stage 3, pieces themselves.

    Stage 1 keeps whole gradients from micro-batch to micro-batch. In its step every stage has the gradients of its pieces once more.
    """
    sizes = training.sizes
    pieces = _piece(FLOAT32 * sizes.all.trained, processes)
    held = pieces + (_piece(sizes.all.bytes, processes) if name == "zero3" else sizes.all.bytes)
    buffers = _bucket(training) + (_live(sizes) if name == "zero3" else 0)
    return Share(
        name=name,
        processes=processes,
        weights=held,
        gradients=sizes.all.trained_bytes if name == "zero1" else pieces,
        optimizer=2 * pieces,
        buffers=buffers,
        activations=max(training.trace.peak(), pieces + _stepping(training, pieces)),
        start=held + max(sizes.all.bytes, buffers + training.rehearsal.peak()),
    )


def _bucket(training: Training) -> int:
    """Room for the gradients that are sent at once. A CPU gives memory when it is written to, and no more gradients than there are."""
    return BUCKET * FLOAT32 if training.on_gpu else min(BUCKET * FLOAT32, FLOAT32 * training.sizes.all.trained)


def _live(sizes: Sizes) -> int:
    """Bytes of the weights that ZeRO-3 has gathered, and of those that just arrive."""
    weights = sizes.all.weights
    return (min(weights, GATHERED_WEIGHTS) + min(weights, PREFETCHED_WEIGHTS)) * sizes.all.bytes // weights


def _computing(training: Training) -> int:
    """What a forward and backward takes beside gradients in place: at first there are none, and they come while activations go."""
    trace, gradients = training.trace, training.sizes.all.trained_bytes
    peak = trace.peak() if training.micro_batches > 1 else max(trace.peak(gradients=1.0) - gradients, 0)
    return peak + training.sizes.unpacked


def _stepping(training: Training, bytes_at_once: int) -> int:
    """What AdamW takes to step: on a GPU nothing, else two copies of what it updates at once."""
    return 0 if training.on_gpu or training.optimizer.name == "adamw_8bit" else 2 * bytes_at_once


def _piece(whole: int, processes: int) -> int:
    return -(-whole // processes)
