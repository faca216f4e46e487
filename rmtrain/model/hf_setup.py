"""Transformers and PEFT without their remarks, where we check the same things ourselves and stop."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

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


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream depends on `seed` and `purpose` alone."""
    return torch.Generator().manual_seed(_stream(seed, purpose))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Within it, torch's CPU generator stands at the stream of (`seed`, `purpose`); afterwards at where it was before.

    For code of others that draws from the global generator. Only the CPU's is touched: models are made on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_stream(seed, purpose))
        yield


def _stream(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:7], "big")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it, transformers logs errors only, shows no progress bars and announces no renamed functions; afterwards as before."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
