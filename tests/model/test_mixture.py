"""Mixtures of experts: adapters reach the experts and not the routers, exports keep them, and the balancing loss is transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, XLNetConfig, XLNetModel

from rmtrain.batching.layout import Layout, MicroBatch, lay_out
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.files import read_json
from rmtrain.model.export_dir import write_export
from rmtrain.model.layout_probe import LayoutProbe
from rmtrain.model.mixture import check_balance, expert_tensors, router_layers
from rmtrain.model.reload_check import check
from rmtrain.model.reward_model import RewardModel, adapted
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora
from tests.comparisons import random_pairs
from tests.model.builders import build, make_golden, only_problem, spread
from tests.model.mixtures import SIZES, make_mixture
from tests.model.test_lora import from_base, rewards, train_a_little

EXPERTS = {"deepseek_v3": 2, "jetmoe": 8}
"""Expert tensors of two layers: four, but deepseek_v3 has a layer without experts, and jetmoe also experts of attention."""
ROUTERS = {"qwen2_moe": {"shared_expert_gate"}, "jetmoe": {"layer"}}
"""The last part of the names of linear layers that choose experts; other routers are bare matrices."""
BALANCED = sorted(SIZES.keys() - {"deepseek_v3"})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: make_mixture(folder / name, tokenizer, name) for name in SIZES}


def rows_of(layout: Layout) -> MicroBatch:
    """Pairs of different lengths that share prefixes; token 1 is padding."""
    return lay_out(random_pairs(5, prompts=12, responses=16), 1, layout)


@pytest.mark.parametrize("model_type", SIZES)
def test_adapted_experts_train_and_survive_export(
    model_type: str, bases: dict[str, Path], tmp_path: Path, tokenizer: Any
) -> None:
    """Every expert tensor trains; the merged model in plain transformers, and the adapter on its base, give the trained rewards."""
    model = from_base(bases[model_type], tokenizer, Lora(rank=2))
    before = rewards(model, tokenizer)
    train_a_little(model, tokenizer)
    trained, wrapped = rewards(model, tokenizer), [m for m in model.modules() if isinstance(m, ParamWrapper)]
    assert len(wrapped) == EXPERTS.get(model_type, 4)
    for layer in wrapped:
        for part in (layer.lora_A, layer.lora_B):
            assert bool(part["default"].weight.grad.any())
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert check(str(tmp_path / "model"))["ok"], "in transformers alone"
    merged, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    alone, _ = load_reward_model(str(tmp_path / "model/adapter"), "cpu")
    torch.testing.assert_close(rewards(merged, tokenizer), trained, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rewards(alone, tokenizer), trained, rtol=1e-5, atol=1e-5)
    assert read_json(tmp_path / "model/rmtrain.json", dict)["adapter"]["expert_tensors"] == len(wrapped)
    assert (trained - before).abs().max() > 1e-3
    assert spread(trained) > 1e-3, "guard: training changed different rewards"


@pytest.mark.parametrize("model_type", SIZES)
def test_routers_and_biases_stay_frozen(model_type: str, bases: dict[str, Path], tokenizer: Any) -> None:
    """Only adapters and the head train; no router has an adapter, and linear layers that PEFT can name have one."""
    model = from_base(bases[model_type], tokenizer, Lora(rank=2))
    assert all("lora_" in name or "score" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    config, plain = model.hf.peft_config["default"], AutoModelForCausalLM.from_pretrained(bases[model_type])
    routers = router_layers(plain, expert_tensors(plain))
    assert {name.rpartition(".")[2] for name in routers} == ROUTERS.get(model_type, set())
    assert not routers & set(config.target_modules)
    assert not [
        name for name in (*config.target_modules, *config.target_parameters) if name.rpartition(".")[2] in ("gate", "router")
    ]
    counts = adapted(model)
    assert counts is not None
    assert counts.linear_layers == len(config.target_modules) > 0
    assert 0.5 < counts.share < 1, "guard: experts are most of a mixture"


@pytest.mark.parametrize(
    ("lora", "linear", "experts"),
    [
        (Lora(rank=2, experts=False), 8, 0),
        (Lora(rank=2, targets=("q_proj",)), 2, 0),
        (Lora(rank=2, targets=("q_proj", "gate_up_proj")), 2, 2),
        (Lora(rank=2, targets=("experts.down_proj",)), 0, 2),
        (Lora(rank=2, rslora=True), 8, 4),
        (Lora(rank=2, dropout=0.1, dora=True, experts=False), 8, 0),
    ],
    ids=["without", "attention", "both", "one", "rslora", "dora"],
)
def test_targets_choose_layers_and_experts(
    lora: Lora, linear: int, experts: int, bases: dict[str, Path], tmp_path: Path, tokenizer: Any
) -> None:
    model = from_base(bases["mixtral"], tokenizer, lora)
    counts = adapted(model)
    assert counts is not None
    assert counts[:2] == (linear, experts)
    train_a_little(model, tokenizer)
    model.eval()
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    adapter = load_file(tmp_path / "model/adapter/adapter_model.safetensors")
    assert sum("lora_A" in name for name in adapter) == linear + experts, "guard"


def test_bfloat16_experts_are_merged_in_bfloat16(bases: dict[str, Path], tmp_path: Path, tokenizer: Any) -> None:
    """Adapters train in float32 on a bfloat16 base, whose merged rewards agree to its precision."""
    model = from_base(bases["gpt_oss"], tokenizer, Lora(rank=2, alpha=4), dtype="bfloat16")
    train_a_little(model, tokenizer)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert load_file(tmp_path / "model/model.safetensors")["model.layers.0.mlp.experts.down_proj"].dtype == torch.bfloat16
    merged, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.testing.assert_close(rewards(merged, tokenizer), rewards(model, tokenizer), rtol=0.1, atol=0.1)
    assert spread(rewards(model, tokenizer)) > 0.3, "guard"


def test_adapters_without_an_expert_are_refused(bases: dict[str, Path], tmp_path: Path, tokenizer: Any) -> None:
    model = from_base(bases["qwen3_moe"], tokenizer, Lora(rank=2))
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    file, lost = tmp_path / "model/adapter/adapter_model.safetensors", "layers.1.mlp.experts.base_layer.lora_A"
    weights = load_file(file)
    kept = {name: tensor for name, tensor in weights.items() if lost not in name}
    save_file(kept, file)
    with pytest.raises(CheckpointError) as refusal:
        load_reward_model(str(file.parent), "cpu")
    assert lost in only_problem(refusal)
    assert len(kept) == len(weights) - 1, "guard"


@pytest.mark.parametrize(
    ("model_type", "lora", "key"),
    [
        ("mixtral", Lora(dropout=0.1), "lora.dropout: "),
        ("gpt_oss", Lora(dora=True), "lora.dora: "),
        ("mixtral", Lora(targets=("gate_up_proj",), experts=False), "lora.targets: "),
        ("mixtral", Lora(targets=("gate_upproj",)), "lora.targets: "),
        ("deepseek_v3", Lora(targets=("up_proj",)), "lora.targets: "),
    ],
)
def test_experts_that_cannot_be_adapted_are_refused(
    model_type: str, lora: Lora, key: str, bases: dict[str, Path], tokenizer: Any
) -> None:
    with pytest.raises(RecipeError) as refusal:
        from_base(bases[model_type], tokenizer, lora)
    assert only_problem(refusal).startswith(key)


def test_layers_that_peft_misnames_are_reported(bases: dict[str, Path], tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT would leave out these layers of deepseek_v3 without a word."""
    from_base(bases["deepseek_v3"], tokenizer, Lora(rank=2))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("6 linear layers")
    assert all(name in warning for name in ("down_proj", "gate_proj", "up_proj"))
    caplog.clear()
    from_base(bases["qwen2_moe"], tokenizer, Lora(rank=2))
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "guard: others have all"


def test_other_models_have_no_experts() -> None:
    """Parameters of three dimensions are no experts without a router."""
    xlnet = XLNetModel(XLNetConfig(vocab_size=320, d_model=32, n_layer=2, n_head=4, d_inner=64))
    assert expert_tensors(xlnet) == []
    assert any(parameter.ndim == 3 for parameter in xlnet.parameters()), "guard"


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "olmoe"])
def test_layouts_hold_for_adapted_experts(model_type: str, bases: dict[str, Path], tokenizer: Any) -> None:
    model = from_base(bases[model_type], tokenizer, Lora(rank=2))
    train_a_little(model, tokenizer)
    rows = random_pairs(5, prompts=12, responses=16)
    assert LayoutProbe(model, rows, 1).problem("shared_prefix") is None
    model.use_layout("shared_prefix")
    assert model._read_tokens_only, "guard: the last layer is restricted as well"


@pytest.mark.parametrize("model_type", BALANCED)
def test_balance_is_that_of_transformers(model_type: str, bases: dict[str, Path], tokenizer: Any) -> None:
    """On a padded batch with a mask it equals the `aux_loss` of the model for language modelling."""
    batch = rows_of("padded")
    model = from_base(bases[model_type], tokenizer, Lora(rank=2))
    language = AutoModelForCausalLM.from_pretrained(bases[model_type]).eval()
    arguments = {"input_ids": batch.input_ids_RT, "output_router_logits": True}
    with torch.no_grad():
        expected = language(attention_mask=batch.attention_mask_RT, **arguments).aux_loss
        unmasked = language(**arguments).aux_loss
        rewards_N, balance = model(batch, balance=True)
    torch.testing.assert_close(balance, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(rewards_N, model(batch))
    assert balance.dtype == torch.float32
    assert abs(float(unmasked - expected)) > 1e-4, "guard: padding would count without a mask"


def test_balance_counts_each_computed_token_once(bases: dict[str, Path], tokenizer: Any) -> None:
    """`packed` has the tokens of `padded`, the last layer included; in `shared_prefix` a prefix counts once."""
    model, found = from_base(bases["mixtral"], tokenizer, Lora(rank=2)), {}
    for layout in ("padded", "packed", "shared_prefix"):
        model.use_layout(layout)
        with torch.no_grad():
            found[layout] = float(model(rows_of(layout), balance=True)[1])
    assert found["packed"] == pytest.approx(found["padded"], abs=1e-6)
    assert abs(found["shared_prefix"] - found["padded"]) > 1e-4
    assert model._read_tokens_only, "guard: otherwise the last layer would see all tokens anyway"


def gradients(model: RewardModel, balance: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.use_layout("shared_prefix")
    outputs = model(rows_of("shared_prefix"), balance)
    (outputs[0].sum() + outputs[1] if balance else outputs.sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_checkpointing_keeps_gradients_of_balance(lora: Lora | None, bases: dict[str, Path], tokenizer: Any) -> None:
    """Recomputed layers give the same gradients; the balance adds its own, to routers as well where they train."""
    plain, recomputed = (from_base(bases["qwen3_moe"], tokenizer, lora, gradient_checkpointing=on) for on in (False, True))
    expected, without = gradients(plain, balance=True), gradients(plain, balance=False)
    found = gradients(recomputed, balance=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
    changed = {name for name, gradient in expected.items() if not torch.equal(gradient, without[name])}
    assert changed
    assert any(name.endswith("gate.weight") for name in changed) == (lora is None)


@pytest.mark.parametrize(("model_type", "word"), [("llama", "no router"), ("doge", "no balancing loss"), ("bert", "no router")])
def test_models_without_balance_are_refused(model_type: str, word: str, tokenizer: Any) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_balance(build(model_type, tokenizer).backbone)
    assert only_problem(refusal).startswith("objective.router_balance: ")
    assert word in only_problem(refusal)
