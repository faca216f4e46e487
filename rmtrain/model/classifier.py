"""A transformers model for sequence classification with one output: its score head, settings, dropout and seeds."""

import copy
import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rmtrain.errors import RmtrainError
from rmtrain.model.last_token_classifier import has_classifier, register_classifier

BUILD_ERRORS = (
    StrictDataclassError,
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)
"""Errors that classes of transformers raise for a configuration that does not suit them."""
NOISE = re.compile(r"(dropout|pdrop|layerdrop|drop_?path|jitter_noise)", re.IGNORECASE)


class RewardHead(nn.Linear):
    """A linear layer to one number that computes in float32 (float64 for float64 input), whatever autocast is on.

    Under bfloat16 autocast rewards would have 8 significant bits, and distinct responses would tie.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., H] of any float type to [..., 1] float32, or float64 if the input is."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The name of a model's head module, and whether it reads a causal model's last token."""

    name: str
    pools_last_token: bool

    @property
    def root(self) -> str:
        """The model attribute that contains the head."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True, eq=False)
class SavedHead:
    """A head of one output in the files of a model: the name of its module, weight [1, H], and bias [1], in float32."""

    name: str
    weight_1H: Tensor
    bias_1: Tensor | None


def meta_classifier(
    config: PretrainedConfig, error: Callable[[str], RmtrainError], trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the sequence-classification model of a configuration on the meta device, without memory for its weights.

    A causal model for which transformers has no such class gets one, unless the checkpoint brings its own and is trusted.

    Raises `error(reason)` if the configuration makes no model, or is of no causal model or encoder.
    """
    try:
        if not has_classifier(config, trust_remote_code):
            register_classifier(config, error)
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except BUILD_ERRORS as problem:
        unknown = problem.args[0] if isinstance(problem, KeyError) and problem.args else None
        keys = [key for key, value in config.to_dict().items() if unknown is not None and unknown in (value, *_values(value))]
        what = f"{keys[0]} {unknown!r} is unknown" if keys else f"{type(problem).__name__}: {problem}"
        raise error(f"its configuration makes no {config.model_type} model: {what}") from problem


def _values(value: object) -> tuple[object, ...]:
    return tuple(value.values()) if isinstance(value, dict) else ()


def find_head(model: PreTrainedModel, error: Callable[[str], RmtrainError]) -> HeadSpec:
    """Find the score layer: `score` of causal models, `classifier` or `classifier.out_proj` of models that pool their tokens themselves.

    Those are encoders, and also CTRL and the decoder of ModernBERT.

    Raises `error(reason)` if the model has no known head.
    """
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise error(f"{kind} is an encoder-decoder; choose a causal model or an encoder")
    if isinstance(getattr(model, "score", None), nn.Linear):
        return HeadSpec("score", pools_last_token=True)
    classifier = getattr(model, "classifier", None)
    name = "classifier" if isinstance(classifier, nn.Linear) else "classifier.out_proj"
    if not isinstance(classifier if name == "classifier" else getattr(classifier, "out_proj", None), nn.Linear):
        raise error(f"{kind} has no linear layer score, classifier or classifier.out_proj; choose a causal model or an encoder")
    return HeadSpec(name, pools_last_token=False)


def head_of(model: nn.Module, head: HeadSpec) -> RewardHead:
    """Return the head in use: under PEFT the trained copy, not the original next to it."""
    module = model
    for part in head.name.split("."):
        module = getattr(module, part)
        if isinstance(module, ModulesToSaveWrapper):
            module = module.modules_to_save[module.active_adapters[0]]
    assert isinstance(module, RewardHead), f"{head.name} is a {type(module).__name__}"
    return module


def device_of(parameter: Tensor) -> torch.device:
    """Return the device that a parameter computes on: an offloaded shard is in main memory, and is copied there."""
    return torch.device(parameter.device_mesh.device_type) if isinstance(parameter, DTensor) else parameter.device


def install_head(model: PreTrainedModel, head: HeadSpec, saved: SavedHead | None, seed: int) -> None:
    """Replace the model's head by a RewardHead of the same name, with saved or new weights.

    New weights are N(0, 1/sqrt(H + 1)) (Stiennon et al., arXiv:2009.01325, appendix B.1), drawn in float32 on the CPU from
    a generator of their own: the same bytes for any dtype and number of processes. A new bias is zero.
    """
    old = model.get_submodule(head.name)
    assert old.out_features == 1, f"{head.name} has {old.out_features} outputs"
    weight_1H, bias_1 = (None, None) if saved is None else (saved.weight_1H, saved.bias_1)
    if weight_1H is None:
        deviation = 1 / math.sqrt(old.in_features + 1)
        weight_1H = torch.empty(1, old.in_features).normal_(0, deviation, generator=generator(seed, "head"))
    has_bias = old.bias is not None or bias_1 is not None
    # Built on the meta device, because nn.Linear's own initialization would move the global generator.
    new = RewardHead(old.in_features, 1, bias=has_bias, device="meta", dtype=torch.float32)
    new = new.to_empty(device=old.weight.device)
    with torch.no_grad():
        new.weight.copy_(weight_1H)
        if new.bias is not None:
            new.bias.zero_() if bias_1 is None else new.bias.copy_(bias_1)
    model.set_submodule(head.name, new)


def prepare_config(config: PretrainedConfig, dropout: float) -> None:
    """Set one label, named reward, and every dropout probability; switch off other training noise such as LayerDrop; and remove a pad
    id that has no embedding.

    `problem_type: regression` keeps pipelines and servers from applying a sigmoid.
    """
    config.num_labels = 1
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}
    config.problem_type = "regression"
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        config._attn_implementation = "eager"  # before 5.21, transformers computes Gemma 2 by SDPA, which has no soft caps
    for level in _levels(config):
        if pad_beyond(level) is not None:
            level.pad_token_id = None
        for name, value in level.to_dict().items():
            if NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(level, name, dropout if "dropout" in name.lower() or "pdrop" in name.lower() else 0.0)


def set_token_ids(model: PreTrainedModel, tokenizer: Any) -> None:
    """Copy the pad id, and the begin and end ids if there are any, from the tokenizer to both levels of a model's configuration."""
    for level in _levels(model.config):
        level.pad_token_id = tokenizer.pad_token_id
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name, None) is not None:
                setattr(level, name, getattr(tokenizer, name))
    # The pad token gets no gradient. A model that pads with its end token has that one here, whose embedding would never train.
    with suppress(NotImplementedError):  # CANINE hashes characters, and has no table of tokens
        embeddings = model.get_input_embeddings()
        if getattr(embeddings, "padding_idx", None) is not None:
            embeddings.padding_idx = tokenizer.pad_token_id


def _levels(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration, and that of its text model if it is another one (multimodal models)."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def pad_beyond(config: PretrainedConfig) -> int | None:
    """Return the pad id of a configuration if it has no embedding, on which transformers would fail."""
    pads = [(getattr(level, "pad_token_id", None), getattr(level, "vocab_size", None)) for level in _levels(config)]
    return next((pad for pad, tokens in pads if pad is not None and tokens is not None and not 0 <= pad < tokens), None)


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
