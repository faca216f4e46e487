"""The score head: which module of a transformers model it is, and how a new one begins."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from rmtrain.errors import RmtrainError
from rmtrain.model.hf_setup import generator


class RewardHead(nn.Linear):
    """A linear layer to one number that computes in float32 (of a float64 model in float64) whatever autocast is on.

    Under bfloat16 autocast rewards land on a grid of 8 bits and distinct responses tie.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., H] of any float type to [..., 1] float32, or float64 where the input is."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Where a model keeps its head: the module's name, and whether it reads a causal model's last token."""

    name: str
    pools_last_token: bool

    @property
    def weight(self) -> str:
        """The head's key in a state dict."""
        return f"{self.name}.weight"

    @property
    def root(self) -> str:
        """The model's own attribute that holds the head."""
        return self.name.partition(".")[0]


def outline(config: PretrainedConfig, refuse: Callable[[str], RmtrainError], trust_remote_code: bool = False) -> PreTrainedModel:
    """The sequence-classification model of a configuration without memory for its weights.

    Raises:
        refuse(reason): transformers has no such model for the architecture, and the checkpoint brings none that is trusted.
    """
    of_its_own = trust_remote_code and AutoModelForSequenceClassification.__name__ in getattr(config, "auto_map", {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not of_its_own:
        raise refuse(f"transformers has no sequence-classification model for {config.model_type}; choose another architecture")
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def find_head(model: PreTrainedModel, refuse: Callable[[str], RmtrainError]) -> HeadSpec:
    """Find the linear layer to the score: `score` of causal models, `classifier` or `classifier.out_proj` of encoders.

    Raises:
        refuse(reason): the model has no head that is known, or reads its reward in a way that is not.
    """
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise refuse(f"{kind} is an encoder-decoder; expected a causal model or an encoder")
    if isinstance(getattr(model, "score", None), nn.Linear):
        return HeadSpec("score", pools_last_token=True)
    classifier = getattr(model, "classifier", None)
    name = "classifier" if isinstance(classifier, nn.Linear) else "classifier.out_proj"
    if not isinstance(classifier if name == "classifier" else getattr(classifier, "out_proj", None), nn.Linear):
        raise refuse(
            f"{kind} has no linear layer score, classifier or classifier.out_proj; expected a causal model or an encoder"
        )
    model_type = model.config.model_type
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise refuse(f"{kind} is a causal model that pools in a way of its own; expected one with a head named score")
    return HeadSpec(name, pools_last_token=False)


def head_of(model: nn.Module, place: HeadSpec) -> RewardHead:
    """The head in use: under PEFT the trained copy, not the original beside it."""
    module = model
    for part in place.name.split("."):
        module = getattr(module, part)
        if isinstance(module, ModulesToSaveWrapper):
            module = module.modules_to_save[module.active_adapters[0]]
    assert isinstance(module, RewardHead), f"{place.name} is a {type(module).__name__}"
    return module


def install_head(model: PreTrainedModel, place: HeadSpec, weight_1H: Tensor | None, bias_1: Tensor | None, seed: int) -> None:
    """Replace the model's head by a RewardHead under the same name, with these weights or new ones.

    New weights are N(0, 1/sqrt(H + 1)) (Stiennon et al., arXiv:2009.01325, appendix B.1), drawn in float32 on the CPU from
    a generator of their own: the same bytes for any dtype and number of processes. A new bias is zero.

    Args:
        weight_1H, bias_1: float weights of a checkpoint; None: new ones, and no or a zero bias.
        seed: of new weights.
    """
    old = model.get_submodule(place.name)
    assert old.out_features == 1, f"{place.name} has {old.out_features} outputs"
    if weight_1H is None:
        deviation = 1 / math.sqrt(old.in_features + 1)
        weight_1H = torch.empty(1, old.in_features).normal_(0, deviation, generator=generator(seed, "head"))
    blank = RewardHead(old.in_features, 1, bias=old.bias is not None, device="meta", dtype=torch.float32)
    head = blank.to_empty(device=old.weight.device)  # its usual start would move the global generator
    with torch.no_grad():
        head.weight.copy_(weight_1H)
        if head.bias is not None:
            head.bias.zero_() if bias_1 is None else head.bias.copy_(bias_1)
    model.set_submodule(place.name, head)
