"""DeepSpeed ZeRO: shards the optimizer's state (stage 1), also gradients (stage 2), also weights (stage 3).

DeepSpeed trains flat buffers, and `deepspeed.utils` maps each parameter to its part of them. Full tensors are read and written through
those functions, so that checkpoints are the same as under every other strategy.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rmtrain.engine.memory_estimate import ZERO_STAGES, StrategyKind
from rmtrain.engine.state_dict import (
    Tensors,
    check_names,
    check_weight,
    persistent_buffers,
    state_by_parameter,
    trained_parameters,
)
from rmtrain.engine.strategy import Strategy
from rmtrain.model.reward_model import RewardModel, unwrap

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedStrategy(Strategy):
    """ZeRO stage 1, 2 or 3: the prepared model is a DeepSpeedEngine."""

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
        return ZERO_STAGES[self.stage]

    @property
    def name(self) -> str:
        return f"DeepSpeed ZeRO-{self.stage}"

    def prepare(self, model: RewardModel, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = 0.0 if clip is None else clip
        config["train_micro_batch_size_per_gpu"] = 1  # required; its value has no effect, since we scale the losses
        super().prepare(model, optimizer, clip)

    def is_wrapped(self) -> bool:
        stage, processes = self.model.zero_optimization_stage(), self.model.dp_world_size
        return bool((stage, processes) == (self.stage, self.accelerator.num_processes))

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def update(self, lr: float) -> tuple[Tensor, bool]:
        self.set_lr(lr)
        self.model.step()
        norm = torch.as_tensor(self.model.get_global_grad_norm(), dtype=torch.float32, device=self.accelerator.device)
        return norm, not self.model.optimizer.overflow

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
            check_weight(name, tensors[name], getattr(target, "ds_shape", target.shape), target.dtype)
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
        states = state_by_parameter(tensors, {name: getattr(p, "ds_shape", p.shape) for name, p in trained.items()})
        if not states:
            return
        # AdamW itself creates the state of the flat buffers only at its first step.
        zero, steps = self.model.optimizer, next(iter(states.values()))["step"]
        for buffer in zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups:
            moments = {key: torch.zeros_like(buffer) for key in MOMENTS}
            zero.optimizer.state[buffer] = {"step": steps.clone(), **moments}
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
