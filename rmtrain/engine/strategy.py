"""How the processes of a run share its model: what is sharded, what is reduced when, and how a step updates the weights.

Strategies are accelerate's: one process, DDP, FSDP2 (torch's fully_shard) and DeepSpeed ZeRO 1 to 3, each of which can keep its shards in
main memory. They differ in four things: a micro-batch, its backward, the update, and the full state. That has full tensors by name, so that
any strategy resumes a run of any other.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import get_module_children_bottom_up
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rmtrain.engine.state_dict import (
    Tensors,
    check_names,
    check_weight,
    frozen_fingerprint,
    full_tensor,
    model_state_dict,
    optimizer_state,
    persistent_buffers,
    restore_model,
    restore_optimizer,
    shape_of,
    state_by_parameter,
    trained_parameters,
)
from rmtrain.engine.strategy_kind import StrategyKind, kind_of
from rmtrain.errors import RecipeError, RmtrainError
from rmtrain.model.attention import layers_of
from rmtrain.model.classifier import head_of
from rmtrain.model.reward_model import RewardModel, unwrap

MOMENTS = ("exp_avg", "exp_avg_sq")
WITH_OFFLOAD = {"": "", "offload": " with CPU offload", "offload_optimizer": " with CPU offload of the optimizer"}
LR_SCALE = "lr_scale"
"""Entry of a parameter group: its learning rate, as a multiple of the schedule's."""
LOWEST_SCALE = 1.0
"""A loss that overflows without any factor is not the factor's fault."""
Outcome = Literal["updated", "overflowed", "not_finite"]
"""Of a step: an update, or none since the scaled gradient is beyond float16, or none since the gradient itself is not finite."""


def model_device(accelerator: Accelerator) -> torch.device:
    """Return the device for a rank's model.

    accelerate calls the CPU of one of several ranks `cpu:0`. Moving weights there copies them to another alignment, so that sums round
    differently from those of a single process.
    """
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


class Strategy:
    """One process, or DDP: every process holds the full model, and gradients are reduced with the last micro-batch of a step.

    model, optimizer: as `prepare` wrapped them.
    trained_bytes, frozen: size of the trained weights, and fingerprint of the others.
    clip: the largest global gradient norm; None for no limit.
    shards, by_layer: part of the state is sharded; also the weights, so that each layer can be loaded and sharded before the next one.
    scaler: multiplies losses under float16, whose small gradients would be zero otherwise; it does nothing in other types.
    """

    shards = False
    by_layer = False
    model: Any
    optimizer: torch.optim.Optimizer
    trained_bytes: int
    frozen: str | None
    clip: float | None

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.scaler = GradScaler(accelerator.device.type, enabled=False)

    @property
    def kind(self) -> StrategyKind:
        """Its key in memory estimates and in the JSON of a dry run."""
        return "ddp" if self.accelerator.num_processes > 1 else "single"

    @property
    def name(self) -> str:
        """The name shown to people and stored in checkpoints."""
        return "DDP" if self.kind == "ddp" else "one process"

    def place(self, model: RewardModel) -> None:
        """Move a model from the CPU to the device of this process, and shard its weights if the strategy does. Called on all ranks.

        Its optimizer is built afterwards, over the parameters that it then has.
        """
        model.to(model_device(self.accelerator))

    def prepare(self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        """Wrap a model that is in place, and its optimizer. Called on all ranks.

        Raises:
            RmtrainError: accelerate did not wrap the model as the strategy requires.
        """
        self.trained_bytes = sum(shape_of(p).numel() * p.element_size() for p in trained_parameters(model).values())
        self.frozen, self.clip = frozen_fingerprint(model), clip
        self.scaler = GradScaler(self.accelerator.device.type, enabled=model.computing == "float16")
        model.sharded = self.shards and self.accelerator.num_processes > 1
        self.model, self.optimizer = self.wrapped(model, optimizer)
        if not self.is_wrapped():
            raise RmtrainError(f"requested {self.name}, but accelerate did not wrap the model that way; please report this bug")

    def wrapped(self, model: RewardModel, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the model and its optimizer with what the strategy puts around them."""
        wrapped: tuple[nn.Module, torch.optim.Optimizer] = self.accelerator.prepare(model, optimizer)
        return wrapped

    def is_wrapped(self) -> bool:
        """Return whether the model is wrapped as the strategy requires."""
        return isinstance(self.model, DistributedDataParallel) == (self.kind == "ddp")

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Context of the forward and backward of a micro-batch; gradients are reduced in the last one of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is already scaled, except for the average over processes."""
        self.accelerator.backward(self.scaler.scale(loss))

    def update(self, lr: float) -> tuple[Tensor, Outcome]:
        """Clip the gradient and step, unless the gradient is not finite: gradients are averaged, so every rank decides the same.

        Returns:
            The global gradient norm before clipping, float32 [], and the outcome.
        """
        clip, scale = math.inf if self.clip is None else self.clip, self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        is_finite = bool(torch.isfinite(norm))
        self.scaler.update()  # before the step, which can run out of memory and be repeated
        if is_finite:
            self.set_lr(lr)
            self.optimizer.step()
        else:
            self.scaler.update(max(scale / 2, LOWEST_SCALE))
        self.optimizer.zero_grad()
        return norm, "updated" if is_finite else "overflowed" if scale > LOWEST_SCALE else "not_finite"

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter group, by its scale."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get(LR_SCALE, 1.0)

    def params_without_grad(self) -> list[str]:
        """Return the names of trainable parameters without gradient. Called on all ranks, between backward and update."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad and parameter.grad is None]

    # The full state, see `rmtrain.engine.state_dict`. These are called on all ranks; only the main process gets tensors.

    def weights(self) -> Tensors:
        """Return full trained weights and buffers."""
        self.reshard()
        return model_state_dict(self.model, self.accelerator.is_main_process)

    def optimizer_state(self) -> Tensors:
        """Return the optimizer's full state of each trained parameter."""
        return optimizer_state(self.optimizer, self.model, self.accelerator.is_main_process)

    def restore_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load full weights; raises CheckpointError as `restore_model`."""
        self.reshard()
        restore_model(self.model, tensors)

    def restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state of the optimizer; raises CheckpointError as `restore_optimizer`."""
        restore_optimizer(self.optimizer, self.model, tensors)

    def reshard(self) -> None:
        """Re-shard modules that FSDP2 leaves gathered after a forward-only pass; their tensors are not parameters until then."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class Fsdp2(Strategy):
    """Weights, gradients and optimizer state are sharded over the processes; a layer is gathered only while it computes."""

    shards = by_layer = True

    @property
    def kind(self) -> StrategyKind:
        return kind_of(self.accelerator.state.fsdp_plugin)

    @property
    def name(self) -> str:
        return f"FSDP2{WITH_OFFLOAD[self.kind.partition('_')[2]]}"

    def place(self, model: RewardModel) -> None:
        """Load and shard one layer after the other, and then the rest, with the settings of accelerate's plugin.

        accelerate itself shards a model only when all of it is loaded. In half precision, weights are gathered and compute in it; head,
        rewards and reductions are float32.
        """
        plugin, mesh = self.accelerator.state.fsdp_plugin, getattr(self.accelerator, "torch_device_mesh", None)
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers_of(model.backbone)})
        plugin.set_auto_wrap_policy(model)
        is_group = fsdp2_prepare_auto_wrap_policy(plugin, model) or (lambda _: False)
        precision = plugin.mixed_precision_policy or MixedPrecisionPolicy()
        if model.computing != "float32":
            computing: torch.dtype = getattr(torch, model.computing)
            precision = MixedPrecisionPolicy(param_dtype=computing, reduce_dtype=torch.float32, output_dtype=torch.float32)
            in_float32 = MixedPrecisionPolicy(cast_forward_inputs=False)
            fully_shard(head_of(model.backbone, model.head), mp_policy=in_float32, offload_policy=self.offload)
        options: dict[str, Any] = {"mp_policy": precision, "offload_policy": self.offload}
        if mesh is not None:
            options["mesh"] = mesh[tuple(self.accelerator.parallelism_config.fsdp_dim_names)]
        for module in get_module_children_bottom_up(model)[:-1]:
            if is_group(module) and not isinstance(module, FSDPModule):
                model.load(module)
                fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **options)
        model.load(model)
        fully_shard(model, **options)
        model.sharded = self.accelerator.num_processes > 1

    def wrapped(self, model: RewardModel, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        # accelerate would look for the parameters of the optimizer by their addresses, and a rank without a part of a tensor has none.
        return model, optimizer

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        # Gradients are reduced in every micro-batch: keeping them unsharded until the last one would cost the memory that sharding saves.
        return nullcontext()

    @property
    def offload(self) -> OffloadPolicy:
        """Whether shards are in main memory. It is pinned, for copies next to computation, which torch can do only for a GPU."""
        if self.kind == "fsdp2":
            return OffloadPolicy()
        return CPUOffloadPolicy(pin_memory=self.accelerator.device.type == "cuda")

    def is_wrapped(self) -> bool:
        parameters, offloads = list(self.model.parameters()), self.kind == "fsdp2_offload"
        return all(isinstance(one, DTensor) and (one.device.type == "cpu" or not offloads) for one in parameters)


class DeepSpeedStrategy(Strategy):
    """DeepSpeed ZeRO: shards the optimizer's state (stage 1), also gradients (stage 2), also weights (stage 3).

    The prepared model is a DeepSpeedEngine. It trains flat buffers, and `deepspeed.utils` maps each parameter to its part of them.
    """

    shards = True

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        unset_hf_deepspeed_config()  # otherwise transformers shards the weights of stage 3 while it loads them

    @property
    def stage(self) -> int:
        """The ZeRO stage: 1, 2 or 3."""
        return int(self.accelerator.deepspeed_plugin.zero_stage)

    @property
    def kind(self) -> StrategyKind:
        return kind_of(self.accelerator.deepspeed_plugin)

    @property
    def name(self) -> str:
        return f"DeepSpeed ZeRO-{self.stage}{WITH_OFFLOAD[self.kind.partition('_')[2]]}"

    @property
    def by_layer(self) -> bool:  # type: ignore[override]
        return self.stage == 3

    def place(self, model: RewardModel) -> None:
        if self.stage < 3:
            super().place(model)
            return
        from deepspeed.runtime.zero import Init

        one_by_one = getattr(model.backbone.config, "_experts_implementation", "eager") in (None, "eager")
        if one_by_one and any(isinstance(module, ParamWrapper) for module in model.modules()):
            # adapters are then called for each expert that a rank's tokens reach, and ZeRO-3 expects the same calls on all ranks
            name = type(model.backbone.base_model).__name__
            problem = f"ZeRO-3 cannot train adapters of {name}'s experts, which compute one after the other"
            raise RecipeError(f"lora.experts: {problem}; set false, or use the fsdp2 configuration")
        zero = self.accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]
        settings = {key: value for key, value in zero.items() if value != "auto"}
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": settings}
        for module in (*layers_of(model.backbone), model):
            model.load(module)
            Init(module=module, config_dict_or_path=config)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(model_device(self.accelerator))

    def wrapped(self, model: RewardModel, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = 0.0 if self.clip is None else self.clip
        config["train_micro_batch_size_per_gpu"] = 1  # required; its value has no effect, since we scale the losses
        config["zero_force_ds_cpu_optimizer"] = False  # ours runs on the CPU, and DeepSpeed's own would have to be compiled
        return super().wrapped(model, optimizer)

    def is_wrapped(self) -> bool:
        stage, processes = self.model.zero_optimization_stage(), self.model.dp_world_size
        return bool((stage, processes) == (self.stage, self.accelerator.num_processes))

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def update(self, lr: float) -> tuple[Tensor, Outcome]:
        self.set_lr(lr)
        self.model.step()
        norm = torch.as_tensor(self.model.get_global_grad_norm(), dtype=torch.float32, device=self.accelerator.device)
        return norm, "not_finite" if self.model.optimizer.overflow else "updated"

    def params_without_grad(self) -> list[str]:
        from deepspeed.utils import safe_get_full_grad

        return [name for name, parameter in trained_parameters(self.model).items() if safe_get_full_grad(parameter) is None]

    def weights(self) -> Tensors:
        from deepspeed.runtime.zero import GatheredParameters

        tensors: Tensors = {}
        for name, parameter in trained_parameters(self.model).items():
            with GatheredParameters([parameter], enabled=self.stage == 3):
                if self.accelerator.is_main_process:
                    tensors[name] = parameter.detach().cpu().clone()
        if self.accelerator.is_main_process:
            tensors |= {name: buffer.detach().cpu() for name, buffer in persistent_buffers(unwrap(self.model))}
        return tensors

    def restore_weights(self, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param

        trained, buffers = trained_parameters(self.model), dict(persistent_buffers(unwrap(self.model)))
        check_names("weights", [*trained, *buffers], tensors)
        for name, target in (trained | buffers).items():
            check_weight(name, tensors[name], shape_of(target), target.dtype)
        for name, parameter in trained.items():
            value = tensors[name].to(self.accelerator.device)
            with torch.no_grad(), GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value.float())
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])

    def restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        trained = trained_parameters(self.model)
        states = state_by_parameter(tensors, {name: shape_of(p) for name, p in trained.items()})
        if not states:
            return
        # AdamW itself creates the state of the flat buffers only at its first step.
        zero, steps = self.model.optimizer, next(iter(states.values()))["step"]
        for buffer in zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups:
            moments = {key: torch.zeros_like(buffer) for key in MOMENTS}
            zero.optimizer.state[buffer] = {"step": steps.clone().to(buffer.device), **moments}
        self._link_state()
        for name, parameter in trained.items():
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, states[name][key].to(self.accelerator.device), key)

    def optimizer_state(self) -> Tensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors: Tensors = {}
        flat = self.model.optimizer.optimizer.state
        if not flat:
            return tensors
        self._link_state()
        steps = next(iter(flat.values()))["step"]
        for name, parameter in trained_parameters(self.model).items():
            state = {"step": steps, **{key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}}
            if self.accelerator.is_main_process:
                tensors |= {f"{name}/{key}": value.detach().cpu().clone() for key, value in state.items()}
        return tensors

    def _link_state(self) -> None:
        """Map the parameters of stages 1 and 2 to their moments: DeepSpeed does that only after the step of the first group."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self.stage < 3:
            zero = self.model.optimizer
            for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)
