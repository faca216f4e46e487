"""Exports that older consumers also read: what transformers 5 writes under new names is written under the old names as well.

vLLM, SGLang, TEI, reward-bench and OpenRLHF read configurations by the names of transformers 4, some silently with a wrong default.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRANSFORMERS_4_TOKENIZERS = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("Albert", "Barthez", "Bart", "Bert", "BigBird", "Bloom", "Camembert", "CodeGen", "Cohere", "Deberta", "DebertaV2"),
        *("DistilBert", "Electra", "FNet", "Funnel", "Gemma", "GPT2", "GPTNeoX", "Llama", "MobileBert", "MPNet", "OpenAIGPT"),
        *("Qwen2", "RemBert", "Roberta", "RoFormer", "SqueezeBert", "T5", "XLMRoberta"),
    )
)
"""Tokenizer classes that transformers 4 has under the same name."""


def write_config(directory: Path, pad_token_id: int) -> None:
    """Complete `config.json`: both names of the dtype and of rotary positions, and the pad id at both levels."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for level in (config, config.get("text_config")):
        if isinstance(level, dict):
            level["pad_token_id"] = pad_token_id
            level.update(old_rope(level))
            if "dtype" in level:
                level["torch_dtype"] = level["dtype"]
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(file, config)


def old_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary positions under the names of transformers 4, from the `rope_parameters` of a configuration.

    >>> old_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    {'rope_theta': 500000.0}
    """
    parameters, model_type = config.get("rope_parameters"), config.get("model_type")
    if not parameters:
        return {}
    if all(isinstance(value, dict) for value in parameters.values()):  # one set for each type of layer
        full, sliding = parameters.get("full_attention", {}), parameters.get("sliding_attention", {})
        if model_type == "modernbert":
            return {"global_rope_theta": full.get("rope_theta"), "local_rope_theta": sliding.get("rope_theta")}
        old = {"rope_theta": full.get("rope_theta"), "rope_local_base_freq": sliding.get("rope_theta")}
        parameters = full
    else:
        old = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
    if model_type == "gpt_neox":
        old |= {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters.get("partial_rotary_factor", 1.0)}
    scaling = {name: value for name, value in parameters.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if model_type in ("phi3", "phimoe"):  # transformers 4 refuses any other key here
        names = ("short_factor", "long_factor", "short_mscale", "long_mscale")
        scaling = {"type": parameters.get("rope_type")} | {name: scaling[name] for name in names if name in scaling}
    return old if parameters.get("rope_type", "default") == "default" else {**old, "rope_scaling": scaling}


def write_tokenizer(tokenizer: Any, directory: Path, causal: bool) -> None:
    """Save a tokenizer with its chat template in both places and a class that transformers 4 has."""
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
        (directory / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if str(config.get("tokenizer_class", "TokenizersBackend")).removesuffix("Fast") not in TRANSFORMERS_4_TOKENIZERS:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        config.setdefault(name, None)  # left out, some tokenizer classes would add one of their own
    if causal:
        config["model_input_names"] = ["input_ids", "attention_mask"]  # GPT-2 would add an embedding for token types
    for name in ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "auto_map", "is_local", "local_files_only"):
        config.pop(name, None)
    config["padding_side"] = "right"
    write_json(file, config)


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON with a newline at the end."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
