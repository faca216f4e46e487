"""Models built from a recipe's model section: requested sizes, numbers from the seed alone, clear refusals."""

import importlib.util
from typing import Any

import pytest
import torch

from rmtrain.errors import RecipeError
from rmtrain.model.build import build_reward_model, scratch_config
from rmtrain.model.classifier import meta_classifier
from rmtrain.recipe.schema import Architecture, Lora, ScratchModel
from tests.model.builders import CAUSAL, ENCODERS, build, make_batch, make_sequences, make_tokenizer, only_problem, scratch


@pytest.mark.parametrize("architecture", CAUSAL + ENCODERS)
def test_scratch_models_have_the_requested_sizes(architecture: str, tokenizer: Any) -> None:
    """Weights are finite float32; the configuration has one output and the ids of the tokenizer."""
    model = build(architecture, tokenizer)
    config = model.backbone.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert config.vocab_size == len(tokenizer) == model.backbone.get_input_embeddings().weight.shape[0]
    assert config.num_labels == 1
    assert config.id2label == {0: "reward"}
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert model.head_weight_1H.shape == (1, 32)


def test_grouped_query_attention_and_mlp_width(tokenizer: Any) -> None:
    sizes = Architecture(
        architecture="llama", hidden_size=32, layers=1, heads=4, key_value_heads=2, intermediate_size=48, max_positions=64
    )
    layer = build_reward_model(ScratchModel(scratch=sizes), None, tokenizer, 1).backbone.model.layers[0]
    assert layer.self_attn.k_proj.weight.shape == (16, 32)
    assert layer.mlp.up_proj.weight.shape == (48, 32)


@pytest.mark.parametrize(
    ("sizes", "place", "expected"),
    [
        ({"architecture": "lama"}, "model.scratch.architecture", "llama"),
        ({"architecture": "gpt2", "key_value_heads": 2}, "model.scratch: gpt2", "key_value_heads"),
        ({"architecture": "bloom", "intermediate_size": 48}, "model.scratch: bloom", "intermediate_size"),
        ({"architecture": "llama", "hidden_size": 30}, "model.scratch: llama", "hidden"),
        ({"architecture": "t5"}, "model.scratch.architecture", "T5ForSequenceClassification"),
        ({"architecture": "xlnet"}, "model.scratch.architecture", "XLNetForSequenceClassification"),
        ({"architecture": "modernbert-decoder"}, "model.scratch", "modernbert-decoder"),
        ({"architecture": "gemma3"}, "model.scratch: gemma3", "embeddings"),
        ({"architecture": "gpt_neo"}, "model.scratch: gpt_neo", ""),
        ({"architecture": "jamba"}, "model.scratch: jamba", "forward"),
        ({"architecture": "fnet"}, "model", "FNetForSequenceClassification"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(sizes: dict[str, Any], place: str, expected: str, tokenizer: Any) -> None:
    """The message starts with the recipe key and names the architecture or the size."""
    all_sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "max_positions": 64, **sizes}
    with pytest.raises(RecipeError) as refusal:
        build_reward_model(ScratchModel(scratch=Architecture(**all_sizes)), None, tokenizer, 1)
    problem = only_problem(refusal)
    assert problem.startswith(place)
    assert expected in problem


def test_weights_depend_only_on_the_seed(tokenizer: Any) -> None:
    """The global generator neither changes the weights nor moves."""
    torch.manual_seed(11)
    expected_next = torch.rand(3)
    torch.manual_seed(11)
    first = build("llama", tokenizer, lora=Lora(rank=2)).state_dict()
    assert torch.equal(torch.rand(3), expected_next), "the global generator moved"
    torch.manual_seed(99)
    second = build("llama", tokenizer, lora=Lora(rank=2)).state_dict()
    third = build("llama", tokenizer, lora=Lora(rank=2), seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    differing = [name for name in first if not torch.equal(first[name], third[name])]
    assert any("lora_A" in name for name in differing)
    assert any("score" in name for name in differing)
    assert any("q_proj.base_layer" in name for name in differing)


def test_trap_23_head_is_identical_for_every_dtype(tokenizer: Any) -> None:
    """A new head has the same bytes for any dtype, and never contains uninitialized memory."""
    heads = [build("llama", tokenizer, dtype=dtype).head_weight_1H for dtype in ("float32", "bfloat16")]
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        heads.append(build("llama", tokenizer).head_weight_1H)
        assert torch.isnan(torch.empty(4)).all(), "guard: fresh memory is poisoned"
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(head.dtype == torch.float32 and torch.equal(head, heads[0]) for head in heads)
    assert torch.isfinite(heads[0]).all()


def test_trap_23_new_head_has_the_right_deviation(tokenizer: Any) -> None:
    """Weights are N(0, 1/sqrt(H + 1)) and a new bias is zero."""
    head_1H = build("llama", tokenizer, hidden_size=1024).head_weight_1H.detach()
    assert float(head_1H.std()) == pytest.approx(1 / 1025**0.5, rel=0.1)
    assert abs(float(head_1H.mean())) < 0.005
    assert not bool(build("bert", tokenizer).backbone.classifier.bias.any()), "a new bias is zero"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "bert", "modernbert"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_trap_24_checkpointing_changes_no_gradient(architecture: str, lora: Lora | None, tokenizer: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(architecture, tokenizer, lora=lora, gradient_checkpointing=checkpointing)
        assert model.backbone.is_gradient_checkpointing is checkpointing
        model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in recomputed.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-5)
    assert sum(bool(gradient.any()) for gradient in plain.values()) > len(plain) / 3, "guard: gradients flow"


def test_models_do_not_share_a_configuration(tokenizer: Any) -> None:
    """Changing the attention of one model leaves another from the same recipe unchanged."""
    recipe = scratch("llama")
    first, second = (build_reward_model(recipe, None, tokenizer, 1) for _ in range(2))
    first.backbone.set_attn_implementation("eager")
    assert second.backbone.config._attn_implementation == "sdpa"


def test_recipe_dropout_replaces_the_architectures_default(tokenizer: Any) -> None:
    config = scratch_config(scratch("gpt2").scratch, tokenizer)
    assert config.attn_pdrop == 0.1, "guard: gpt2 comes with dropout"
    assert meta_classifier(config, RecipeError).transformer.h[0].attn.attn_dropout.p == 0.1
    assert build("gpt2", tokenizer).backbone.transformer.h[0].attn.attn_dropout.p == 0.0


def test_unusable_pad_tokens_are_refused() -> None:
    """The pad token must exist and must not be the end token."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(RecipeError, match=r"^model: .*pad token"):
        build("llama", tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(RecipeError, match=r"^model: .*pad token"):
        build("llama", tokenizer)


def test_scratch_models_refuse_options_of_checkpoints(tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match=r"^model\.head: .*model\.path"):
        build("llama", tokenizer, head="from_checkpoint")
    with pytest.raises(RecipeError, match=r"^model\.quantization: .*model\.path"):
        build("llama", tokenizer, quantization="nf4", lora=Lora())


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None,
    reason="bitsandbytes is installed: pip uninstall it",
)
def test_nf4_without_bitsandbytes_names_the_extra(tokenizer: Any) -> None:
    from rmtrain.recipe.schema import PretrainedModel

    model = PretrainedModel(path="some/model", quantization="nf4")
    with pytest.raises(RecipeError, match=r"^model\.quantization: .*bitsandbytes.*8bit"):
        build_reward_model(model, Lora(), tokenizer, 1)
    with pytest.raises(RecipeError, match=r"^model\.quantization: .*lora"):
        build_reward_model(model, None, tokenizer, 1)
