"""What each process keeps of a model and its training under each strategy, from what one process would keep of all of it.

One process and DDP keep everything. FSDP2 and ZeRO keep pieces, and beside them what they gather in order to compute, and what they
collect before it is sent. Every strategy begins with the whole model on each GPU, and cuts it up there.
"""

from dataclasses import dataclass
from typing import Literal

from rmtrain.model.tracing import Sizes, Trace
from rmtrain.recipe.schema import Optimizer

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
