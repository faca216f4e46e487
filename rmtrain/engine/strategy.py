"""How the processes of a run share its model: what is sharded, what is reduced when, and how a step updates the weights.

Strategies are accelerate's: one process, DDP, FSDP2 (torch's fully_shard) and DeepSpeed ZeRO 1 to 3. Training asks the same four
questions of each: how to run a micro-batch, its backward, the update, and how to gather the full state. A checkpoint holds full
tensors by name, so that any strategy can resume a run of any other.
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

from rmtrain.engine.memory_estimate import StrategyKind
from rmtrain.engine.state_dict import (
    OptimizerValues,
    Tensors,
    full_tensor,
    model_state_dict,
    optimizer_state,
    restore_model,
    restore_optimizer,
)
from rmtrain.errors import RmtrainError
from rmtrain.model.attention import layers_of
from rmtrain.model.classifier import head_of
from rmtrain.model.reward_model import RewardModel


class Strategy:
    """One process, or DDP: every process holds the full model, and gradients are reduced with the last micro-batch of a step.

    Args:
        accelerator: as `start` made it.
    """

    shards = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    @property
    def kind(self) -> StrategyKind:
        """Its key in memory estimates and in the JSON of a dry run."""
        return "ddp" if self.accelerator.num_processes > 1 else "single"

    @property
    def name(self) -> str:
        """The name shown to people and stored in checkpoints."""
        return "DDP" if self.accelerator.num_processes > 1 else "one process"

    def prepare(
        self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap the model and the optimizer.

        Args:
            model, optimizer: not sharded, on the device.
            clip: the largest global gradient norm; None for no limit.

        Raises:
            RmtrainError: accelerate did not wrap the model as the strategy requires.
        """
        prepared_model, prepared_optimizer = self.accelerator.prepare(model, optimizer)
        if not self.is_wrapped(prepared_model):
            raise RmtrainError(f"requested {self.name}, but accelerate did not wrap the model that way; please report this bug")
        return prepared_model, prepared_optimizer

    def is_wrapped(self, model: nn.Module) -> bool:
        """Return whether a prepared model is wrapped as the strategy requires."""
        processes: int = self.accelerator.num_processes
        return isinstance(model, DistributedDataParallel) == (processes > 1)

    def micro_batch(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Context of the forward and backward of a micro-batch; gradients are reduced in the last one of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(model)

    def backward(self, model: nn.Module, loss: Tensor) -> None:
        """Add the gradients of a loss that is already scaled, except for the average over processes."""
        self.accelerator.backward(loss)

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, clip: float | None) -> tuple[Tensor, bool]:
        """Clip the gradient and step, unless the gradient is not finite: gradients are averaged, so every rank decides the same.

        Returns:
            The global gradient norm before clipping, float32 [], and whether there was a step.
        """
        norm = full_tensor(self.accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip))
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            set_lr(optimizer, lr)
            optimizer.step()
        optimizer.zero_grad()
        return norm, is_finite

    def params_without_grad(self, model: nn.Module) -> list[str]:
        """Return the names of trainable parameters without gradient. Called on all ranks, between backward and update."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors, OptimizerValues]:
        """Return full weights and the optimizer's state, see `rmtrain.engine.state_dict`. Called on all ranks.

        Only the main process gets tensors.
        """
        return self.weights(model), *optimizer_state(optimizer, model, self.accelerator.is_main_process)

    def weights(self, model: nn.Module) -> Tensors:
        """Return full trained weights and buffers on the main process, an empty dict elsewhere. Called on all ranks."""
        reshard(model)
        return model_state_dict(model, self.accelerator.is_main_process)

    def restore_weights(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Load full weights; raises CheckpointError as `restore_model`. Called on all ranks."""
        reshard(model)
        restore_model(model, tensors)

    def restore_optimizer(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], values: OptimizerValues
    ) -> None:
        """Load the state of the optimizer; raises CheckpointError as `restore_optimizer`. Called on all ranks."""
        restore_optimizer(optimizer, model, tensors, values)


class Fsdp2(Strategy):
    """Weights, gradients and optimizer state are sharded over the processes; a layer is gathered only while it computes."""

    kind: StrategyKind = "fsdp2"
    name = "FSDP2"
    shards = True

    def prepare(
        self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See `Strategy`. Under bfloat16, weights are gathered and compute in bfloat16; head, rewards and reductions are float32."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers_of(model.backbone)})
        if model.autocast:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
            shard_head(head_of(model.backbone, model.head), optimizer)
        return super().prepare(model, optimizer, clip)

    def micro_batch(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        # Gradients are reduced in every micro-batch: keeping them unsharded until the last one would cost the memory that sharding saves.
        return nullcontext()

    def is_wrapped(self, model: nn.Module) -> bool:
        return all(isinstance(parameter, DTensor) for parameter in model.parameters())


def shard_head(head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Shard the head on its own, in float32, and replace its parameters in the optimizer: accelerate has one precision for all."""
    before = list(head.parameters())
    fully_shard(head, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    shards = {id(old): new for old, new in zip(before, head.parameters(), strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [shards.get(id(parameter), parameter) for parameter in group["params"]]


def reshard(model: nn.Module) -> None:
    """Re-shard modules that FSDP2 leaves gathered after a forward-only pass; their tensors are not parameters until then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
