"""A saved reward model, whole or an adapter, to a RewardModel for scoring."""

import copy
import hashlib
import json
import warnings
from functools import partial
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoTokenizer, PretrainedConfig

from rmtrain.errors import CheckpointError
from rmtrain.model.head import HeadSpec, find_head, outline
from rmtrain.model.hf_setup import quiet_transformers, seeded, set_single_output
from rmtrain.model.pretrained import ModelRef, Weights, find_weights, load_backbone, load_config
from rmtrain.model.reward_model import RewardModel

FACTS, GOLDEN = "rmtrain.json", "golden.json"
SHOWN_CHARACTERS = 60


def load_reward_model(
    path: str,
    device: torch.device | str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    allow_template_change: bool = False,
) -> tuple[RewardModel, Any]:
    """Load a reward model and its tokenizer, in evaluation mode.

    Args:
        path: Hub id or directory of a sequence-classification model with one output, or of a PEFT adapter for one.
        device: where the model goes.
        revision: commit, tag or branch of a Hub model.
        dtype: of all weights but the head, which is float32.
        trust_remote_code: run code that comes with the model; needs a full commit hash as `revision`.
        allow_template_change: load an rmtrain export whose chat template is no longer the one it was trained with.

    Returns:
        The model, and its tokenizer, which pads on the right.

    Raises:
        CheckpointError: no model there, no score head with one output, a pad token that is missing, of two minds, or the end token, or
            a tokenizer that no longer gives the tokens that it gave when the model was exported.
    """
    origin = ModelRef(path, revision, "model", CheckpointError, trust_remote_code).checked()
    return load_from(origin, device, dtype, allow_template_change)


def load_from(
    origin: ModelRef, device: torch.device | str, dtype: torch.dtype, allow_template_change: bool = False
) -> tuple[RewardModel, Any]:
    """As `load_reward_model`, of an origin that was checked."""
    adapter = origin.read_json("adapter_config.json")
    load = partial(_load_adapter, origin, adapter) if adapter is not None else partial(_load_whole, origin, *_scorer(origin))
    tokenizer = _load_tokenizer(origin, adapter)
    if not allow_template_change:
        _check_template(origin, tokenizer)
    _check_tokens(origin, tokenizer)
    return load(tokenizer, dtype).to(device).eval(), tokenizer


def template_hash(tokenizer: Any) -> str | None:
    """sha256 of the tokenizer's chat template; None: it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()


def _scorer(origin: ModelRef) -> tuple[PretrainedConfig, HeadSpec]:
    """Configuration as it was saved, and the place of the head, which has one output."""
    config = load_config(origin)
    one_output = copy.deepcopy(config)
    set_single_output(one_output)
    with quiet_transformers():
        place = find_head(outline(one_output, origin.refuse, origin.trust_remote_code), origin.refuse)
    _check_head(origin, find_weights(origin), place.weight)
    return config, place


def _load_whole(origin: ModelRef, config: PretrainedConfig, place: HeadSpec, tokenizer: Any, dtype: torch.dtype) -> RewardModel:
    _check_pad_ids(origin, config, tokenizer)
    _check_end(origin, place, tokenizer)
    backbone = load_backbone(origin, tokenizer, "from_checkpoint", dtype=dtype)
    if backbone.new_tokens:
        rows = backbone.new_tokens.start
        raise origin.refuse(f"the tokenizer of {origin.path} has {len(tokenizer)} tokens, its weights have embeddings for {rows}")
    return RewardModel(backbone.model, place, origin, dtype)


def _load_adapter(origin: ModelRef, adapter: dict[str, Any], tokenizer: Any, dtype: torch.dtype) -> RewardModel:
    base = adapter.get("base_model_name_or_path")
    if adapter.get("task_type") != "SEQ_CLS":
        raise origin.refuse(f"{origin.path} is an adapter for {adapter.get('task_type')}; expected one for SEQ_CLS")
    if not isinstance(base, str) or not base:
        raise origin.refuse(f"the adapter {origin.path} names no base model; evaluate the merged model beside it")
    base_origin = ModelRef(base, adapter.get("revision"), f"base model of {origin.path}", CheckpointError).checked()
    weights = find_weights(origin, "adapter_model")
    backbone = load_backbone(base_origin, tokenizer, "new", dtype=dtype)
    _check_head(origin, weights, f"base_model.model.{backbone.head.weight}")
    _check_end(origin, backbone.head, tokenizer)
    with quiet_transformers(), seeded(0, "overwritten"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)  # checked below
        adapted = PeftModel.from_pretrained(backbone.model, origin.path, revision=origin.revision, torch_device="cpu")
    lacking = sorted(set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - weights.names)
    if lacking:
        raise origin.refuse(
            f"the adapter {origin.path} lacks {', '.join(lacking[:3])}; expected the weights its adapter_config.json names"
        )
    return RewardModel(adapted, backbone.head, base_origin, dtype)


def _load_tokenizer(origin: ModelRef, adapter: dict[str, Any] | None) -> Any:
    source = origin
    if adapter is not None and origin.find("tokenizer_config.json") is None:
        source = ModelRef(
            str(adapter.get("base_model_name_or_path")), adapter.get("revision"), origin.label, origin.error
        ).checked()
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source.path, **source.loading)
    except (OSError, ValueError, KeyError) as error:
        raise origin.refuse(f"cannot load the tokenizer of {source.path}: {error}") from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        fix = "set pad_token in its tokenizer_config.json, and its id as pad_token_id in config.json"
        raise origin.refuse(f"the tokenizer of {source.path} has no pad token; {fix}")
    return tokenizer


def _check_template(origin: ModelRef, tokenizer: Any) -> None:
    facts = origin.read_json(FACTS)
    if facts is not None and facts.get("template_sha256") != template_hash(tokenizer):
        raise origin.refuse(f"template hash differs: {origin.path} was trained with another chat template; restore it")


def _check_tokens(origin: ModelRef, tokenizer: Any) -> None:
    """Libraries change how a tokenizer that stays the same reads a text; the golden texts of an export show it."""
    file = origin.find(GOLDEN) if origin.find(FACTS) is not None else None
    if file is None:
        return
    try:
        golden = [
            (str(e["text"]), bool(e["add_special_tokens"]), list(e["ids"])) for e in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise origin.refuse(f"{GOLDEN} of {origin.path} is damaged; export the model again") from error
    for text, special, ids in golden:
        if list(tokenizer(text, add_special_tokens=special)["input_ids"]) != ids:
            raise origin.refuse(
                f"the tokenizer of {origin.path} gives other tokens than when the model was exported, such as for "
                f"{text[:SHOWN_CHARACTERS]!r}; install the version of tokenizers that it was exported with"
            )


def _check_pad_ids(origin: ModelRef, config: PretrainedConfig, tokenizer: Any) -> None:
    token, expected = tokenizer.pad_token, tokenizer.pad_token_id
    for level in (config, config.get_text_config()):
        pad = getattr(level, "pad_token_id", None)
        if pad != expected:
            came = "no pad_token_id" if pad is None else f"pad_token_id {pad}"
            fix = f'set "pad_token_id": {expected} in config.json'
            raise origin.refuse(f"config.json of {origin.path} has {came}, but its tokenizer pads with {token!r}; {fix}")


def _check_end(origin: ModelRef, place: HeadSpec, tokenizer: Any) -> None:
    if place.pools_last_token and tokenizer.pad_token_id == tokenizer.eos_token_id:
        wrong = f"the tokenizer of {origin.path} pads with its end token {tokenizer.eos_token!r}, so transformers reads rewards before it"
        raise origin.refuse(f"{wrong}; set pad_token to another token, and pad_token_id in config.json to its id")


def _check_head(origin: ModelRef, weights: Weights, name: str) -> None:
    if name not in weights.names:
        what = "an adapter without one" if name.startswith("base_model.") else "a base model"
        raise origin.refuse(f"no score head: {origin.path} is {what}; train one with `rmtrain train`")
    shape = list(weights.tensor(name).shape)
    if len(shape) != 2 or shape[0] != 1:
        raise origin.refuse(f"the score head of {origin.path} has shape {shape}, expected one output: [1, H]")
