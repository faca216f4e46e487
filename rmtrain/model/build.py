"""The recipe's model and lora sections to a RewardModel."""

import copy
import difflib
import importlib.util
import logging
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rmtrain.errors import RecipeError
from rmtrain.model.head import find_head, install_head, outline
from rmtrain.model.hf_setup import quiet_transformers, seeded, set_dropout, set_module_dropout, set_single_output, set_token_ids
from rmtrain.model.lora import attach_lora
from rmtrain.model.pretrained import Backbone, ModelRef, load_backbone
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import Architecture, Lora, PretrainedModel, ScratchModel

KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "ffn_hidden_size", "d_ff")
POSITIONS = ("max_position_embeddings", "max_seq_len")
LIKE_HIDDEN = ("word_embed_proj_dim", "embedding_size", "pooler_hidden_size")
ALWAYS_SET = ("pad_token_id", "bos_token_id", "eos_token_id")
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError, StrictDataclassError)
"""What classes of transformers raise when sizes do not suit them."""
POSITIONS_AFTER_PAD = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
    "longformer",
    "mpnet",
)
"""Architectures whose first position is the pad id plus one."""


def build_scratch(sizes: Architecture, tokenizer: Any, dropout: float, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A sequence-classification model of these sizes with one output, its weights drawn from the seed, that has run once.

    Args:
        tokenizer: gives the vocabulary size and the pad, begin and end ids.

    Raises:
        RecipeError: an unknown architecture, or one that cannot take these sizes.
    """
    with quiet_transformers():
        config = scratch_config(sizes, tokenizer)
        set_single_output(config)
        set_dropout(config, dropout)
        try:
            outlined = outline(config, RecipeError)
            embeddings = tuple(outlined.get_input_embeddings().weight.shape)
        except REFUSALS as error:
            raise _impossible(sizes, " ".join(str(error).split())) from error
        if embeddings != (len(tokenizer), sizes.hidden_size):
            raise _impossible(sizes, f"its token embeddings became {embeddings}, expected {(len(tokenizer), sizes.hidden_size)}")
        find_head(outlined, lambda reason: RecipeError(f"model.scratch.architecture: {reason}"))
        with seeded(seed, "weights"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
            try:
                with torch.no_grad():
                    model(input_ids=torch.tensor([[len(tokenizer) - 1] * 3]))
            except (RuntimeError, *REFUSALS) as error:
                raise _impossible(sizes, f"its forward fails: {' '.join(str(error).split())}") from error
    return model


def scratch_config(sizes: Architecture, tokenizer: Any) -> PretrainedConfig:
    """The configuration of an architecture with these sizes, under the names that the architecture gives them.

    Raises:
        RecipeError: an unknown architecture, or one that does not have these sizes.
    """
    name = sizes.architecture
    if name not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise RecipeError(
            f"model.scratch.architecture: unknown architecture {name!r}{_near(name)}; expected a transformers model type such as llama"
        )
    known = CONFIG_MAPPING[name]()
    wanted = _wanted(sizes, tokenizer, known)
    tokens = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "cls", "sep", "mask")
    }
    tokens = {name: token for name, token in tokens.items() if hasattr(known, name) and (token is not None or name in ALWAYS_SET)}
    names = known.attribute_map
    try:
        config = AutoConfig.for_model(name, **{names.get(key, key): value for key, value in {**wanted, **tokens}.items()})
    except REFUSALS as error:
        raise _impossible(sizes, " ".join(str(error).split())) from error
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise _impossible(sizes, f"{key} became {getattr(config, key)}, expected {value}")
    return copy.deepcopy(config)


def _wanted(sizes: Architecture, tokenizer: Any, known: PretrainedConfig) -> dict[str, Any]:
    """Values by the names of transformers, of those that the architecture has."""
    wanted: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
    }
    key_value_heads = sizes.key_value_heads or sizes.heads
    head_dim, intermediate = sizes.hidden_size // sizes.heads, sizes.intermediate_size or 4 * sizes.hidden_size
    offset = tokenizer.pad_token_id + 1 if sizes.architecture in POSITIONS_AFTER_PAD else 0
    wanted |= _first(known, KEY_VALUE_HEADS, key_value_heads) | _first(known, POSITIONS, sizes.max_positions + offset)
    wanted |= _first(known, INTERMEDIATE, intermediate) | _first(known, ("moe_intermediate_size",), intermediate)
    wanted |= {key: sizes.hidden_size for key in LIKE_HIDDEN if hasattr(known, key)}
    wanted |= _first(known, ("head_dim",), head_dim) | _first(known, ("rotary_dim",), head_dim)
    if key_value_heads != sizes.heads and not any(key in wanted for key in KEY_VALUE_HEADS):
        raise _impossible(sizes, "it has as many key_value_heads as heads; leave key_value_heads out")
    if intermediate != 4 * sizes.hidden_size and not any(key in wanted for key in INTERMEDIATE):
        raise _impossible(sizes, "its MLP is four times hidden_size; leave intermediate_size out")
    return wanted


def _first(known: PretrainedConfig, names: tuple[str, ...], value: int) -> dict[str, int]:
    """The value under the first of the names that the architecture has and lets be set."""
    for name in names:
        if hasattr(known, name) and not isinstance(getattr(type(known), name, None), property):
            return {name: value}
    return {}


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _impossible(sizes: Architecture, reason: str) -> RecipeError:
    return RecipeError(f"model.scratch: {sizes.architecture} cannot take these sizes: {reason}")


logger = logging.getLogger("rmtrain")

UNQUANTIZED = ["score", "classifier", "pre_classifier", r"(.*\.)?pooler", "head"]
"""Modules (patterns) left whole under quantization: a head of one output is not quantized right by every kernel, and all of them train."""


def build_reward_model(model: PretrainedModel | ScratchModel, lora: Lora | None, tokenizer: Any, seed: int) -> RewardModel:
    """Build the model that a recipe describes, on the CPU (4-bit weights: on the current GPU), in training mode.

    Every random number comes from `seed` and what it is for; the global generators are neither read nor moved.

    Args:
        model: where the weights come from, or their sizes.
        lora: adapters to train in place of all weights.
        tokenizer: the run's tokenizer; its pad, begin and end ids go into the configuration, and each of its tokens gets an embedding.
        seed: of a new head, random weights and adapters.

    Raises:
        RecipeError: the model cannot be found, read, trusted or built as described.
    """
    if tokenizer.pad_token_id is None:
        raise RecipeError("model: the tokenizer has no pad token; rmtrain's own loading of tokenizers gives it one")
    quantization = _quantization(model, lora)
    if isinstance(model, ScratchModel):
        origin, backbone = None, _from_scratch(model, tokenizer, seed)
    else:
        origin, backbone = _from_checkpoint(model, tokenizer, seed, quantization)
    if backbone.new_head:
        logger.info("new head, seed %d", seed)
    if backbone.head.pools_last_token and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise RecipeError("model: the tokenizer's pad token is its end token; transformers would read rewards before the end")
    _check_finite(backbone.model)
    if not backbone.head.pools_last_token and quantization is None:  # a 4-bit model on a CPU that ran once no longer trains
        _check_padding(backbone.model, tokenizer)
    if quantization is not None:
        prepare_model_for_kbit_training(backbone.model, use_gradient_checkpointing=False)
    if model.gradient_checkpointing:
        checkpoint_gradients(backbone, frozen_inputs=lora is not None)
    hf = backbone.model if lora is None else attach_lora(backbone, lora, origin, seed)
    return RewardModel(hf, backbone.head, origin, getattr(torch, model.dtype)).train()


def _from_scratch(model: ScratchModel, tokenizer: Any, seed: int) -> Backbone:
    if model.head == "from_checkpoint":
        raise RecipeError("model.head: from_checkpoint needs model.path; a scratch model has no checkpoint")
    hf = build_scratch(model.scratch, tokenizer, model.dropout, getattr(torch, model.dtype), seed)
    place = find_head(hf, RecipeError)
    set_module_dropout(hf, model.dropout)
    set_token_ids(hf.config, tokenizer)
    install_head(hf, place, None, None, seed)
    return Backbone(hf, place, new_head=True, new_modules=(), new_tokens=range(0))


def _from_checkpoint(model: PretrainedModel, tokenizer: Any, seed: int, quantization: Any) -> tuple[ModelRef, Backbone]:
    origin = ModelRef(model.path, model.revision, "model.path", RecipeError, model.trust_remote_code).checked().pinned()
    options = {"dtype": getattr(torch, model.dtype), "dropout": model.dropout, "seed": seed, "quantization": quantization}
    return origin, load_backbone(origin, tokenizer, model.head, **options)


def _quantization(model: PretrainedModel | ScratchModel, lora: Lora | None) -> Any:
    """A transformers quantization configuration (QLoRA, arXiv:2305.14314), or None."""
    if model.quantization is None:
        return None
    if isinstance(model, ScratchModel):
        raise RecipeError("model.quantization: nf4 needs the trained weights of model.path; a scratch model has none")
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


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise RecipeError(f"model: {name} holds numbers that are not finite; expected finite weights")


def _check_padding(encoder: PreTrainedModel, tokenizer: Any) -> None:
    """Refuse encoders that see padding in spite of the mask (FNet, YOSO): their rewards would depend on the batch."""
    ids = [token for token in range(len(tokenizer)) if token != tokenizer.pad_token_id][-6:]
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * 6], device=encoder.device)
    mask = torch.tensor([[1] * 6 + [0] * 6], device=encoder.device)
    with torch.no_grad(), seeded(0, "padding"):
        encoder.eval()
        alone, beside = (float(encoder(input_ids=padded[:, :n], attention_mask=mask[:, :n]).logits) for n in (6, 12))
    tolerance = 1e-5 if encoder.dtype == torch.float32 else 0.1
    if abs(alone - beside) > tolerance * abs(alone) + 1e-6:
        raise RecipeError(
            f"model: {type(encoder).__name__} lets padding change rewards ({alone:.4g} became {beside:.4g}); choose another"
        )


def checkpoint_gradients(backbone: Backbone, frozen_inputs: bool) -> None:
    """Have activations computed again in backward; raises RecipeError where a model cannot.

    Args:
        frozen_inputs: whether embeddings are frozen, so that what they give must be told to need a gradient.
    """
    model = backbone.model
    if not model.supports_gradient_checkpointing:
        raise RecipeError(f"model.gradient_checkpointing: {type(model).__name__} cannot recompute activations; set it to false")
    with quiet_transformers():  # the function is renamed in transformers 5.23; this name works before and after
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not backbone.head.pools_last_token and getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # an encoder has no use for one, and would warn; causal models are told in each forward
    if frozen_inputs:
        model.enable_input_require_grads()
