"""How the processes of a run share its model: what is reduced when, and how a step is made of what was reduced.

Strategies are accelerate's: one process, DDP, FSDP2 (torch's fully_shard) and DeepSpeed ZeRO 1 to 3. A step asks the same four things
of each: a micro-batch, its backward, the update, and the whole of what is held in pieces. A checkpoint holds whole tensors by name,
so that any strategy goes on from any other's.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rmtrain.engine.state_dict import (
    OptimizerValues,
    Tensors,
    model_state_dict,
    optimizer_state,
    restore_model,
    restore_optimizer,
    whole,
)
from rmtrain.errors import RmtrainError
from rmtrain.model.head import head_of
from rmtrain.model.last_layer import layers_of
from rmtrain.model.reward_model import RewardModel


class Strategy:
    """One process, or DDP: every process holds the whole model, and the gradients of a step are reduced with its last micro-batch.

    Args:
        accelerator: as `start` made it.
    """

    shards = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "DDP" if self.accelerator.num_processes > 1 else "one process"

    def prepare(
        self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model and the optimizer as the strategy wraps them.

        Args:
            model, optimizer: whole, on the device.
            clip: the largest global gradient norm; None: any.

        Raises:
            RmtrainError: accelerate wraps them otherwise.
        """
        prepared_model, prepared_optimizer = self.accelerator.prepare(model, optimizer)
        if not self.is_wrapped(prepared_model):
            raise RmtrainError(f"{self.name} was asked for, but accelerate did not wrap the model so; report this")
        return prepared_model, prepared_optimizer

    def is_wrapped(self, model: nn.Module) -> bool:
        """Whether a prepared model is wrapped as the strategy says."""
        processes: int = self.accelerator.num_processes
        return isinstance(model, DistributedDataParallel) == (processes > 1)

    def micro_batch(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Forward and backward of a micro-batch; gradients are reduced in the last one of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(model)

    def backward(self, model: nn.Module, loss: Tensor) -> None:
        """Add the gradients of a loss, which was divided by everything but the number of processes."""
        self.accelerator.backward(loss)

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, clip: float | None) -> tuple[Tensor, bool]:
        """Clip and step; no step where the gradient is not finite, on whichever rank: gradients are averaged, so all see it.

        Returns:
            The global gradient norm before it was clipped, float32 [], and whether there was a step.
        """
        norm = whole(self.accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip))
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            set_lr(optimizer, lr)
            optimizer.step()
        optimizer.zero_grad()
        return norm, is_finite

    def params_without_grad(self, model: nn.Module) -> list[str]:
        """Names of the trainable parameters that got no gradient. Called on all ranks, between backward and update."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors, OptimizerValues]:
        """Whole weights, and the state of the optimizer, as `rmtrain.engine.state_dict` has them, on the main process; empty elsewhere.

        Called on all ranks.
        """
        keep = self.accelerator.is_main_process
        return model_state_dict(model, keep), *optimizer_state(optimizer, model, keep)

    def weights(self, model: nn.Module) -> Tensors:
        """Whole trained weights and buffers on the main process; empty elsewhere. Called on all ranks."""
        return model_state_dict(model, self.accelerator.is_main_process)

    def restore_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Put whole weights back; raises CheckpointError as `restore_model`. Called on all ranks."""
        restore_model(model, tensors)

    def restore_optimizer(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], values: OptimizerValues
    ) -> None:
        """Put the state of an optimizer back; raises CheckpointError as `restore_optimizer`. Called on all ranks."""
        restore_optimizer(optimizer, model, tensors, values)


class Fsdp2(Strategy):
    """Weights, gradients and optimizer state in pieces, one on each process; a layer is whole only while it computes.

    The gradients of every micro-batch are reduced: to keep them whole until the last one would take back the memory that pieces save.
    """

    name = "FSDP2"
    shards = True

    def prepare(
        self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """As of `Strategy`. Under bfloat16 weights travel and compute in bfloat16; the head, rewards and reductions are float32."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers_of(model.backbone)})
        if model.autocast:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
            _cut_head(head_of(model.backbone, model.head), optimizer)
        return super().prepare(model, optimizer, clip)

    def micro_batch(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def is_wrapped(self, model: nn.Module) -> bool:
        return all(isinstance(parameter, DTensor) for parameter in model.parameters())

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors, OptimizerValues]:
        cut(model)
        return super().state(model, optimizer)

    def weights(self, model: nn.Module) -> Tensors:
        cut(model)
        return super().weights(model)

    def restore_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        cut(model)
        super().restore_weights(model, tensors)


def _cut_head(head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the head into pieces on its own, in float32, and let the optimizer know them: accelerate knows one precision alone."""
    before = list(head.parameters())
    fully_shard(head, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    pieces = {id(old): new for old, new in zip(before, head.parameters(), strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [pieces.get(id(parameter), parameter) for parameter in group["params"]]


def cut(model: nn.Module) -> None:
    """Put into pieces what FSDP2 leaves whole after a forward without a backward, such as an evaluation's: it is no parameter then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
