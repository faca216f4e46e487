"""Weights of others to a model of ours: nothing missing but the head, nothing left over but heads of other tasks."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from rmtrain.model.config import set_dropout, set_module_dropout, set_single_output, set_token_ids
from rmtrain.model.head import HeadPlace, find_head, install_head, outline
from rmtrain.model.origin import Origin, Weights, find_weights, load_config
from rmtrain.model.quiet import quiet_transformers
from rmtrain.model.randomness import generator, seeded

logger = logging.getLogger("rmtrain")

HeadChoice = Literal["auto", "new", "from_checkpoint"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model with one output and a RewardHead.

    Attributes:
        new_head: the head is random, not the checkpoint's.
        new_modules: modules on the way to the score that no checkpoint had: the head where it is new, and for encoders a pooler.
        new_tokens: ids whose embeddings were added because the tokenizer has more tokens than the checkpoint.
    """

    model: PreTrainedModel
    head: HeadPlace
    new_head: bool
    new_modules: tuple[str, ...]
    new_tokens: range


def load_backbone(
    origin: Origin,
    tokenizer: Any,
    head: HeadChoice,
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
    seed: int = 0,
    quantization: Any = None,
) -> Backbone:
    """Load a checkpoint as a sequence-classification model with one output.

    Whether the head is new is decided from the names in the safetensors files before anything is loaded.

    Args:
        tokenizer: gives the token ids of the configuration; embeddings grow if it has more tokens than they have rows.
        head: `from_checkpoint` needs a head with one output; `auto` takes such a head where there is one.
        dtype: of all weights but the head, which is float32.
        seed: of everything that is new.
        quantization: a transformers quantization configuration, or None.

    Raises:
        the origin's error: the files are not there, damaged, not safetensors, of another model, or lack the head that is wanted.
    """
    config = load_config(origin)
    weights = find_weights(origin)
    set_single_output(config)
    set_dropout(config, dropout)
    with quiet_transformers():
        place = find_head(outline(config, origin.refuse, origin.trust_remote_code), origin.refuse)
    old_head = _old_head(weights, place, head, origin)
    model, new_names = _load(origin, config, weights, place, dtype, quantization, seed, with_head=old_head is not None)
    set_module_dropout(model, dropout)
    weight_1H, bias_1 = old_head or (None, None)
    install_head(model, place, weight_1H, bias_1, seed)
    _begin(model, [name for name in new_names if name.rpartition(".")[0] != place.name], seed)
    _freeze_other_towers(model)
    new_tokens = _grow_embeddings(model, len(tokenizer))
    set_token_ids(model.config, tokenizer)
    new_modules = tuple(sorted({name.rpartition(".")[0] for name in new_names}))
    return Backbone(model, place, old_head is None, new_modules, new_tokens)


def _old_head(weights: Weights, place: HeadPlace, choice: HeadChoice, origin: Origin) -> tuple[Tensor, Tensor | None] | None:
    """Weight [1, H] and bias of the checkpoint's head, in float32; None: a new one is to be made."""
    if choice == "new":
        return None
    found = place.weight in weights.names
    weight = weights.tensor(place.weight).float() if found else None
    if weight is not None and weight.ndim == 2 and weight.shape[0] == 1:
        bias = f"{place.name}.bias"
        return weight, weights.tensor(bias).float() if bias in weights.names else None
    came = f"{place.weight} of shape {list(weight.shape)}" if weight is not None else f"no {place.weight}"
    if choice == "from_checkpoint":
        raise origin.refuse(
            f"model.head: from_checkpoint needs {place.weight} of shape [1, H] in {origin.path}, which has {came}"
        )
    if found:
        logger.warning("%s has %s, expected [1, H]: it is replaced", origin.path, came)
    return None


def _load(
    origin: Origin,
    config: PretrainedConfig,
    weights: Weights,
    place: HeadPlace,
    dtype: torch.dtype,
    quantization: Any,
    seed: int,
    with_head: bool,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of its parameters that the checkpoint did not have."""
    placement = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": _quantization_device()}}
    try:
        with quiet_transformers(), seeded(seed, "weights"):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                origin.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **placement,
                **origin.loading,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise origin.refuse(f"cannot load {origin.path}: {error}") from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing = frozenset(report["missing_keys"]) | mismatched
    prefix = model.base_model_prefix
    allowed = {name for name in missing if not with_head and _is_on_the_way(name, prefix)} - (
        mismatched - _within(missing, place.root)
    )
    _refuse_names(origin, "lacks", missing - allowed)
    _refuse_names(
        origin, "has left over", [name for name in report["unexpected_keys"] if _is_ours(name, model, weights, place, with_head)]
    )
    return model, missing


def _quantization_device() -> int | str:
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def _within(names: Collection[str], root: str) -> set[str]:
    return {name for name in names if name.partition(".")[0] == root}


def _is_on_the_way(name: str, prefix: str) -> bool:
    """Whether a parameter lies between the last layer and the score, where a checkpoint of another task has nothing."""
    return not name.startswith(f"{prefix}.") or "pooler" in name.split(".")


def _is_ours(name: str, model: PreTrainedModel, weights: Weights, place: HeadPlace, with_head: bool) -> bool:
    """Whether a tensor that found no place belongs to the layers or to the head, rather than to a head of another task."""
    if with_head and name.partition(".")[0] == place.root:
        return True
    prefix = f"{model.base_model_prefix}."
    if any(other.startswith(prefix) for other in weights.names):
        return name.startswith(prefix)
    return hasattr(model.base_model, name.partition(".")[0]) and "pooler" not in name.split(".")


def _refuse_names(origin: Origin, what: str, names: Collection[str]) -> None:
    if names:
        some = sorted(names)
        more = f" and {len(some) - 3} more" if len(some) > 3 else ""
        raise origin.refuse(
            f"{origin.path} {what} weights: {', '.join(some[:3])}{more}; expected the weights of one transformers model"
        )


def _begin(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """New layers between the last layer and the head: N(0, initializer_range), zero biases, norms of one."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    random = generator(seed, "pooler")
    for name in sorted(names):
        parameter = model.get_parameter(name)
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=random))


def _freeze_other_towers(model: PreTrainedModel) -> None:
    """Freeze what text never reaches, such as the vision part of a model that has one: it would get no gradient."""
    language = getattr(model.base_model, "language_model", None)
    if language is not None and hasattr(model.config, "vision_config"):
        reached = {id(parameter) for parameter in language.parameters()}
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)


def _grow_embeddings(model: PreTrainedModel, tokens: int) -> range:
    """Give each token a row; new rows are the mean of the old ones. Returns the new ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens <= rows:
        return range(0)
    with quiet_transformers():
        embeddings = model.resize_token_embeddings(tokens, mean_resizing=False).weight
    with torch.no_grad():
        embeddings[rows:] = embeddings[:rows].float().mean(dim=0).to(embeddings.dtype)
    logger.info("the tokenizer has %d tokens more than the model: new embeddings are the mean of the old ones", tokens - rows)
    return range(rows, tokens)
