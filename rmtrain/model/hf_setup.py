"""Settings that every transformers model gets: one output, token ids, dropout, seeds, and quiet logging."""

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

NOISE = re.compile(r"(dropout|pdrop|layerdrop|drop_?path|jitter_noise)", re.IGNORECASE)


def set_single_output(config: PretrainedConfig) -> None:
    """Set one label, named reward. `problem_type: regression` keeps pipelines and servers from applying a sigmoid."""
    config.num_labels = 1
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}
    config.problem_type = "regression"


def set_token_ids(config: PretrainedConfig, tokenizer: Any) -> None:
    """Copy the pad id, and the begin and end ids if there are any, from the tokenizer to both levels of a configuration."""
    for level in _levels(config):
        level.pad_token_id = tokenizer.pad_token_id
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name, None) is not None:
                setattr(level, name, getattr(tokenizer, name))


def set_dropout(config: PretrainedConfig, probability: float) -> None:
    """Set every dropout probability of a configuration, and switch off other training noise such as LayerDrop."""
    for level in _levels(config):
        for name, value in level.to_dict().items():
            if NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(level, name, probability if "dropout" in name.lower() or "pdrop" in name.lower() else 0.0)


def _levels(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration, and that of its text model if it is another one (multimodal models)."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def set_module_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout module of a model, including those that no key of the configuration controls."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            module.p = probability


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator whose stream depends on `seed` and `purpose` alone."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Set torch's global CPU generator to the stream of (`seed`, `purpose`), and restore it at the end.

    For library code that draws from the global generator. Only the CPU's is set: models are built on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, purpose).initial_seed())
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars, FutureWarnings and log lines below errors; rmtrain checks the same things and stops."""
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
