"""Sequence classifiers for causal models that have none in transformers, and the file with which transformers loads them.

`GraniteForSequenceClassification` is made from Granite's own base model and a score layer that is read at the last token, as
transformers makes its own (`GenericForSequenceClassification`). An export contains the few lines that make it as `modeling_reward.py`;
vLLM and OpenRLHF need only the name.
"""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)

from rmtrain.errors import RmtrainError

CODE = "modeling_reward.py"
HEADER = '''"""{name}, which transformers does not have: its causal model with a score layer, read at the last token. Made by rmtrain."""

import torch
from torch import Tensor
from typing import Any
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from {config_module} import {config}
from {module} import {parent}


'''
CLASS = """

class {name}(LastTokenClassifier, {parent}):
    config_class = {config}
    base_model_prefix = "{prefix}"
"""


class LastTokenClassifier(GenericForSequenceClassification):  # type: ignore[misc]  # transformers has no types
    """A base model with a score layer whose output is read at the last token that is not the padding token."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers converts no weights of custom code, and initializes not all of its buffers."""
        return False

    # The forward of the class above passes arguments, and reads outputs, that some models do not have.
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (positions * (input_ids != self.config.pad_token_id)).argmax(-1)
        logits = self.score(hidden[torch.arange(len(last), device=last.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def has_classifier(config: PretrainedConfig, trust_remote_code: bool) -> bool:
    """Return whether transformers, or code of the checkpoint that is trusted, has a sequence-classification class."""
    has_own_code = trust_remote_code and AutoModelForSequenceClassification.__name__ in getattr(config, "auto_map", {})
    return has_own_code or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def text_part(config: PretrainedConfig, trust_remote_code: bool) -> PretrainedConfig:
    """Return the configuration to train: of a model for text and images that has no sequence-classification class, its text part."""
    return config if has_classifier(config, trust_remote_code) else config.get_text_config()


def register_classifier(config: PretrainedConfig, error: Callable[[str], RmtrainError]) -> None:
    """Make a sequence-classification class for a configuration that has none, and register it; raises as `make_classifier`."""
    AutoModelForSequenceClassification.register(type(config), make_classifier(config, error), exist_ok=True)


def make_classifier(config: PretrainedConfig, error: Callable[[str], RmtrainError]) -> type[PreTrainedModel]:
    """Return a sequence-classification class for the causal model of a configuration.

    Raises `error(reason)` if transformers has no decoder for the configuration.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise error(f"{kind} is an encoder-decoder; choose a causal model or an encoder")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_MAPPING:
        raise error(
            f"transformers has neither a causal nor a sequence-classification model for {kind}; choose another architecture"
        )
    causal, base = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], MODEL_MAPPING[type(config)]
    with torch.device("meta"):
        parts = causal(copy.deepcopy(config)).named_children()
    prefix = next((name for name, part in parts if isinstance(part, base)), None)
    if prefix is None:
        raise error(f"{causal.__name__} has no part of the class {base.__name__}; choose another architecture")
    members = {
        "__doc__": f"{causal.__name__} with a score layer in place of its language-model head.",
        "config_class": type(config),
        "base_model_prefix": prefix,
    }
    return type(f"{_stem(causal)}ForSequenceClassification", (LastTokenClassifier, _parent(causal)), members)


def _stem(causal: type) -> str:
    """Return the name of an architecture: `Granite` of GraniteForCausalLM."""
    for end in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"):
        if causal.__name__.endswith(end):
            return causal.__name__.removesuffix(end)
    return causal.__name__


def _parent(causal: type) -> type:
    """Return the class below which an architecture has its models, such as GranitePreTrainedModel."""
    return next(kind for kind in causal.__mro__ if kind.__name__.endswith("PreTrainedModel") and kind is not PreTrainedModel)


def is_made(model: PreTrainedModel) -> bool:
    """Return whether the class of a model is one that transformers does not have."""
    return isinstance(model, LastTokenClassifier)


def write_code(model: PreTrainedModel, directory: Path) -> dict[str, str]:
    """Write the file that makes the class of a model, and return the `auto_map` that names it in `config.json`."""
    made = type(model)
    parent = made.__mro__[made.__mro__.index(GenericForSequenceClassification) + 1]
    names = {
        "name": made.__name__,
        "parent": parent.__name__,
        "module": parent.__module__,
        "config": made.config_class.__name__,
        "config_module": made.config_class.__module__,
        "prefix": made.base_model_prefix,
    }
    source = inspect.getsource(LastTokenClassifier).replace("  # type: ignore[misc]  # transformers has no types", "")
    (directory / CODE).write_text(HEADER.format(**names) + source + CLASS.format(**names), encoding="utf-8")
    return {"AutoModelForSequenceClassification": f"{Path(CODE).stem}.{made.__name__}"}
