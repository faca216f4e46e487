"""Tiny mixtures of experts of several types, for tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rmtrain.model.build import scratch_config
from tests.model.builders import scratch

SIZES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32, "layer_types": ["full_attention"] * 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), 8),
        **dict.fromkeys(("qk_rope_head_dim", "head_dim"), 4),
    },
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8},
    "olmoe": {"num_experts": 4},
}
"""Settings of the types that are tested: four experts, of which each token gets two."""


def make_mixture(directory: Path, tokenizer: Any, model_type: str) -> Path:
    """Write a base model of four experts and two layers, with larger random weights than usual, so that routing matters."""
    config = scratch_config(scratch(model_type).scratch, tokenizer)
    for name, value in {**SIZES[model_type], "num_experts_per_tok": 2}.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
