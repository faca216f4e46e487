"""What we set in a model's configuration: one output, token ids, dropout."""

import re
from typing import Any

from torch import nn
from transformers import PretrainedConfig

DROPOUT = re.compile(r"(dropout|pdrop|layerdrop|drop_?path|jitter_noise)", re.IGNORECASE)


def set_single_output(config: PretrainedConfig) -> None:
    """One label named reward, read as a plain number: pipelines and servers then apply no sigmoid."""
    config.num_labels = 1
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}
    config.problem_type = "regression"


def set_token_ids(config: PretrainedConfig, tokenizer: Any) -> None:
    """Take the pad id from the tokenizer, and the begin and end ids where it has them, at both levels of the configuration."""
    for level in {id(level): level for level in (config, config.get_text_config())}.values():
        level.pad_token_id = tokenizer.pad_token_id
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name, None) is not None:
                setattr(level, name, getattr(tokenizer, name))


def set_dropout(config: PretrainedConfig, probability: float) -> None:
    """Set every dropout probability of a configuration, and remove other noise of training such as LayerDrop."""
    for level in {id(level): level for level in (config, config.get_text_config())}.values():
        for name, value in level.to_dict().items():
            if DROPOUT.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(level, name, probability if "dropout" in name.lower() or "pdrop" in name.lower() else 0.0)


def set_module_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout module of a model, including those that no key of the configuration reaches."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            module.p = probability
