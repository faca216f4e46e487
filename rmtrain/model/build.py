"""The model that a recipe's `model` and `lora` sections describe: from a checkpoint, or from scratch, with low-rank adapters or not."""

import copy
import difflib
import importlib.util
import logging
import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.classifier import (
    BUILD_ERRORS,
    HeadSpec,
    device_of,
    find_head,
    head_of,
    install_head,
    meta_classifier,
    prepare_config,
    quiet_transformers,
    seeded,
    set_module_dropout,
    set_token_ids,
)
from rmtrain.model.last_token_classifier import is_made, text_part
from rmtrain.model.layer_weights import check_finite
from rmtrain.model.mixture import expert_tensors, router_layers, taken_for_experts
from rmtrain.model.model_files import ModelRef
from rmtrain.model.pretrained import LoadedModel, load_pretrained
from rmtrain.model.reward_model import RewardModel, evaluating
from rmtrain.recipe.schema import Architecture, Lora, PretrainedModel, ScratchModel

UNQUANTIZED = ["score", "classifier", "pre_classifier", r"(.*\.)?pooler", "head"]
"""Modules (patterns) that are not quantized: they train, and not every 4-bit kernel is right for a head of one output."""

# Transformers gives the same size different names; the first name that an architecture has is set.
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "ffn_hidden_size", "d_ff")
POSITIONS = ("max_position_embeddings", "max_seq_len")
LIKE_HIDDEN = ("word_embed_proj_dim", "embedding_size", "pooler_hidden_size")
PAD_THEN_POSITIONS = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "longformer", "mpnet")
)
"""Architectures whose first position is the pad id plus one."""

OTHER_SENSES = re.compile("vision|visual|image|audio")
"""In the names of parameters that read no text, in models that do not keep their text part together."""
CHOOSING = re.compile(r"\bindexer\b|score_correction_bias|expert_bias")
"""In the names of parameters that choose tokens (sparse attention) or experts, which passes no gradient on."""

logger = logging.getLogger("rmtrain")


def build_reward_model(
    model: PretrainedModel | ScratchModel, lora: Lora | None, tokenizer: Any, seed: int, by_layer: bool = False
) -> RewardModel:
    """Build the model that a recipe describes, on the CPU (4-bit weights: on the current GPU), in training mode.

    The tokenizer sets the pad, begin and end ids of the configuration; each of its tokens gets an embedding. Each random number depends
    on `seed` and its purpose; the global generators are neither read nor moved.

    With `by_layer`, layers get their weights later, by `RewardModel.layer_weights`, if they can (`can_load_by_layer`); `check_forward` is
    then left to the caller.

    Raises:
        CheckpointError: the model cannot be found, read or used.
        RecipeError: it cannot be trusted or built as described.
    """
    if tokenizer.pad_token_id is None:
        raise RecipeError("model: the tokenizer has no pad token; load it with rmtrain.data.text.tokenizer.load_tokenizer")
    dtype: torch.dtype = getattr(torch, model.dtype)
    quantization = _quantization(model, lora)
    base_ref = None
    if isinstance(model, ScratchModel):
        loaded = _build_scratch(model, tokenizer, dtype, seed)
    else:
        base_ref = ModelRef(model.path, model.revision, "model.path", model.trust_remote_code).checked().pinned()
        loaded = load_pretrained(
            base_ref,
            tokenizer,
            model.head,
            dtype=dtype,
            dropout=model.dropout,
            seed=seed,
            quantization=quantization,
            by_layer=by_layer and can_load_by_layer(model, lora),
        )
    head = head_of(loaded.model, loaded.head)
    if loaded.head.pools_last_token and head.bias is not None:
        shift = float(head.bias)
        logger.info(
            "the bias of the head, %.4g, is left out, and shifts all rewards: a score head of transformers has none", shift
        )
        head.register_parameter("bias", None)
    if loaded.head.pools_last_token and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise RecipeError("model: the pad token is the end token, so transformers would read rewards before it; use another")
    if is_made(loaded.model):
        logger.info(
            "transformers has no %s; one is made. The export loads in vLLM, OpenRLHF and, with trust_remote_code, in transformers",
            type(loaded.model).__name__,
        )
    layer_weights = loaded.layer_weights
    waiting = set() if layer_weights is None else layer_weights.names
    check_finite((name, parameter) for name, parameter in loaded.model.named_parameters() if name not in waiting)
    freeze_untrainable(loaded.model)
    if quantization is None and layer_weights is None:  # a 4-bit model that ran on a CPU no longer trains
        check_forward(loaded.model, loaded.head, tokenizer)
    if quantization is not None:
        _prepare_quantized(loaded.model)
    if model.gradient_checkpointing:
        checkpoint_gradients(loaded, frozen_inputs=lora is not None)
    hf = loaded.model if lora is None else attach_lora(loaded, lora, base_ref, seed)
    return RewardModel(hf, loaded.head, base_ref, dtype, loaded.new_head, layer_weights).train()


def _prepare_quantized(model: PreTrainedModel) -> None:
    """Freeze 4-bit weights, and keep them as they are.

    On CPUs with bfloat16 products, bitsandbytes repacks them in an evaluation. FSDP2 then gathers them unpacked, and rewards are wrong.
    """
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def can_load_by_layer(model: PretrainedModel | ScratchModel, lora: Lora | None) -> bool:
    """Return whether layers can get their weights after the model is built.

    DoRA's adapters begin as norms of the weights, and transformers quantizes weights while it loads them.
    """
    return isinstance(model, PretrainedModel) and model.quantization is None and not (lora is not None and lora.dora)


def freeze_untrainable(model: PreTrainedModel) -> None:
    """Freeze the parameters that get no gradient: those that text never reaches, and those that only choose experts or tokens."""
    base, has_other_senses = model.base_model, {"vision_config", "audio_config"} & model.config.sub_configs.keys()
    text = getattr(base, "language_model", getattr(base, "text_model", None)) if has_other_senses else None
    reached = {id(parameter) for parameter in (() if text is None else text.parameters())}
    for name, parameter in base.named_parameters():
        is_text = id(parameter) in reached if reached else not (has_other_senses and OTHER_SENSES.search(name))
        parameter.requires_grad_(parameter.requires_grad and is_text and not CHOOSING.search(name))


def _quantization(model: PretrainedModel | ScratchModel, lora: Lora | None) -> BitsAndBytesConfig | None:
    """Return the configuration of 4-bit weights (QLoRA, arXiv:2305.14314), or None."""
    if model.quantization is None:
        return None
    if isinstance(model, ScratchModel):
        raise RecipeError("model.quantization: nf4 needs pretrained weights; set model.path, or quantization: null")
    if lora is None:
        raise RecipeError("model.quantization: nf4 weights cannot train; add lora, or set null")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("model.quantization: nf4 needs bitsandbytes; install the extra 8bit (pip install 'rmtrain[8bit]')")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def check_forward(
    model: PreTrainedModel, head: HeadSpec, tokenizer: Any, run: Callable[[Callable[[], Tensor]], Any] = operator.call
) -> None:
    """Run a model on two tokens, alone and followed by others, and refuse it if these change what is read.

    An encoder must not see padding in spite of its mask, as FNet and YOSO do: rewards would depend on the batch. Two tokens, because the
    shorter a text, the more it changes. A causal model must not look ahead, as BERT does as a generator; those for which transformers has
    a class do not.

    `run` calls a function where the model has its weights: that of the RewardModel, if it is sharded.
    """
    causal = head.pools_last_token
    if causal and not is_made(model):
        return
    ids = [token for token in range(len(tokenizer)) if token != tokenizer.pad_token_id][-12:]
    device = device_of(head_of(model, head).weight)
    input_ids = torch.tensor([ids if causal else ids[:2] + [tokenizer.pad_token_id] * 10], device=device)
    mask = torch.tensor([[1] * 2 + [int(causal)] * 10], device=device)
    name = type(model).__name__

    def read(tokens: int) -> Tensor:
        inputs = {"input_ids": input_ids[:, :tokens], "attention_mask": mask[:, :tokens]}
        what: Tensor = model.base_model(**inputs)[0][0, 1] if causal else model(**inputs).logits[0]
        return what.float()

    try:
        with evaluating(model), seeded(0, "padding"):
            alone, followed = run(partial(read, 2)), run(partial(read, 12))
    except BUILD_ERRORS as error:
        raise CheckpointError(f"model: the forward of {name} fails: {' '.join(str(error).split())[:300]}") from error
    tolerance = 0.01 if causal else 1e-5 if model.dtype == torch.float32 else 0.1
    if float((alone - followed).norm()) > tolerance * float(alone.norm()) + 1e-6:
        problem = "a token sees those after it: it is not a causal model" if causal else "padding changes its rewards"
        raise RecipeError(f"model: in {name}, {problem}; choose another model")


def checkpoint_gradients(loaded: LoadedModel, frozen_inputs: bool) -> None:
    """Recompute activations in backward to save memory; raises RecipeError if the model cannot."""
    model = loaded.model
    if not model.supports_gradient_checkpointing:
        raise RecipeError(f"model.gradient_checkpointing: {type(model).__name__} cannot recompute activations; set it to false")
    with quiet_transformers():  # the function is renamed in transformers 5.23; this name works before and after
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not loaded.head.pools_last_token and getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # encoders would warn about it; causal models get it as an argument of each forward
    if frozen_inputs:  # checkpointed layers need an input with a gradient, and frozen embeddings give none
        model.enable_input_require_grads()


def attach_lora(loaded: LoadedModel, lora: Lora, base_ref: ModelRef | None, seed: int) -> PeftModel:
    """Freeze a model and add adapters to its linear layers and, in a mixture, to the tensors of its experts.

    The head, new layers before it and the embeddings of new tokens also train, and are saved with the adapters. Everything
    that trains is float32.

    Raises:
        RecipeError: a target is the head, or names nothing to adapt; or experts cannot be adapted as described.
    """
    model, head = loaded.model, loaded.head
    targets, experts = _find_targets(model, head, loaded.new_modules, lora)
    for key, value in (("dropout", 0.0), ("dora", False)):
        if experts and getattr(lora, key) != value:
            problem = f"PEFT does not support it for experts of a mixture, such as {experts[0]}"
            raise RecipeError(f"lora.{key}: {problem}; set {str(value).lower()}, or lora.experts: false")
    embeddings = model.get_input_embeddings()
    embeddings_name = next(str(name) for name, module in model.named_modules() if module is embeddings)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        modules_to_save=[head.root, *(name for name in loaded.new_modules if name.partition(".")[0] != head.root)],
        trainable_token_indices={embeddings_name: list(loaded.new_tokens)} if loaded.new_tokens else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        base_model_name_or_path=None if base_ref is None else base_ref.path,
        revision=None if base_ref is None else base_ref.revision,
    )
    with quiet_transformers(), seeded(seed, "lora"):
        adapted = get_peft_model(model, config)
    if base_ref is not None:  # PEFT takes the name that the model was loaded by
        adapted.peft_config[adapted.active_adapter].base_model_name_or_path = base_ref.absolute_path
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # PEFT trains a head only if modules_to_save names it; a random frozen head is a known silent failure.
    assert head_of(adapted.get_base_model(), head).weight.requires_grad, "the head must train"
    return adapted


def _find_targets(model: PreTrainedModel, head: HeadSpec, new_modules: Sequence[str], lora: Lora) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers and of the expert tensors to adapt.

    The head and new layers are left out, since they are trained whole, and so are routers unless `lora.targets` names them.
    """
    whole = tuple(f"{name}." for name in (head.root, *new_modules))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(whole) and _can_train(module.weight)
    ]
    experts = expert_tensors(model)
    refused = taken_for_experts(model, linear)
    if lora.targets == "all-linear":
        chosen = set(linear) - router_layers(model, experts) | set(experts if lora.experts else ())
    else:
        chosen = {name for target in lora.targets for name in _matching(target, [*linear, *experts], head)}
        named = [name for name in experts if name in chosen]
        if named and not lora.experts:
            raise RecipeError(
                f"lora.targets: {named[0]} is a tensor of experts; remove it from the list, or set lora.experts: true"
            )
    if chosen & refused:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in chosen & refused}))
        logger.warning(
            "%d linear layers of a mixture are not adapted, since PEFT would take them for experts: %s",
            len(chosen & refused),
            names,
        )
    if not chosen - refused:
        raise RecipeError("lora.targets: PEFT can adapt none of these layers of a mixture; set all-linear")
    return [name for name in linear if name in chosen - refused], [name for name in experts if name in chosen]


def _can_train(weight: Tensor) -> bool:
    """Return False where a layer was frozen since it gets no gradient; 4-bit weights are integers, which never have one."""
    return weight.requires_grad or not weight.is_floating_point()


def _matching(target: str, names: Sequence[str], head: HeadSpec) -> list[str]:
    """Return the names that end in a target of the recipe; raise RecipeError if there are none."""
    matching = [name for name in names if f".{name}".endswith(f".{target}")]
    if not matching and target in (head.root, head.name):
        raise RecipeError(f"lora.targets: {target} is the head, which always trains; remove it from the list")
    if not matching:
        known = sorted({name.rpartition(".")[2] for name in names})
        near = difflib.get_close_matches(target, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"lora.targets: no linear layer is named {target}; {hint}expected some of {', '.join(known)}")
    return matching


def _build_scratch(recipe: ScratchModel, tokenizer: Any, dtype: torch.dtype, seed: int) -> LoadedModel:
    """Build a model of the recipe's sizes with random weights, and run it once to show that it works."""
    if recipe.head == "from_checkpoint":
        raise RecipeError("model.head: from_checkpoint needs model.path; set new or auto for a model from scratch")
    sizes = recipe.scratch
    with quiet_transformers():
        config = scratch_config(sizes, tokenizer)
        prepare_config(config, recipe.dropout)
        # First without memory: an architecture that ignores the sizes would allocate billions of parameters.
        try:
            empty = meta_classifier(config, lambda reason: _sizes_error(sizes, reason))
            embeddings = tuple(empty.get_input_embeddings().weight.shape)
        except BUILD_ERRORS as error:
            raise _sizes_error(sizes, error) from error
        if embeddings != (len(tokenizer), sizes.hidden_size):
            raise _sizes_error(sizes, f"its token embeddings became {embeddings}, expected {(len(tokenizer), sizes.hidden_size)}")
        head = find_head(empty, lambda reason: RecipeError(f"model.scratch.architecture: {reason}"))
        with seeded(seed, "weights"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
            try:
                with torch.no_grad():
                    model(input_ids=torch.tensor([[len(tokenizer) - 1] * 3]))
            except BUILD_ERRORS as error:
                raise _sizes_error(sizes, f"its forward fails: {error}") from error
    set_module_dropout(model, recipe.dropout)
    set_token_ids(model, tokenizer)
    install_head(model, head, None, seed)
    return LoadedModel(model, head, new_head=True, new_modules=(), new_tokens=range(0))


def scratch_config(sizes: Architecture, tokenizer: Any) -> PretrainedConfig:
    """Return the configuration of an architecture with these sizes, under the names that the architecture gives them.

    Raises RecipeError if the architecture is unknown, or does not have these sizes.
    """
    name = sizes.architecture
    known = {**MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "expected a transformers model type such as llama"
        raise RecipeError(f"model.scratch.architecture: unknown architecture {name!r}; {hint}")
    try:
        default = text_part(CONFIG_MAPPING[name](), trust_remote_code=False)
    except BUILD_ERRORS as error:
        raise RecipeError(f"model.scratch.architecture: {name} has no text part: {error}") from error
    wanted = _named_sizes(sizes, tokenizer, default)
    tokens = {}
    for kind in ("pad", "bos", "eos", "cls", "sep", "mask"):
        key = f"{kind}_token_id"
        token = getattr(tokenizer, key, None)
        if hasattr(default, key) and (token is not None or kind in ("pad", "bos", "eos")):
            tokens[key] = token
    names = default.attribute_map
    try:
        config = AutoConfig.for_model(
            default.model_type, **{names.get(key, key): value for key, value in {**wanted, **tokens}.items()}
        )
    except BUILD_ERRORS as error:
        raise _sizes_error(sizes, error) from error
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise _sizes_error(sizes, f"{key} became {getattr(config, key)}, expected {value}")
    return copy.deepcopy(config)


def _named_sizes(sizes: Architecture, tokenizer: Any, default: PretrainedConfig) -> dict[str, Any]:
    """Return the sizes by the names of transformers; sizes that the architecture does not have are left out."""

    def first(names: tuple[str, ...], value: int) -> dict[str, int]:
        settable = (
            name for name in names if hasattr(default, name) and not isinstance(getattr(type(default), name, None), property)
        )
        return dict.fromkeys(list(settable)[:1], value)

    hidden, heads = sizes.hidden_size, sizes.heads
    key_value_heads, intermediate = sizes.key_value_heads or heads, sizes.intermediate_size or 4 * hidden
    offset = tokenizer.pad_token_id + 1 if sizes.architecture in PAD_THEN_POSITIONS else 0
    named = {"vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": sizes.layers, "num_attention_heads": heads}
    grouped, widened = first(KEY_VALUE_HEADS, key_value_heads), first(INTERMEDIATE, intermediate)
    if key_value_heads != heads and not grouped:
        raise _sizes_error(sizes, "it has as many key_value_heads as heads; leave key_value_heads out")
    if intermediate != 4 * hidden and not widened:
        raise _sizes_error(sizes, "its MLP is four times hidden_size; leave intermediate_size out")
    named |= grouped | first(POSITIONS, sizes.max_positions + offset) | widened | first(("moe_intermediate_size",), intermediate)
    named |= {key: hidden for key in LIKE_HIDDEN if hasattr(default, key)}
    return named | first(("head_dim",), hidden // heads) | first(("rotary_dim",), hidden // heads)


def _sizes_error(sizes: Architecture, reason: object) -> RecipeError:
    return RecipeError(f"model.scratch: {sizes.architecture} cannot take these sizes: {' '.join(str(reason).split())}")
