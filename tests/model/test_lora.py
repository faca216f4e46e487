"""Adapters: the head trains and is saved with them, and merging does not change rewards."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import write_export
from rmtrain.model.reload_check import check
from rmtrain.model.reward_model import RewardModel, evaluating, trainable_summary
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import (
    edit_json,
    make_base,
    make_batch,
    make_golden,
    make_sequences,
    make_tokenizer,
    only_problem,
    spread,
)

FORMS = {
    "all-linear": Lora(rank=4),
    "list": Lora(rank=4, targets=("q_proj", "v_proj")),
    "rslora": Lora(rank=4, rslora=True),
    "dora": Lora(rank=4, dora=True),
}


def train_a_little(model: RewardModel, tokenizer: Any, steps: int = 2) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    for _ in range(steps):
        optimizer.zero_grad()
        rewards_N = model(batch)
        (-torch.nn.functional.logsigmoid(rewards_N[0::2] - rewards_N[1::2])).sum().backward()
        optimizer.step()


def rewards(model: RewardModel, tokenizer: Any) -> torch.Tensor:
    with evaluating(model):
        return model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))


def from_base(base: Path, tokenizer: Any, lora: Lora, **model: Any) -> RewardModel:
    return build_reward_model(PretrainedModel(path=str(base), **model), lora, tokenizer, seed=1)


@pytest.mark.parametrize("form", FORMS)
def test_trap_09_head_trains_and_survives_the_merge(form: str, tmp_path: Path, tokenizer: Any) -> None:
    """The head is in the merged weights and in the adapter, and both give the trained rewards."""
    model = from_base(make_base(tmp_path / "base", tokenizer), tokenizer, FORMS[form])
    start, before = model.head_weight_1H.detach().clone(), rewards(model, tokenizer)
    train_a_little(model, tokenizer)
    trained, weights = rewards(model, tokenizer), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.equal(model.head_weight_1H, start), "the head trained"
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items()), (
        "the export changed the model in memory"
    )
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")["score.weight"], model.head_weight_1H)
    assert torch.equal(
        load_file(tmp_path / "model/adapter/adapter_model.safetensors")["base_model.model.score.weight"], model.head_weight_1H
    )
    merged, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.manual_seed(77)
    adapted, _ = load_reward_model(str(tmp_path / "model/adapter"), "cpu")
    assert isinstance(adapted.hf, PeftModel)
    torch.testing.assert_close(rewards(merged, tokenizer), trained, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rewards(adapted, tokenizer), trained, rtol=1e-5, atol=1e-5)
    assert check(str(tmp_path / "model"))["ok"]
    assert (trained - before).abs().max() > 1e-3, "guard: training changed the rewards"


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gpt_neox", "phi3", "bert", "roberta", "distilbert", "modernbert", "mixtral"]
)
def test_trap_09_all_linear_excludes_the_head(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    """Every linear layer is adapted, except the head."""
    model = from_base(make_base(tmp_path / "base", tokenizer, architecture), tokenizer, Lora(rank=2))
    adapted = [name for name, module in model.backbone.named_modules() if isinstance(module, LoraLayer)]
    assert not [name for name in adapted if name.split(".")[0] == model.head.root]
    assert len(adapted) >= 4
    train_a_little(model, tokenizer)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all(bool(parameter.any()) for name, parameter in trained.items() if "lora_B" in name), "every adapter moved"
    before = rewards(model, tokenizer)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    merged, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.testing.assert_close(rewards(merged, tokenizer), before, rtol=1e-5, atol=1e-5)
    assert spread(before) > 1e-4


def test_new_pooler_trains_and_is_saved(tmp_path: Path, tokenizer: Any) -> None:
    """A masked language model has no pooler: the new one is saved with the adapter."""
    base = make_base(tmp_path / "base", tokenizer, "bert")  # a language model: no pooler
    model = from_base(base, tokenizer, Lora(rank=2))
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert any("pooler" in name for name in trained)
    train_a_little(model, tokenizer)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert any("pooler" in name for name in load_file(tmp_path / "model/adapter/adapter_model.safetensors"))
    torch.manual_seed(5)
    adapted, _ = load_reward_model(str(tmp_path / "model/adapter"), "cpu")
    torch.testing.assert_close(rewards(adapted, tokenizer), rewards(model, tokenizer), rtol=1e-5, atol=1e-5)


def test_trap_42_adapter_contains_new_token_embeddings(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_base(tmp_path / "base", tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    model = from_base(base, tokenizer, Lora(rank=2))
    golden = [*make_golden(tokenizer), ("<turn>Yes.<eos>", tokenizer("<turn>Yes.<eos>")["input_ids"])]
    assert tokenizer.convert_tokens_to_ids("<turn>") in golden[-1][1], "guard"
    train_a_little(model, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter += 1
    write_export(model, tokenizer, tmp_path / "model", golden, {})
    assert check(str(tmp_path / "model"))["ok"]
    adapted, _ = load_reward_model(str(tmp_path / "model/adapter"), "cpu")
    merged, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    batch = make_batch([golden[-1][1], golden[0][1]], tokenizer.pad_token_id)
    with evaluating(model):
        expected = model(batch)
    with torch.no_grad():
        torch.testing.assert_close(adapted(batch), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merged(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [Lora(rank=2), Lora(rank=2, dora=True)], ids=["lora", "dora"])
def test_bfloat16_base_is_merged_in_bfloat16(lora: Lora, tmp_path: Path, tokenizer: Any) -> None:
    """Only the head is float32 in the merged weights."""
    model = from_base(make_base(tmp_path / "base", tokenizer), tokenizer, lora, dtype="bfloat16")
    train_a_little(model, tokenizer)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {tensor.dtype for name, tensor in weights.items() if name != "score.weight"} == {torch.bfloat16}
    assert weights["score.weight"].dtype == torch.float32
    assert check(str(tmp_path / "model"))["ok"]
    exported, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.testing.assert_close(rewards(exported, tokenizer), rewards(model, tokenizer), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_prj",), ("q_prj", "did you mean q_proj?")),
        (("score",), ("score", "head")),
        (("embed_tokens",), ("embed_tokens", "q_proj")),
    ],
)
def test_unknown_lora_targets_are_refused(
    targets: tuple[str, ...], expected: tuple[str, str], tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(RecipeError) as refusal:
        from_base(make_base(tmp_path / "base", tokenizer), tokenizer, Lora(targets=targets))
    problem = only_problem(refusal)
    assert problem.startswith("lora.targets: ")
    assert all(word in problem for word in expected)


def test_adapter_dropout_does_not_change_the_base(tmp_path: Path, tokenizer: Any) -> None:
    model = from_base(make_base(tmp_path / "base", tokenizer), tokenizer, Lora(rank=2, dropout=0.5))
    train_a_little(model, tokenizer)
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    with torch.no_grad():
        assert not torch.equal(model(batch), model(batch))
    assert {module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)} == {0.5}


def spoil(adapter: Path, damage: str) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    if damage == "no head":
        weights = {name: tensor for name, tensor in weights.items() if "score" not in name}
    elif damage == "no layer":
        weights = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(weights, adapter / "adapter_model.safetensors")
    if damage == "pickle":
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    elif damage == "other task":
        edit_json(adapter / "adapter_config.json", task_type="CAUSAL_LM")
    elif damage == "no base":
        edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    elif damage == "lost base":
        edit_json(adapter / "adapter_config.json", base_model_name_or_path="./nowhere")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("no head", "score.weight"),
        ("no layer", "base_model.model.model.layers.1.mlp."),
        ("pickle", "adapter_model.bin"),
        ("other task", "SEQ_CLS"),
        ("no base", "base model"),
        ("lost base", "./nowhere"),
    ],
)
def test_damaged_adapters_are_refused_in_one_line(damage: str, expected: str, tmp_path: Path, tokenizer: Any) -> None:
    model = from_base(make_base(tmp_path / "base", tokenizer), tokenizer, Lora(rank=2))
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    spoil(tmp_path / "model/adapter", damage)
    with pytest.raises(CheckpointError) as refusal:
        load_reward_model(str(tmp_path / "model/adapter"), "cpu")
    assert expected in only_problem(refusal)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")
def test_trap_41_head_and_export_are_not_quantized(
    architecture: str, checkpointing: bool, tmp_path: Path, tokenizer: Any
) -> None:
    """QLoRA: a frozen base in 4 bits and a float32 head, merged for export into the unquantized base."""
    import bitsandbytes

    base = make_base(tmp_path / "base", tokenizer, architecture, hidden_size=128)
    recipe = PretrainedModel(path=str(base), dtype="bfloat16", quantization="nf4", gradient_checkpointing=checkpointing)
    model = build_reward_model(recipe, Lora(rank=4), tokenizer, 1)
    quantized = [name for name, module in model.backbone.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert quantized, "guard: the base is quantized"
    assert not [name for name in quantized if name.split(".")[0] in ("score", "classifier") or "pooler" in name]
    assert model.head_weight_1H.dtype == torch.float32
    summary = trainable_summary(model)
    assert set(summary["trainable"]) == {"float32"}
    assert summary["total"]["nf4"] > 0
    before = model.head_weight_1H.detach().clone()
    train_a_little(model, tokenizer)
    assert not torch.equal(model.head_weight_1H, before)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16, torch.float32}, "nothing is quantized in the export"
    assert torch.equal(weights[f"{model.head.name}.weight"], model.head_weight_1H)
    assert check(str(tmp_path / "model"))["ok"]
    exported, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.testing.assert_close(rewards(exported, tokenizer), rewards(model, tokenizer), rtol=0.3, atol=0.3)
    with torch.no_grad():
        assert torch.isfinite(model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))).all()
