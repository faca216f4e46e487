"""Rewards, loss and every gradient are the same in all layouts, or the layout is refused. The central promise of rmtrain."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.errors import RecipeError
from rmtrain.model import attention
from rmtrain.model.build import build_reward_model
from rmtrain.model.classifier import find_head, install_head
from rmtrain.model.layout_probe import LayoutProbe, choose_layout
from rmtrain.model.reward_model import RewardModel, unwrap
from rmtrain.objective import compute_objective
from rmtrain.recipe.schema import BradleyTerry, Lora
from tests.comparisons import tokenized
from tests.model.builders import amplified, build, comparisons, scratch

PAD, EOS = 0, 1
EXACT = ("llama", "qwen3", "gemma", "phi3", "gpt_neox", "gpt2", "opt", "olmo2", "mixtral")
WINDOW = {"sliding_window": 8}
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOW},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOW},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW},
    "mistral": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "bloom": {},
    "falcon": {},
    "stablelm": {},
}
CHOSEN: dict[str, Layout] = dict.fromkeys(SPECIAL, "shared_prefix") | dict.fromkeys(("bloom", "falcon", "stablelm"), "padded")
"""The choice of `auto`; docs/PERFORMANCE.md has the table."""


def special(architecture: str) -> RewardModel:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    tokens = {"vocab_size": 200, "max_position_embeddings": 128, "num_labels": 1, "pad_token_id": PAD, "eos_token_id": EOS}
    config = AutoConfig.for_model(architecture, **sizes, **tokens, **(SPECIAL | HYBRIDS)[architecture])
    for name in ("attention_dropout", "hidden_dropout", "classifier_dropout"):
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    hf = AutoModelForSequenceClassification.from_config(config)
    place = find_head(hf, RecipeError)
    install_head(hf, place, None, seed=1)
    return amplified(RewardModel(hf, place, None, torch.float32))


def results(
    model: RewardModel, rows: list[TokenizedComparison], layout: Layout, read_tokens_only: bool = True
) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    model.use_layout(layout, read_tokens_only)
    model.zero_grad()
    batch = lay_out(rows, PAD, layout)
    rewards = model(batch)
    loss = compute_objective(BradleyTerry(center_rewards=0.01), rewards, batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return rewards.detach(), loss.item(), gradients


def assert_layouts_agree(
    model: RewardModel, rows: list[TokenizedComparison], layouts: tuple[Layout, ...], read_tokens_only: bool = True
) -> None:
    rewards, loss, gradients = results(model, rows, "padded")
    assert rewards.std() > 0.05, "guard: rewards differ"
    for layout in layouts:
        other_rewards, other_loss, other_gradients = results(model, rows, layout, read_tokens_only)
        torch.testing.assert_close(other_rewards, rewards, rtol=1e-5, atol=1e-5 * float(rewards.abs().max()))
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_gradients.keys() == gradients.keys()
        floor = 2e-3 * max(
            float(gradient.abs().max()) for gradient in gradients.values()
        )  # OPT's key biases have none but rounding
        for name, gradient in gradients.items():
            error = (other_gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=floor)
            assert error < 5e-5, f"{layout} {name}: {error:.1e}"


@pytest.mark.parametrize("architecture", EXACT)
def test_rewards_loss_and_gradients_equal_in_layouts(architecture: str, tokenizer: Any) -> None:
    heads = {"key_value_heads": 2} if architecture in ("llama", "qwen3") else {}
    model = amplified(build(architecture, tokenizer, hidden_size=64, **heads))
    rows = comparisons(len(tokenizer))
    assert_layouts_agree(model, rows, ("shared_prefix", "packed"))
    assert choose_layout(model, "auto", rows, PAD) == "shared_prefix"
    assert {row.prefix_length for row in rows} >= {0, 1, 9}, "guard: no, one, and all but one token are shared"
    assert {len(row.sequences) for row in rows} == {2, 4, 7}


@pytest.mark.parametrize("architecture", SPECIAL)
def test_special_attention_is_right_in_auto_layout(architecture: str) -> None:
    """Windows, soft caps, sinks and ALiBi: `auto` chooses a layout in which the model is right."""
    model, rows = special(architecture), comparisons()
    layout = choose_layout(model, "auto", rows, PAD)
    assert layout == CHOSEN[architecture]
    assert_layouts_agree(model, rows, (layout,))
    if layout == "padded":
        with pytest.raises(RecipeError, match=r"^batching\.layout: shared_prefix "):
            choose_layout(model, "shared_prefix", rows, PAD)
    assert max(max(map(len, row.sequences)) for row in rows) > 2 * WINDOW["sliding_window"], (
        "guard: rows are longer than the window"
    )


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "modernbert with mean"])
def test_packed_encoders_equal_padded_ones(architecture: str, tokenizer: Any) -> None:
    """The head reads what it reads in padded rows: the first token, a pooler of it, or the mean. ModernBERT has windows.

    The last layer is computed where the first token is read alone, and for all tokens of a mean.
    """
    reads_first = not architecture.endswith("mean")
    model = build(architecture.partition(" ")[0], tokenizer, hidden_size=64)
    if architecture.startswith("modernbert"):
        config = model.backbone.config
        config.classifier_pooling = "cls" if reads_first else "mean"
        config.local_attention = 10
        for layer in model.backbone.model.layers[1:]:
            assert layer.attn.sliding_window is not None
            layer.attn.sliding_window = 6  # with the token itself
    rows = comparisons(len(tokenizer), end=tokenizer.eos_token_id)
    assert_layouts_agree(amplified(model), rows, ("packed",), read_tokens_only=reads_first)
    assert choose_layout(model, "auto", rows, tokenizer.pad_token_id) == "packed"
    assert model._read_tokens_only == reads_first
    with pytest.raises(RecipeError, match=r"^batching\.layout: shared_prefix .*encoder"):
        choose_layout(model, "shared_prefix", rows, tokenizer.pad_token_id)
    assert max(max(map(len, row.sequences)) for row in rows) > 12, "guard: rows are longer than the window"


@pytest.mark.parametrize("architecture", ["deberta-v2", "mpnet", "albert"])
def test_encoders_with_their_own_attention_are_padded(architecture: str, tokenizer: Any) -> None:
    model, rows = build(architecture, tokenizer), comparisons(len(tokenizer), end=tokenizer.eos_token_id)
    assert choose_layout(model, "auto", rows, tokenizer.pad_token_id) == "padded"
    with pytest.raises(RecipeError, match=r"^batching\.layout: packed "):
        choose_layout(model, "packed", rows, tokenizer.pad_token_id)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_equal_responses_tie_exactly(architecture: str, tokenizer: Any) -> None:
    """To the last bit, in every layout and wherever they stand in a micro-batch, with the gradients of the padded layout."""
    model = amplified(build(architecture, tokenizer, hidden_size=64))
    rows = comparisons(len(tokenizer))
    first = rows[3].sequences
    edges = tuple(Preference(a, b) for a in range(9) for b in range(a))
    rows[3] = tokenized("s:3", first[0], first[1], first[0], *first[2:], first[0], preferences=edges)
    rows.append(tokenized("s:6", first[2], first[2]))
    if model.pools_last_token:
        assert_layouts_agree(model, rows, ("shared_prefix", "packed"))
    layouts: tuple[Layout, ...] = ("padded", "packed", "shared_prefix") if model.pools_last_token else ("padded",)
    for layout in layouts:
        rewards, _, _ = results(model, rows, layout)
        ties = [len(set(of_row.tolist())) for of_row in rewards.split([len(row.sequences) for row in rows])]
        assert ties == [2, 2, 4, 7, 4, 2, 1]


HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "head_dim": 16,
    },
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 16},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "num_local_experts": 2, "head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4, "num_experts": 2, "mamba_d_state": 4},
}


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_recurrent_layers_are_never_packed(architecture: str) -> None:
    """Whatever a probe finds: the state of linear attention decays, so that short or lucky rows agree."""
    model, rows = special(architecture), comparisons()
    assert choose_layout(model, "auto", rows, PAD) == "padded"
    for layout in ("packed", "shared_prefix"):
        with pytest.raises(RecipeError, match=rf"^batching\.layout: {layout} .*(linear_attention|convolution)"):
            choose_layout(model, layout, rows[:1], PAD)
    assert results(model, rows, "padded")[0].std() > 0.01, "guard: the model works"


def test_probe_finds_small_leaks(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the effect of the context is too much in float32; rounding of the same size in bfloat16 is not."""
    model, rows = amplified(build("llama", tokenizer, hidden_size=64)), comparisons(len(tokenizer))
    assert LayoutProbe(model, rows, PAD).problem("packed") is None
    exact = RewardModel.hidden

    def leaking(self: RewardModel, batch: MicroBatch) -> torch.Tensor:
        hidden_SH = exact(self, batch)
        return hidden_SH if batch.segments is None else hidden_SH + 1e-3 * hidden_SH.roll(1, dims=0)

    monkeypatch.setattr(RewardModel, "hidden", leaking)
    assert LayoutProbe(model, rows, PAD).problem("packed") is not None


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_bfloat16_weights_can_be_packed(architecture: str, tokenizer: Any) -> None:
    """Rounding alone is as large as what other padding changes."""
    rows = comparisons(len(tokenizer))
    for model in (build(architecture, tokenizer, hidden_size=64), amplified(build(architecture, tokenizer, hidden_size=64))):
        low = RewardModel(model.backbone.bfloat16(), model.head, None, torch.bfloat16)
        assert choose_layout(low, "auto", rows, PAD) == "shared_prefix"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2", "gpt_oss", "mistral", "qwen3_moe", "bert"])
def test_bfloat16_products_can_be_packed(architecture: str, tokenizer: Any) -> None:
    """Float32 weights whose products are bfloat16, as in training on a GPU; the probe leaves that type as it was."""
    model = special(architecture) if architecture in SPECIAL else amplified(build(architecture, tokenizer, hidden_size=64))
    model.computing = "bfloat16"
    vocabulary = len(tokenizer) if architecture not in SPECIAL else 200
    rows = comparisons(vocabulary, end=tokenizer.eos_token_id)
    layout = choose_layout(model, "auto", rows, tokenizer.pad_token_id)
    assert layout == ("packed" if architecture == "bert" else "shared_prefix")
    assert model.computing == "bfloat16"
    batch = lay_out(rows, tokenizer.pad_token_id, layout)
    with torch.no_grad():
        low, model.computing = model(batch), "float32"
        assert (low - model(batch)).abs().max() > 1e-3, "guard: products are rounded"


def test_probe_tries_the_type_of_training(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that is wrong only where products are bfloat16, which have a kernel of their own on a GPU, is refused for these alone."""
    model, rows = amplified(build("llama", tokenizer, hidden_size=64)), comparisons(len(tokenizer))
    exact = RewardModel.hidden

    def leaking(self: RewardModel, batch: MicroBatch) -> torch.Tensor:
        hidden_SH = exact(self, batch)
        wrong = batch.segments is not None and self.computing == "bfloat16"
        return hidden_SH + 0.5 * hidden_SH.roll(1, dims=0) if wrong else hidden_SH

    monkeypatch.setattr(RewardModel, "hidden", leaking)
    assert choose_layout(model, "auto", rows, PAD) == "shared_prefix"
    model.computing = "bfloat16"
    problem = LayoutProbe(model, rows, PAD).problem("packed")
    assert problem is not None
    assert problem.startswith("bfloat16 hidden states differ by ")
    assert choose_layout(model, "auto", rows, PAD) == "padded"


@pytest.fixture(params=["leaks", "no prefix", "no window"])
def broken_attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention that sees too much or too little."""
    real = attention._pieces

    def leaking(query: Any, key: Any, value: Any, segments: Any, last: bool) -> Any:
        yield query, key, value

    def without_prefix(query: Any, key: Any, value: Any, segments: Any, last: bool) -> Any:
        for q, k, v in real(query, key, value, segments, last):
            yield q, k[:, :, k.shape[2] - q.shape[2] :], v[:, :, v.shape[2] - q.shape[2] :]

    if request.param == "no window":
        visible = attention._visible
        monkeypatch.setattr(attention, "_visible", lambda s, q, k, window, d, always: visible(s, q, k, None, d, always))
    else:
        monkeypatch.setattr(attention, "_pieces", leaking if request.param == "leaks" else without_prefix)
    return str(request.param)


@pytest.mark.parametrize("computing", ["float32", "bfloat16"])
def test_wrong_mask_fails_the_probe(broken_attention: str, computing: str, tokenizer: Any) -> None:
    """Attention that sees too much or too little is detected, also in a fresh model, whatever type training computes in."""
    model = special("mistral")
    model.computing = computing
    problem = LayoutProbe(model, comparisons(), PAD).problem("shared_prefix")
    assert problem is not None
    assert "differ" in problem
    fresh = build("mistral", tokenizer, hidden_size=64)
    fresh.computing = computing
    if broken_attention != "no window":
        assert LayoutProbe(fresh, comparisons(len(tokenizer)), PAD).problem("shared_prefix") is not None, (
            "a fresh model hardly looks at its context"
        )


def test_probe_leaves_the_model_unchanged(tokenizer: Any) -> None:
    """Mode, attention and weights are the same afterwards."""
    model = build("llama", tokenizer, hidden_size=64).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = model.backbone.config._attn_implementation
    assert LayoutProbe(model, comparisons(len(tokenizer)), PAD).problem("shared_prefix") is None
    assert model.training
    assert model.backbone.config._attn_implementation == own
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_lora_and_checkpointing_in_the_shared_layout(checkpointing: bool, lora: Lora | None, tokenizer: Any) -> None:
    sizes = scratch("llama", hidden_size=64, key_value_heads=2, gradient_checkpointing=checkpointing)
    model = amplified(build_reward_model(sizes, lora, tokenizer, seed=1))
    assert_layouts_agree(model, comparisons(len(tokenizer)), ("shared_prefix",))
    assert bool(lora) == any("lora_A" in name for name, _ in model.named_parameters())


def test_autocast_agrees_and_rewards_stay_float32(tokenizer: Any) -> None:
    """Layouts agree to bfloat16 precision, and rewards are not on its grid."""
    model, rows = amplified(build("llama", tokenizer, hidden_size=64)).eval(), comparisons(len(tokenizer))
    rewards, model.computing = {}, "bfloat16"
    with torch.no_grad():
        for layout in ("padded", "shared_prefix"):
            model.use_layout(layout)
            rewards[layout] = model(lay_out(rows, PAD, layout))
    assert rewards["padded"].dtype == torch.float32
    torch.testing.assert_close(rewards["shared_prefix"], rewards["padded"], atol=0.05, rtol=0.05)
    assert (rewards["shared_prefix"].bfloat16().float() != rewards["shared_prefix"]).any()


def test_responses_do_not_see_each_other(tokenizer: Any) -> None:
    """A change of one response changes only its own reward."""
    model, rows = amplified(build("llama", tokenizer, hidden_size=64)).eval(), comparisons(len(tokenizer))
    model.use_layout("shared_prefix")
    changed = copy.copy(rows)
    changed[1] = tokenized("s:1", rows[1].sequences[0], [*rows[1].sequences[1][:14], 9, 9, 9, 9, EOS])
    with torch.no_grad():
        before, after = (model(lay_out(some, PAD, "shared_prefix")) for some in (rows, changed))
    different = (before - after).abs() > 1e-6
    assert different.nonzero().flatten().tolist() == [3], "only the response that was changed"


def test_moving_a_batch_keeps_its_segments(tokenizer: Any) -> None:
    batch = lay_out(comparisons(len(tokenizer)), PAD, "shared_prefix")
    moved: MicroBatch = batch.to(torch.device("cpu"))
    assert moved.segments is batch.segments
    assert unwrap(build("llama", tokenizer)).max_positions is None
