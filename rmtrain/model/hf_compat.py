"""An export that older consumers read too: what transformers 5 writes in a new way, written in the old way beside it.

vLLM, SGLang, TEI, reward-bench and OpenRLHF read configurations by the names of transformers 4, some silently with a wrong default.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IN_VERSION_4 = frozenset(
    {
        "AlbertTokenizer",
        "BarthezTokenizer",
        "BartTokenizer",
        "BertTokenizer",
        "BigBirdTokenizer",
        "BloomTokenizer",
        "CamembertTokenizer",
        "CodeGenTokenizer",
        "CohereTokenizer",
        "DebertaTokenizer",
        "DebertaV2Tokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "FNetTokenizer",
        "FunnelTokenizer",
        "GemmaTokenizer",
        "GPT2Tokenizer",
        "GPTNeoXTokenizer",
        "LlamaTokenizer",
        "MobileBertTokenizer",
        "MPNetTokenizer",
        "OpenAIGPTTokenizer",
        "Qwen2Tokenizer",
        "RemBertTokenizer",
        "RobertaTokenizer",
        "RoFormerTokenizer",
        "SqueezeBertTokenizer",
        "T5Tokenizer",
        "XLMRobertaTokenizer",
    }
)
"""Tokenizer classes that transformers 4 has under the same name."""


def write_config(directory: Path, pad_token_id: int) -> None:
    """Complete `config.json`: both spellings of the type and of rotary positions, the pad id at both levels."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for level in (config, config.get("text_config")):
        if isinstance(level, dict):
            level["pad_token_id"] = pad_token_id
            level.update(old_rope(level))
            if "dtype" in level:
                level["torch_dtype"] = level["dtype"]
    config.pop("_name_or_path", None)
    write_json(file, config)


def old_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions in the names of transformers 4, from `rope_parameters` of a configuration.

    >>> old_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    {'rope_theta': 500000.0}
    """
    parameters = config.get("rope_parameters")
    if not parameters:
        return {}
    if all(isinstance(value, dict) for value in parameters.values()):  # one set for each type of layer
        return _old_rope_by_layer(config, parameters)
    old = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if config.get("model_type") == "gpt_neox":
        old |= {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters.get("partial_rotary_factor", 1.0)}
    return old | _scaling(config, parameters)


def _old_rope_by_layer(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    everywhere, nearby = parameters.get("full_attention", {}), parameters.get("sliding_attention", {})
    if config.get("model_type") == "modernbert":
        return {"global_rope_theta": everywhere.get("rope_theta"), "local_rope_theta": nearby.get("rope_theta")}
    return {"rope_theta": everywhere.get("rope_theta"), "rope_local_base_freq": nearby.get("rope_theta")} | _scaling(
        config, everywhere
    )


def _scaling(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    if parameters.get("rope_type", "default") == "default":
        return {}
    if config.get("model_type") in ("phi3", "phimoe"):  # version 4 refuses any other key there
        names = ("short_factor", "long_factor", "short_mscale", "long_mscale")
        return {
            "rope_scaling": {"type": parameters["rope_type"]} | {name: parameters[name] for name in names if name in parameters}
        }
    return {
        "rope_scaling": {name: value for name, value in parameters.items() if name not in ("rope_theta", "partial_rotary_factor")}
    }


def write_tokenizer(tokenizer: Any, directory: Path, causal: bool) -> None:
    """Save a tokenizer with its chat template in both places and a class that transformers 4 has.

    Causal models must not be given token types: GPT-2 would add an embedding for them.
    """
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
        (directory / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    saved_class = str(config.get("tokenizer_class", "TokenizersBackend"))
    if saved_class.removesuffix("Fast") not in IN_VERSION_4:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        config.setdefault(name, None)  # left out, some tokenizer classes would add one of their own
    if causal:
        config["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "auto_map", "is_local", "local_files_only"):
        config.pop(name, None)
    config["padding_side"] = "right"
    write_json(file, config)


def write_json(file: Path, content: Any) -> None:
    """Write JSON for people to read, with a newline at its end."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
