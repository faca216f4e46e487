"""A saved reward model, whole or an adapter, loaded for scoring.

Everything that would change rewards silently is refused: a random head, a pad token that transformers reads past, another chat
template, or a tokenizer that gives other tokens.
"""

import hashlib
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from rmtrain.data.text.tokenizer import ADAPTER_CONFIG, adapter_problem, open_tokenizer, read_tokenizer
from rmtrain.errors import CheckpointError
from rmtrain.files import expanded, read_json
from rmtrain.model.classifier import pad_beyond, quiet_transformers, seeded
from rmtrain.model.model_files import ModelRef, find_weights
from rmtrain.model.pretrained import LoadedModel, load_config, load_pretrained, read_head
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.load import MARKER, RECIPE
from rmtrain.recipe.schema import Data

FACTS, GOLDEN = "rmtrain.json", "golden.json"
SURROGATES = re.compile("[\ud800-\udfff]")
CHECKPOINT = "manifest.json"
"""A file of each checkpoint in the `checkpoints` of a run."""


def model_of(path: str) -> str:
    """Return the model that a path or Hub id names: that of a run for the directory of the run, else what was given.

    Raises:
        CheckpointError: a run that has not exported its model yet, or one of its checkpoints; says how to export it.
    """
    place = expanded(path)
    if Path(os.path.realpath(place)).parent.name == "checkpoints" and (place / CHECKPOINT).is_file():
        export = shlex.join(["rmtrain", "export", path])
        raise CheckpointError(f"{path}: a checkpoint is not a model; export it with `{export}`, and name the export")
    if not (place / MARKER).is_file():
        return path
    if (place / "model").is_dir():
        return str(place / "model")
    resume, export = (shlex.join(["rmtrain", *words]) for words in (["train", str(place / RECIPE)], ["export", path]))
    saved = f", or export its latest checkpoint with `{export}`" if any(place.glob(f"checkpoints/*/{CHECKPOINT}")) else ""
    raise CheckpointError(f"{path}: this run is not finished and has no model yet; resume it with `{resume}`{saved}")


def load_reward_model(
    path: str, device: torch.device | str, *, revision: str | None = None, allow_template_change: bool = False
) -> tuple[RewardModel, Any]:
    """Load a reward model in float32 and evaluation mode, and its tokenizer, which pads on the right.

    Args:
        path: Hub id or directory of a sequence-classification model with one output, or of a PEFT adapter for one; or a run.
        revision: commit, tag or branch of a Hub model.
        allow_template_change: load an rmtrain export whose chat template is no longer the one it was trained with.

    Raises:
        CheckpointError: there is no model (see `model_of`), it has no score head with one output, its pad token is missing, inconsistent
            or the end token, or its tokenizer no longer gives the tokens that it gave when the model was exported.
    """
    return load_from(ModelRef(model_of(path), revision, "model").checked(), device, allow_template_change)


def load_from(ref: ModelRef, device: torch.device | str, allow_template_change: bool = False) -> tuple[RewardModel, Any]:
    """Load as `load_reward_model` does, from a checked reference."""
    adapter = ref.read_json(ADAPTER_CONFIG)
    base = ref if adapter is None else _base_of(ref, adapter)
    config = load_config(base)
    source = ref if adapter is None or ref.find("tokenizer_config.json") else base
    with quiet_transformers():
        tokenizer = read_tokenizer(source.path, source.label, source.revision, source.trust_remote_code)
    _check_template_and_tokens(ref, tokenizer, allow_template_change)
    loaded = load_pretrained(base, tokenizer, "from_checkpoint" if adapter is None else "new", dtype=torch.float32)
    _check_pad_token(ref, tokenizer, loaded.head.pools_last_token, config if adapter is None else None)
    if adapter is None and set(loaded.new_tokens) - {tokenizer.pad_token_id}:  # padding is never attended to
        rows = loaded.new_tokens.start
        raise ref.error(f"the tokenizer of {ref.path} has {len(tokenizer)} tokens, its weights have embeddings for {rows}")
    hf = loaded.model if adapter is None else _add_adapter(ref, loaded)
    return RewardModel(hf, loaded.head, base, torch.float32).to(device).eval(), tokenizer


def template_hash(tokenizer: Any) -> str | None:
    """Return the sha256 of the tokenizer's chat template, or None if it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()


def tokenizer_for_data(model: str, own: Any, data: Data, allow_template_change: bool = False) -> PreTrainedTokenizerFast:
    """Return the tokenizer with which a saved model reads the data of a recipe: `own`, its own, with the template of the recipe.

    Raises CheckpointError if that is another template than the model's.
    """
    kwargs = data.chat_template_kwargs
    tokenizer = open_tokenizer(model, data.chat_template, variables=kwargs)
    is_asked_for = data.chat_template != "tokenizer" or kwargs
    if is_asked_for and template_hash(tokenizer) != template_hash(own) and not allow_template_change:
        raise CheckpointError(
            f"template hash differs: {model} has another chat template than data.chat_template: {data.chat_template[:40]!r} "
            "with data.chat_template_kwargs; set tokenizer and no kwargs, or pass --allow-template-change"
        )
    return tokenizer


def _base_of(ref: ModelRef, adapter: dict[str, Any]) -> ModelRef:
    path = adapter.get("base_model_name_or_path")
    if adapter.get("task_type") != "SEQ_CLS":
        raise ref.error(f"{adapter_problem(ref.path)}; it is for {adapter.get('task_type')}, expected SEQ_CLS")
    if not isinstance(path, str) or not path:
        raise ref.error(f"the adapter {ref.path} names no base model; load the merged model instead")
    return ModelRef(path, adapter.get("revision"), f"base model of {ref.path}").checked()


def _check_template_and_tokens(ref: ModelRef, tokenizer: Any, allow_template_change: bool) -> None:
    """Compare the tokenizer of an rmtrain export with what the export recorded; other models have no record."""
    facts = ref.read_json(FACTS)
    if facts is None:
        return
    if not allow_template_change and facts.get("template_sha256") != template_hash(tokenizer):
        raise ref.error(f"template hash differs: {ref.path} was trained with another chat template; restore it")
    file = ref.find(GOLDEN)
    if file is None:  # an export verifies itself before it writes golden.json
        return
    try:
        entries = [(e["text"], e["add_special_tokens"], e["ids"]) for e in read_json(file, list)]
        is_valid = bool(entries) and all(map(_is_golden, entries))
    except (OSError, ValueError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise ref.error(f"{GOLDEN} of {ref.path} is damaged: expected a list of texts with their ids; export the model again")
    for text, special, ids in entries:
        # New versions of tokenizers have changed how an unchanged tokenizer.json splits a text.
        if list(tokenizer(text, add_special_tokens=special)["input_ids"]) != ids:
            raise ref.error(
                f"the tokenizer of {ref.path} gives other tokens than at export, for example for {text[:60]!r}; "
                "install the version of tokenizers that it was exported with"
            )


def _is_golden(entry: tuple[Any, Any, Any]) -> bool:
    text, special, ids = entry
    is_text = isinstance(text, str) and not SURROGATES.search(text)  # which no tokenizer can encode
    return is_text and isinstance(special, bool) and isinstance(ids, list)


def _check_pad_token(ref: ModelRef, tokenizer: Any, pools_last_token: bool, config: PretrainedConfig | None) -> None:
    """transformers reads the reward at the last token that is not the pad id, so that a wrong one moves it silently."""
    token, expected = tokenizer.pad_token, tokenizer.pad_token_id
    if expected is None:
        remedy = "set pad_token in its tokenizer_config.json, and its id as pad_token_id in config.json"
        raise ref.error(f"the tokenizer of {ref.path} has no pad token; {remedy}")
    for level in () if config is None else (config, config.get_text_config()):
        pad = getattr(level, "pad_token_id", None)
        if pad != expected and pad_beyond(level) is None:
            found = "no pad_token_id" if pad is None else f"pad_token_id {pad}"
            remedy = f'set "pad_token_id": {expected} in config.json'
            raise ref.error(f"config.json of {ref.path} has {found}, but its tokenizer pads with {token!r}; {remedy}")
    if pools_last_token and expected == tokenizer.eos_token_id:
        problem = f"the tokenizer of {ref.path} pads with its end token {token!r}, so transformers reads rewards before it"
        raise ref.error(f"{problem}; set pad_token to another token, and pad_token_id in config.json to its id")


def _add_adapter(ref: ModelRef, base: LoadedModel) -> PeftModel:
    weights = find_weights(ref, "adapter_model")
    read_head(weights, f"base_model.model.{base.head.name}", required=True)
    with quiet_transformers(), seeded(0, "overwritten"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)  # checked below
        adapted = PeftModel.from_pretrained(base.model, ref.path, revision=ref.revision, torch_device="cpu")
    missing = sorted(set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - weights.files.keys())
    if missing:
        raise ref.error(
            f"the adapter {ref.path} lacks {', '.join(missing[:3])}; expected the weights its adapter_config.json names"
        )
    return adapted
