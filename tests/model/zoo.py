"""A tiny configuration of each architecture that transformers has, so that all of them can be built and trained in seconds."""

import copy
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rmtrain.batching.layout import Layout, lay_out
from rmtrain.errors import CheckpointError, RecipeError, RmtrainError
from rmtrain.model import export_dir
from rmtrain.model.build import check_forward, freeze_untrainable
from rmtrain.model.classifier import (
    BUILD_ERRORS,
    find_head,
    install_head,
    meta_classifier,
    prepare_config,
    quiet_transformers,
    seeded,
    set_token_ids,
)
from rmtrain.model.last_token_classifier import text_part
from rmtrain.model.layout_probe import choose_layout
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import FACTS
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import BradleyTerry
from tests.model.builders import amplified, comparisons, make_golden, make_tokenizer

ARCHITECTURES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES})
"""Every causal model and encoder of the installed transformers."""

LAYERS = 4
HIDDEN, HEADS, HEAD, MLP, EXPERT, EXPERTS, RANK, POSITIONS, WINDOW = 64, 4, 16, 96, 32, 4, 16, 128, 8
SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "emb_dim", "lru_width"), HIDDEN
    ),
    **dict.fromkeys(("attention_hidden_size", "bottleneck_size", "true_hidden_size", "intra_bottleneck_size"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("swa_num_attention_heads", "index_n_heads", "linear_num_value_heads", "linear_num_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "v_head_dim", "swa_v_head_dim", "linear_key_head_dim"), HEAD),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "linear_value_head_dim", "linear_head_dim", "rotary_dim"), HEAD),
    **dict.fromkeys(("index_head_dim", "attention_head_dim", "d_kv"), HEAD),
    "qk_head_dim": 2 * HEAD,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank"), RANK),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "intermediate_size_mlp"), MLP
    ),
    **dict.fromkeys(("dense_intermediate_size", "dim_ff", "d_ff"), MLP),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), EXPERT),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), EXPERT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_layer_start_index", "num_dense_layers"), 1),
    "zero_expert_num": 0,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), POSITIONS),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_mamba_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), HEAD),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), HEAD),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate"), 2 * HIDDEN),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "sliding_window_size"), WINDOW),
    "index_topk": POSITIONS,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "chunk_size": 16,
}
"""The same size has many names. An architecture takes those that its configuration has."""

MIXED = ["linear_attention", "full_attention"] * 2
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note_text": {"head_dim": 2 * HEAD},
    "esm": {"pad_token_id": 1, "mask_token_id": 2, "emb_layer_norm_before": False},
    "esmc": {"num_key_value_heads": HEADS},
    "granitemoehybrid": {"layer_types": MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 10},
    "mistral4": {"head_dim": 2 * HEAD},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "qwen4_exp_text": {
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "output_gate_type": "sigmoid",
    },
    "reformer": {"axial_pos_embds": False, "attention_head_size": HEAD, "is_decoder": False},
    "xlstm": {"embedding_dim": HIDDEN, "num_heads": 4, "num_blocks": LAYERS, "qk_dim_factor": 1.0},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 2 * HEAD,
        "attention_hidden_size": 2 * HIDDEN,
    },
    "zamba2": {
        "attention_head_dim": 2 * HEAD,
        "attention_hidden_size": 2 * HIDDEN,
        "hybrid_layer_ids": [1, 3],
        "kv_channels": HEAD,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What does not follow from the sizes: types of layers, and sizes that must agree with one another."""


def tiny_config(model_type: str, tokens: int) -> PretrainedConfig:
    """Return the configuration to train of an architecture, with four layers of hidden size 64 and `tokens` embeddings.

    Of a model for text and images without a class of its own it is that of the text part, as in a run.
    """
    return copy.deepcopy(shrunk(text_part(CONFIG_MAPPING[model_type](), trust_remote_code=False), tokens))


def shrunk(default: PretrainedConfig, tokens: int) -> PretrainedConfig:
    """Return a configuration of the same class with tiny sizes, also those of its parts."""
    values, names = default.to_dict(), default.attribute_map
    sizes = {**SIZES, "vocab_size": tokens, "vocab_size_per_layer_input": tokens}
    if values.get("kv_lora_rank"):  # each head has keys of its own
        sizes |= {"num_key_value_heads": HEADS}
    layers = values.get(names.get("num_hidden_layers", "num_hidden_layers"))
    chosen: dict[str, Any] = {}
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            chosen[name] = shrunk(part, tokens).to_dict()
    for size_name, size in sizes.items():
        name = names.get(size_name, size_name)
        present = values.get(name)
        is_size = isinstance(present, int) and not isinstance(present, bool) and present > 0
        if is_size or (name in values and present is None and name in ("head_dim", "num_key_value_heads", "vocab_size")):
            chosen[name] = size
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers:  # one of each kind first
            chosen[name] = [*{str(item): item for item in value}.values(), *value][:LAYERS]
        elif isinstance(value, float) and "drop" in name:
            chosen[name] = 0.0
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    chosen |= {name: number for name, number in special.items() if name in values}
    chosen |= {"per_layer_config": {}} if "per_layer_config" in values else {}
    return type(default)(**chosen | SPECIAL.get(default.model_type, {}))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens to an architecture: how it is trained and where its export loads, or why it is refused.

    made: transformers has no class for it, and its export brings one.
    unreached: some parameters get no gradient from texts of some forty tokens, so that a run would stop after its first step.
    """

    layout: Layout | None = None
    made: bool = False
    left_padding: bool = False
    unreached: bool = False
    refused: str | None = None


def tiny_model(model_type: str, tokenizer: Any) -> RewardModel:
    """Build an architecture tiny, in float32, and check its forward; raises RmtrainError or one of BUILD_ERRORS where it is refused."""
    config = tiny_config(model_type, len(tokenizer))
    prepare_config(config, 0.0)
    with quiet_transformers():
        head = find_head(meta_classifier(config, RecipeError), RecipeError)
        with seeded(0, "weights"):
            hf = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    set_token_ids(hf, tokenizer)
    install_head(hf, head, None, seed=1)
    check_forward(hf, head, tokenizer)
    freeze_untrainable(hf)
    return RewardModel(hf, head, None, torch.float32)


def try_out(model_type: str, tokenizer: Any, directory: Path) -> Outcome:
    """Build an architecture tiny, train it one step, export it into `directory`, and reload it in a process of its own."""
    try:
        model = tiny_model(model_type, tokenizer)
    except (RmtrainError, *BUILD_ERRORS) as error:
        return Outcome(refused=" ".join(str(error).split()))
    if model.pools_last_token:
        amplified(model)
    rows = comparisons(len(tokenizer), end=tokenizer.eos_token_id)
    layout = choose_layout(model, "auto", rows, tokenizer.pad_token_id)
    before = model.head_weight_1H.detach().clone()
    batch = lay_out(rows, tokenizer.pad_token_id, layout)
    loss = compute_objective(BradleyTerry(), model.train()(batch), batch).loss
    loss.backward()
    unreached = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert torch.isfinite(loss), model_type
    assert not torch.equal(model.head_weight_1H, before), model_type
    export = directory / model_type
    export_dir.write_export(model, tokenizer, export, make_golden(tokenizer), {})
    try:
        report = export_dir.check_reload(export)
    except CheckpointError as error:
        raise AssertionError(f"{model_type}: {error}") from error
    assert report["modes"][:2] == ["single", "right"], (model_type, report)
    facts = json.loads((export / FACTS).read_text())
    return Outcome(layout, facts["code"] is not None, facts["left_padding"], unreached)


def outcome_table(outcomes: dict[str, Outcome]) -> str:
    """Return the tables of docs/engine.md: architectures that are trained, by layout and by where their exports load, and those refused."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for model_type, outcome in sorted(outcomes.items()):
        if outcome.refused is not None:
            reasons[_reason(model_type, outcome.refused)].append(model_type)
        else:
            where = "with its own code" if outcome.made else "directly"
            groups[str(outcome.layout), where].append(model_type)
    trained = sum(map(len, groups.values()))
    lines = [
        f"Of {len(outcomes)} architectures, {trained} are trained and {len(outcomes) - trained} refused.",
        "",
        "| layout | transformers loads the export | number | architectures |",
        "|---|---|---|---|",
    ]
    for (layout, where), types in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        lines.append(f"| `{layout}` | {where} | {len(types)} | {', '.join(types)} |")
    right_only = [name for name, outcome in sorted(outcomes.items()) if outcome.made and not outcome.left_padding]
    lines += ["", f"Causal models whose rewards change with padding on the left: {', '.join(right_only) or 'none'}.", ""]
    unreached = [name for name, outcome in sorted(outcomes.items()) if outcome.unreached]
    lines += [
        f"Texts of forty tokens leave weights without a gradient, which ends a run, in: {', '.join(unreached) or 'none'}.",
        "",
    ]
    lines += ["| refused, because | number | architectures |", "|---|---|---|"]
    for reason, types in sorted(reasons.items(), key=lambda group: (-len(group[1]), group[0])):
        lines.append(f"| {reason} | {len(types)} | {', '.join(types)} |")
    return "\n".join(lines) + "\n"


def _reason(model_type: str, refusal: str) -> str:
    """Return why an architecture is refused, in words that several can share."""
    for words, reason in REASONS.items():
        if words in refusal:
            return reason
    return refusal.replace("|", "/")[:160]


REASONS = {
    "encoder-decoder": "an encoder-decoder",
    "padding changes its rewards": "padding changes its rewards, whatever the mask",
    "not a causal model": "it generates, but looks ahead",
    "no linear layer score": "its head is not one linear layer",
    "neither a causal": "transformers has no base model of text for it",
    "Multiple valid text configs": "transformers has no base model of text for it",
}


def main(names: Iterable[str]) -> None:
    """Print the tables, of the named architectures or of all."""
    tokenizer, outcomes = make_tokenizer(), {}
    from tests.forks import run_script

    export_dir.subprocess = SimpleNamespace(run=run_script)  # type: ignore[assignment]
    for model_type in names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[model_type] = try_out(model_type, tokenizer, Path(folder))
    print(outcome_table(outcomes), end="")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
