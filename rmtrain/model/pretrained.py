"""A checkpoint in a directory or on the Hub, loaded as a sequence-classification model with one output.

Nothing may be missing but the head, and nothing left over but the heads of other tasks: transformers only warns about either, and
trains random layers. What contradicts itself is refused before memory is allocated for it.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rmtrain.data.text.tokenizer import REPLACED_PAD, entries, size_problem
from rmtrain.model.classifier import (
    BUILD_ERRORS,
    HeadSpec,
    SavedHead,
    find_head,
    generator,
    install_head,
    meta_classifier,
    pad_beyond,
    prepare_config,
    quiet_transformers,
    seeded,
    set_module_dropout,
    set_token_ids,
)
from rmtrain.model.last_token_classifier import text_part
from rmtrain.model.layer_weights import LayerWeights
from rmtrain.model.model_files import ModelRef, Stored, Weights, find_weights
from rmtrain.network import HUB_ERRORS, raise_if_passing

FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
SPECIAL_IDS = frozenset(f"{kind}_token_id" for kind in ("bos", "eos", "sep", "cls", "mask", "unk"))
OTHER_TASKS = frozenset(
    (
        *("lm_head", "embed_out", "lm_loss", "mtp", "cls", "decoder", "head", "predictions", "sop_classifier", "pred_layer"),
        *("generator_predictions", "generator_lm_head", "discriminator_predictions", "lm_predictions", "mask_predictions"),
        *("vocab_transform", "vocab_layer_norm", "vocab_projector", "qa_outputs", "multiple_choice_head", "pooler"),
    )
)
"""First parts of the names of other tasks' heads, and of the pooler of encoders whose head has none."""
VALUE_HEAD = "value_head"
"""File, before `.safetensors`, in which LLaMA-Factory saves the head of a reward model."""

logger = logging.getLogger("rmtrain")


def load_config(ref: ModelRef) -> PretrainedConfig:
    """Load the configuration to train, with classes of transformers unless the model's own code is trusted.

    Raises `ref.error` if `config.json` is missing or invalid, the architecture is unknown, or it needs code of its own; or if the
    weights are quantized, a special token has no embedding, or sizes are absurd.
    """
    raw = ref.read_json("config.json", required=True) or {}
    model_type = raw.get("model_type")
    is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not is_known and "auto_map" not in raw:
        raise ref.error(f"{ref.path} has model_type {model_type!r}, which transformers {transformers_version} does not know")
    if not is_known and not ref.trust_remote_code:
        raise ref.error(
            f"{ref.path} needs code of its own (auto_map), which is not run; "
            "allow it with model.trust_remote_code: true and model.revision: a full commit hash of a Hub model"
        )
    problem = size_problem(raw)
    if problem is not None:
        raise ref.error(f"config.json of {ref.path}: {problem}")
    quantized = next((value for key, value in entries(raw) if key == "quantization_config" and value), None)
    if quantized is not None:
        method = quantized.get("quant_method", "unknown method") if isinstance(quantized, dict) else quantized
        remedy = "use the model it was made from; model.quantization: nf4 quantizes that one while loading"
        raise ref.error(f"the weights of {ref.path} are quantized ({method}), and cannot be trained or checked; {remedy}")
    try:
        config = text_part(AutoConfig.from_pretrained(ref.path, **ref.loading), ref.trust_remote_code)
        tokens = int(config.get_text_config().vocab_size)
    except (*HUB_ERRORS, *BUILD_ERRORS) as error:
        raise_if_passing(f"{ref.label}: {ref.path}", error)
        raise ref.error(f"config.json of {ref.path}: {error}") from error
    for key in SPECIAL_IDS & raw.keys():
        ids = raw[key] if isinstance(raw[key], list) else [raw[key]]
        beyond = [number for number in ids if isinstance(number, int) and number >= tokens]
        # transformers also saves the ids that a class of configurations has for its original vocabulary.
        if beyond and raw[key] != getattr(type(config)(), key, None):
            raise ref.error(f"config.json of {ref.path}: {key} is {beyond[0]}, but vocab_size is {tokens}; correct the id")
    return config


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model with one output and a RewardHead.

    new_head: the head is random, not the checkpoint's.
    new_modules: modules between the last layer and the score that the checkpoint lacks: a new head, and the pooler of some encoders.
    new_tokens: ids whose embeddings were added because the tokenizer has more tokens than the checkpoint.
    layer_weights: reads the layers, which have no weights yet; None: the model is whole.
    """

    model: PreTrainedModel
    head: HeadSpec
    new_head: bool
    new_modules: tuple[str, ...]
    new_tokens: range
    layer_weights: LayerWeights | None = None


def load_pretrained(
    ref: ModelRef,
    tokenizer: Any,
    head: Literal["auto", "new", "from_checkpoint"],
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
    seed: int = 0,
    quantization: BitsAndBytesConfig | None = None,
    by_layer: bool = False,
) -> LoadedModel:
    """Load a checkpoint as a sequence-classification model with one output.

    Args:
        tokenizer: sets the token ids of the configuration; embeddings grow if it has more tokens than they have rows.
        head: `from_checkpoint` requires a head with one output; `auto` uses such a head if there is one.
        dtype: dtype of all weights except the head, which is float32.
        seed: seed of everything that is new.
        by_layer: leave the weights of the layers in the files, for `LoadedModel.layer_weights`.

    Raises `ref.error` if files are missing, damaged, not safetensors or of another model, or the required head is missing.
    """
    config = load_config(ref)
    weights = find_weights(ref)
    header = weights.header()
    pad = pad_beyond(config)
    if pad is not None and pad != tokenizer.pad_token_id:
        logger.info(
            "config.json of %s has the pad id %d, which has no embedding; padding with %s", ref.path, pad, tokenizer.pad_token
        )
        tokenizer.init_kwargs.setdefault(REPLACED_PAD, pad)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(header):
        raise ref.error(f"config.json of {ref.path} contradicts its weights: {layers} layers of {len(header)} tensors")
    prepare_config(config, dropout)
    with quiet_transformers():
        empty = meta_classifier(config, ref.error, ref.trust_remote_code)
        spec = find_head(empty, ref.error)
    options: dict[str, Any] = {"config": config, "dtype": dtype}
    if (ref.read_json("config.json") or {}).get("model_type") != config.model_type:
        part = _text_prefix(ref, header, empty)
        base = f"{empty.base_model_prefix}."
        header = {base + name.removeprefix(part): stored for name, stored in header.items() if name.startswith(part)}
        options["key_mapping"] = {f"^{re.escape(part)}": base}
        logger.info("only the text part of %s is trained: %s", ref.path, part.rstrip("."))
    _check_sizes(ref, header, empty, spec)
    # Decided by the names in the files, before anything is loaded: transformers would initialize a missing head silently.
    saved = None if head == "new" else find_saved_head(weights, header, empty, spec, required=head == "from_checkpoint")
    if quantization is not None:  # weights are quantized on the way to their device
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    if by_layer:
        options["device_map"] = "meta"  # transformers compares all names and shapes, and reads nothing
    with seeded(seed, "weights"):
        model, new_names, unused = _load_weights(ref, header, spec, saved, options)
        layer_weights = LayerWeights(model, weights, options.get("key_mapping")) if by_layer else None
    if unused:
        logger.info("%s has weights that are not used: %s", ref.path, ", ".join(unused))
    set_module_dropout(model, dropout)
    install_head(model, spec, saved, seed)
    _initialize(model, [name for name in new_names if name.rpartition(".")[0] != spec.name], seed)
    new_tokens = _grow_embeddings(ref, model, tokenizer)
    set_token_ids(model, tokenizer)
    new_modules = tuple(sorted({name.rpartition(".")[0] for name in new_names}))
    return LoadedModel(model, spec, saved is None, new_modules, new_tokens, layer_weights)


def _text_prefix(ref: ModelRef, header: Mapping[str, Stored], empty: PreTrainedModel) -> str:
    """Return what the names of a checkpoint have before those of its text part; raises `ref.error` if it has no text part."""
    names = [name for name, _ in empty.base_model.named_parameters()]
    prefixes = {stored.removesuffix(name) for name in names[:1] for stored in header if f".{stored}".endswith(f".{name}")}
    if not prefixes:
        raise ref.error(f"{ref.path} has no weights of a text part: no name ends in {names[0]}")
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in header for name in names))


def _check_sizes(ref: ModelRef, header: Mapping[str, Stored], empty: PreTrainedModel, head: HeadSpec) -> None:
    """Raise `ref.error` if a configuration, as a model without memory, contradicts the beginnings of the files."""
    prefix = f"{empty.base_model_prefix}."
    for name, parameter in empty.named_parameters():
        stored = header.get(name) or header.get(name.removeprefix(prefix))
        if stored is None or name.partition(".")[0] == head.root:
            continue
        if stored.dtype not in FLOATS:
            raise ref.error(f"{name} of {ref.path} is quantized ({stored.dtype}); use the model it was made from")
        if math.prod(stored.shape) != parameter.numel():
            sizes = f"{name} would be {list(parameter.shape)}, and is {list(stored.shape)}"
            raise ref.error(f"config.json of {ref.path} contradicts its weights: {sizes}")
    described, present = empty.num_parameters(), sum(math.prod(stored.shape) for stored in header.values())
    if described > 2 * present:
        raise ref.error(f"config.json of {ref.path} describes {described:,} parameters, but its weights are {present:,}")


def find_saved_head(
    weights: Weights, header: Mapping[str, Stored], empty: PreTrainedModel, head: HeadSpec, *, required: bool
) -> SavedHead | None:
    """Return the head of a checkpoint: under its name in transformers or, for a causal model, the only other one, which is logged.

    Raises `ref.error` if the checkpoint has other weights that no part of the model takes, such as a head of several layers; and if
    the head is `required` and there is none with one output.
    """
    ref, width = weights.ref, empty.get_submodule(head.name).in_features
    others = {name: (weights, header[name]) for name in _foreign(header, empty, width if head.pools_last_token else None)}
    if head.pools_last_token and f"{head.name}.weight" not in header and ref.find(f"{VALUE_HEAD}.safetensors") is not None:
        file = find_weights(ref, VALUE_HEAD)
        others |= {name: (file, stored) for name, stored in file.header().items()}
    if not others:
        return read_head(weights, head.name, required)
    module = next(iter(others)).rpartition(".")[0]
    shapes = {name: stored.shape for name, (_, stored) in others.items()}
    linear = {f"{module}.weight": (1, width), f"{module}.bias": (1,)}
    if f"{head.name}.weight" in header or f"{module}.weight" not in shapes or not shapes.items() <= linear.items():
        listed = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        remedy = "" if required else "; model.head: new trains a new head"
        raise ref.error(
            f"{ref.path} has unexpected weights: {', '.join(listed[:4])}{more}; expected those of {type(empty).__name__}, and a head "
            f"of one linear layer, [1, {width}]{remedy}"
        )
    logger.info("the head of %s is %s", ref.path, module)
    return read_head(others[f"{module}.weight"][0], module, required=True)


def _foreign(header: Mapping[str, Stored], empty: PreTrainedModel, width: int | None) -> list[str]:
    """Return the names in a checkpoint that belong neither to the model nor to the head of another task.

    A name is judged by its first part, in the file or as transformers renames it (`backbone` of Nemotron-H becomes `model`).
    `width` is that of a head of one output, whose name can be that of any task; None: not asked.
    """
    names = {*empty.state_dict()}
    prefix = f"{empty.base_model_prefix}."
    conversions = get_model_conversion_mapping(empty)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if not isinstance(entry, WeightRenaming)]
    parts = {name.partition(".")[0] for name in (*names, *(name.removeprefix(prefix) for name in names))}
    with_one_output = {name.partition(".")[0] for name, stored in header.items() if stored.shape == (1, width)}
    other_tasks = OTHER_TASKS - with_one_output
    known = parts | other_tasks
    return [
        name
        for name in header
        if not known & {name.partition(".")[0], rename_source_key(name, renamings, converters)[0].partition(".")[0]}
    ]


def read_head(weights: Weights, name: str, required: bool) -> SavedHead | None:
    """Return the saved head module `name`.

    If it does not have one output, raises the reference's error if the head is `required`, and otherwise returns None.
    """
    key, bias, path = f"{name}.weight", f"{name}.bias", weights.ref.path
    weight = weights.tensor(key).float() if key in weights.files else None
    if weight is not None and weight.ndim == 2 and weight.shape[0] == 1:
        return SavedHead(name, weight, weights.tensor(bias).float() if bias in weights.files else None)
    found = f"no {key}" if weight is None else f"{key} of shape {list(weight.shape)}"
    if required:
        raise weights.ref.error(f"no score head: {path} has {found}, expected [1, H]; train one with `rmtrain train`")
    if weight is not None:
        logger.warning("%s has %s, expected [1, H]; the head is replaced by a new one", path, found)
    return None


def _load_weights(
    ref: ModelRef, header: Mapping[str, Stored], head: HeadSpec, saved: SavedHead | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str], list[str]]:
    """Return the model, the names of its parameters that the checkpoint lacks, and those of the checkpoint that are not used, in groups."""
    checks = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(ref.path, **options, **checks, **ref.loading)
    except (SafetensorError, *HUB_ERRORS, *BUILD_ERRORS) as error:
        raise_if_passing(f"{ref.label}: {ref.path}", error)
        raise ref.error(f"cannot load {ref.path}: {error}") from error
    with_head = saved is not None and saved.name == head.name
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *mismatched}
    prefix = f"{model.base_model_prefix}."

    def is_head(name: str) -> bool:
        return name.partition(".")[0] == head.root

    def may_lack(name: str) -> bool:
        """Between the last layer and the score a checkpoint of another task has no parameter, or one of another shape."""
        is_after_layers = not name.startswith(prefix) or "pooler" in name.split(".")
        return not with_head and is_after_layers and (name not in mismatched or is_head(name))

    has_prefix = any(name.startswith(prefix) for name in header)  # a checkpoint of the base model alone has none

    def must_fit(name: str) -> bool:
        """Tensors of the layers and of the wanted head must have a place in the model; a head of another task has none."""
        if with_head and is_head(name):
            return name != f"{head.name}.bias"  # which the installed head has
        if has_prefix:
            return name.startswith(prefix)
        return hasattr(model.base_model, name.partition(".")[0]) and "pooler" not in name.split(".")

    lacking = sorted(name for name in missing if not may_lack(name))
    unused = {*report["unexpected_keys"]}
    if "key_mapping" in options:
        unused &= header.keys()  # the rest does not belong to the text part
        model._weight_conversions = None  # otherwise transformers would save the model under the names of the larger one
    unexpected = sorted(filter(must_fit, unused))
    for problem, names in (("lacks", lacking), ("has unexpected", unexpected)):
        if names:
            first, more = ", ".join(names[:3]), f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ref.error(f"{ref.path} {problem} weights: {first}{more}; expected the weights of one transformers model")
    used = {*model.state_dict(), *(name.removeprefix(prefix) for name in model.state_dict())}
    used |= set() if saved is None else {f"{saved.name}.weight", f"{saved.name}.bias"}
    # transformers reports neither all of the heads of other tasks, nor those that its class ignores.
    unused = (unused | {name for name in header if name.partition(".")[0] in OTHER_TASKS}) - used
    groups = Counter(name.partition(".")[0] for name in unused)
    return model, missing, sorted({_group(name, groups) for name in unused})


def _group(name: str, groups: Counter[str]) -> str:
    first = name.partition(".")[0]
    return name if groups[first] == 1 else f"{first}.* ({groups[first]} tensors)"


def _initialize(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """Initialize new layers before the head: N(0, initializer_range), zero biases, norms of one."""
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


def _grow_embeddings(ref: ModelRef, model: PreTrainedModel, tokenizer: Any) -> range:
    """Give each token an embedding, new ones the mean of the old ones. Return the new ids.

    Raises `ref.error` if a token of the vocabulary proper, not an added one, has none: it is the tokenizer of another model.
    """
    rows, ids = model.get_input_embeddings().weight.shape[0], tokenizer.get_vocab().values()
    tokens = max(len(tokenizer), *(number + 1 for number in ids))
    if tokens <= rows:
        return range(0)
    if any(number >= rows and number not in tokenizer.added_tokens_decoder for number in ids):
        raise ref.error(f"the tokenizer of {ref.path} has {tokens} tokens, its weights have embeddings for {rows}")
    with quiet_transformers():
        # transformers' own mean_resizing samples from a Gaussian, with the global generator.
        embeddings = model.resize_token_embeddings(tokens, mean_resizing=False).weight
    with torch.no_grad():
        embeddings[rows:] = embeddings[:rows].float().mean(dim=0).to(embeddings.dtype)
    first = tokenizer.convert_ids_to_tokens(list(range(rows, min(tokens, rows + 3))))
    names = ", ".join(map(str, first)) + (f" and {tokens - rows - 3} more" if tokens - rows > 3 else "")
    logger.info("tokens without an embedding get the mean of the others: %s", names)
    return range(rows, tokens)
