"""Mixtures of experts: the tensors of their experts, the layers of their routers, and the loss that balances the experts.

Since version 5, transformers stores all experts of a layer in one parameter per projection, [experts, ...], instead of linear layers.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from rmtrain.errors import RecipeError

BALANCING = ["gate_logits", "num_experts", "top_k", "attention_mask"]
"""Arguments of `load_balancing_loss_func`, which transformers copies into the module of each mixture that has it."""


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that hold the experts of a mixture; an empty list for any other model.

    A mixture is a model that can record `router_logits`. Its experts are the float parameters of three dimensions in the base model, one
    matrix for each expert, except those of torch's own modules, such as convolutions. Of the types of transformers 5.23, 55 are found; in
    those looked at, these are all experts and nothing else. Without the first condition, xlnet and rwkv would also be found.
    """
    if not any(_recorders(model)):
        return []
    return [
        f"{name}.{parameter_name}"
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torch.")
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and len(parameter) > 1 and parameter.is_floating_point()
    ]


def router_layers(model: PreTrainedModel, experts: Sequence[str]) -> set[str]:
    """Return the names of the linear layers that choose or weigh experts: those of routers, and gates of one output next to experts.

    Most routers hold a bare matrix, which adapters cannot target.
    """
    classes, found = tuple(_recorders(model)), set()
    for block in {name.rsplit(".", 2)[0] for name in experts}:  # without the module of the experts and the parameter
        parts = [(name, part) for name, part in model.get_submodule(block).named_modules() if name]
        routers = tuple(f"{name}." for name, part in parts if isinstance(part, classes))
        for name, part in parts:
            if isinstance(part, nn.Linear) and (part.out_features == 1 or f"{name}.".startswith(routers)):
                found.add(f"{block}.{name}")
    return found


def _recorders(model: nn.Module) -> Iterator[type[nn.Module]]:
    """Yield the classes of modules whose outputs transformers records as `router_logits`."""
    for module in model.modules():
        recorders = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits", ())
        for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type):
                yield target


def taken_for_experts(model: PreTrainedModel, names: Sequence[str]) -> set[str]:
    """Return the linear layers that PEFT would silently leave out, to adapt the experts of the mixture in their place.

    PEFT converts adapters of transformers 4, where each expert had linear layers, by the last part of their names. Shared experts and
    layers without experts still have linear layers of these names, such as `gate_proj`; PEFT has no way to name them.
    """

    def is_kept(last: str) -> bool:
        config = LoraConfig(target_modules=[last])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # an expert's two halves of one tensor must be converted together
            return False
        return bool(config.target_modules == {last})

    kept = {last: is_kept(last) for last in {name.rpartition(".")[2] for name in names}}
    return {name for name in names if not kept[name.rpartition(".")[2]]}


def check_balance(backbone: Any) -> None:
    """Raise RecipeError if the model has no router, or transformers has no balancing loss for it."""
    if _balancing_function(backbone) is None:
        kind = backbone.config.model_type
        if not any(_recorders(backbone)):
            raise RecipeError(f"objective.router_balance: {kind} has no router to balance; set null")
        raise RecipeError(f"objective.router_balance: transformers has no balancing loss for {kind}; set null")


def router_balance(backbone: Any, router_logits: tuple[Tensor, ...], attention_mask_RT: Tensor | None) -> Tensor:
    """Compute the balancing loss of Switch Transformers (arXiv:2101.03961, eq. 4 to 6) over the tokens of a micro-batch, float32 [].

    It is the number of experts times the sum over experts of the share of tokens that are sent to an expert, times the mean probability
    of that expert; `top_k` if all experts are used equally. Padding is not counted.

    Args:
        router_logits: [tokens, experts] of each layer that has a router, as transformers records them.
        attention_mask_RT: 1 for real tokens; None: all are.
    """
    balance = _balancing_function(backbone)
    assert balance is not None, "checked before the first step"
    top_k: int = backbone.config.get_text_config().num_experts_per_tok
    loss: Tensor = balance(router_logits, router_logits[0].shape[-1], top_k, attention_mask_RT)
    return loss


def _balancing_function(backbone: Any) -> Callable[..., Tensor] | None:
    """Return the balancing loss in the module of the model's class, if it is the usual one and the model records what it needs."""
    function = getattr(sys.modules[type(backbone.base_model).__module__], "load_balancing_loss_func", None)
    is_usual = function is not None and list(inspect.signature(function).parameters) == BALANCING
    can_record = "router_logits" in (getattr(type(backbone.base_model), "_can_record_outputs", None) or {})
    return function if is_usual and can_record else None
