"""QLoRA: a frozen base in 4 bits, a head in float32, merged for export into the unquantized base. Needs the extra 8bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import write_export
from rmtrain.model.reload_check import check
from rmtrain.model.reward_model import trainable_summary
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import make_base, make_batch, make_golden, make_sequences
from tests.model.test_lora import rewards, train_a_little

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'rmtrain[8bit]'")


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_trap_41_head_and_export_are_not_quantized(
    architecture: str, checkpointing: bool, tmp_path: Path, tokenizer: Any
) -> None:
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
    assert torch.equal(weights[model.head.weight], model.head_weight_1H)
    assert check(str(tmp_path / "model"))["ok"]
    exported, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    torch.testing.assert_close(rewards(exported, tokenizer), rewards(model, tokenizer), rtol=0.3, atol=0.3)
    with torch.no_grad():
        assert torch.isfinite(model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))).all()
