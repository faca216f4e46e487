"""The recipe's model and lora sections to a RewardModel without weights: names, shapes and types, on the meta device.

Of a pretrained model `config.json` is all that is read.
"""

import re

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rmtrain.errors import RecipeError
from rmtrain.model.build import UNQUANTIZED, checkpoint_gradients
from rmtrain.model.config import set_dropout, set_module_dropout, set_single_output
from rmtrain.model.head import find_head, install_head, outline
from rmtrain.model.lora import attach_lora
from rmtrain.model.origin import Origin, load_config
from rmtrain.model.pretrained import Backbone
from rmtrain.model.quiet import quiet_transformers
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.scratch import scratch_config
from rmtrain.recipe.schema import Lora, PretrainedModel, ScratchModel

PACKED_TYPE = torch.bfloat16
"""What 4-bit weights compute in; an outline has them in it."""


def outlined_model(model: PretrainedModel | ScratchModel, lora: Lora | None, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """The model of a recipe in training mode, as `build_reward_model` makes it but without memory for its weights.

    4-bit weights stand there in bfloat16, in which they compute, and all else of such a model in float32.

    Raises:
        RecipeError: no such model, no `config.json`, sizes that do not go together, or a target of LoRA that is no linear layer.
    """
    dtype: torch.dtype = getattr(torch, model.dtype)
    with quiet_transformers():
        hf = outline(_config(model, tokenizer), RecipeError, isinstance(model, PretrainedModel) and model.trust_remote_code)
    place = find_head(hf, RecipeError)
    set_module_dropout(hf, model.dropout)
    _set_types(hf, dtype, packed=model.quantization is not None)
    install_head(hf, place, None, None, 0)
    if place.pools_last_token:
        hf.config.pad_token_id = None  # else transformers looks for it among token ids, which have no values here
    backbone = Backbone(hf, place, new_head=True, new_modules=(), new_tokens=range(0))
    if model.gradient_checkpointing:
        checkpoint_gradients(backbone, frozen_inputs=lora is not None)
    return RewardModel(hf if lora is None else attach_lora(backbone, lora, None, 0), place, None, dtype).train()


def _config(model: PretrainedModel | ScratchModel, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    if isinstance(model, ScratchModel):
        config = scratch_config(model.scratch, tokenizer)
    else:
        origin = Origin(model.path, model.revision, "model.path", RecipeError, model.trust_remote_code)
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
