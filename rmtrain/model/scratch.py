"""Sizes to a model with random weights, for any architecture of transformers."""

import copy
import difflib
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rmtrain.errors import RecipeError
from rmtrain.model.config import set_dropout, set_single_output
from rmtrain.model.head import find_head, outline
from rmtrain.model.quiet import quiet_transformers
from rmtrain.model.randomness import seeded
from rmtrain.recipe.schema import Architecture

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
