"""Loading a checkpoint from a directory or the Hub: dtype, head and every weight are right, or one line reports the problem."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MarianConfig,
    SiglipVisionConfig,
)

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.build import build_reward_model, scratch_config
from rmtrain.model.export_dir import write_export
from rmtrain.model.reload_check import check
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import (
    edit_json,
    make_base,
    make_batch,
    make_golden,
    make_reward_model,
    make_sequences,
    make_tokenizer,
    only_problem,
    scratch,
    spread,
)

COMMIT = "a1" * 20
CODE = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

open({canary!r}, "w").close()


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForSequenceClassification(LlamaPreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids)[0]
        last = ((input_ids != self.config.pad_token_id) * torch.arange(input_ids.shape[1])).argmax(-1)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[torch.arange(len(input_ids)), last]))
"""


def load(path: Path, tokenizer: Any, *, lora: Lora | None = None, seed: int = 1, **model: Any) -> RewardModel:
    return build_reward_model(PretrainedModel(path=str(path), **model), lora, tokenizer, seed)


def test_trap_02_bfloat16_checkpoint_trains_in_float32(tmp_path: Path, tokenizer: Any) -> None:
    """Small steps move the weights, which bfloat16 would round away."""
    base = make_base(tmp_path, tokenizer, change=lambda model: model.to(torch.bfloat16))
    assert json.loads((base / "config.json").read_text())["dtype"] == "bfloat16", "guard"
    model = load(base, tokenizer)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-6, weight_decay=0.0)
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    for _ in range(20):
        optimizer.zero_grad()
        rewards_N = model(batch)
        (-torch.nn.functional.logsigmoid(rewards_N[0::2] - rewards_N[1::2])).sum().backward()
        optimizer.step()
    moved = [name for name, parameter in trained.items() if not torch.equal(parameter, before[name])]
    assert len(moved) / len(trained) > 0.99


def test_trap_02_recipe_sets_the_dtype(tmp_path: Path, tokenizer: Any) -> None:
    model = load(make_base(tmp_path, tokenizer), tokenizer, dtype="bfloat16", lora=Lora(rank=2))
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad and parameter.shape != (1, 32)}
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert (frozen, trained) == ({torch.bfloat16}, {torch.float32})


@pytest.mark.parametrize("head", ["auto", "new"])
def test_trap_13_base_model_gets_a_new_head(head: str, tmp_path: Path, tokenizer: Any) -> None:
    """The head comes from the seed; the base weights are those of the file."""
    base = make_base(tmp_path, tokenizer)
    first, second = load(base, tokenizer, head=head, seed=5), load(base, tokenizer, head=head, seed=5)
    assert first.new_head
    assert torch.equal(first.head_weight_1H, second.head_weight_1H)
    weights = load_file(base / "model.safetensors")
    assert torch.equal(first.backbone.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


def test_trap_13_reward_model_keeps_its_head(tmp_path: Path, tokenizer: Any) -> None:
    """Training from a reward model starts at its rewards."""
    saved = make_reward_model(tmp_path, tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
    sequences = make_sequences(tokenizer)
    with torch.no_grad():
        expected = torch.stack([theirs(input_ids=torch.tensor([ids])).logits[0, 0] for ids in sequences])
        models = [
            load(saved, tokenizer),
            load(saved, tokenizer, head="from_checkpoint"),
            load(saved, tokenizer, lora=Lora(rank=2)),
        ]
        for model in models:
            assert not model.new_head
            torch.testing.assert_close(model(make_batch(sequences, tokenizer.pad_token_id)), expected, rtol=1e-5, atol=1e-5)
        fresh = load(saved, tokenizer, head="new")(make_batch(sequences, tokenizer.pad_token_id))
    assert (fresh - expected).abs().max() > 1e-3, "guard: a new head gives other rewards"


def test_trap_13_head_stays_float32_in_bfloat16_models(tmp_path: Path, tokenizer: Any) -> None:
    saved = make_reward_model(tmp_path, tokenizer)
    model = load(saved, tokenizer, dtype="bfloat16", lora=Lora(rank=2))
    assert torch.equal(model.head_weight_1H, load_file(saved / "model.safetensors")["score.weight"])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_trap_13_two_outputs_are_replaced_or_refused(
    architecture: str, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto` replaces the head and logs it; `from_checkpoint` refuses it."""
    saved = make_reward_model(tmp_path, tokenizer, architecture, labels=2)
    with caplog.at_level(logging.INFO, logger="rmtrain"):
        model = load(saved, tokenizer)
    assert model.head_weight_1H.shape == (1, 32)
    assert "[2, 32]" in caplog.text
    with pytest.raises(CheckpointError, match=r"^model\.path: .*\[2, 32\].*\[1, H\]"):
        load(saved, tokenizer, head="from_checkpoint")


def test_trap_13_from_checkpoint_refuses_a_base_model(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.path: .*score\.weight.*\[1, H\]"):
        load(make_base(tmp_path, tokenizer), tokenizer, head="from_checkpoint")


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "deberta-v2", "distilbert", "electra"])
def test_encoders_load_from_checkpoints_of_other_tasks(kind: Any, architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    config = scratch_config(scratch(architecture).scratch, tokenizer)
    torch.manual_seed(4)
    kind.from_config(config).save_pretrained(tmp_path)
    torch.manual_seed(5)
    first = load(tmp_path, tokenizer, seed=1)
    torch.manual_seed(6)
    second = load(tmp_path, tokenizer, seed=1)
    with torch.no_grad():
        rewards_N = first(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)), (
        "new layers come from the seed"
    )
    assert all(bool(torch.isfinite(parameter).all()) for parameter in first.parameters())
    assert spread(rewards_N) > 1e-5


def damage_weights(file: Path, damage: str) -> None:
    weights = load_file(file)
    if damage == "missing layer":
        weights = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    elif damage == "additional layer":
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 32)
    elif damage == "wrong shape":
        weights["model.norm.weight"] = torch.ones(16)
    elif damage == "prefix":
        weights = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    elif damage == "stored as FP8":
        weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    elif damage == "stored as integers":
        weights["model.layers.0.mlp.up_proj.weight"] = torch.ones(128, 32, dtype=torch.int8)
    elif damage == "not finite":
        weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BROKEN_CONFIGS: dict[str, dict[str, Any]] = {
    "mistyped size": {"hidden_size": "wide"},
    "mistyped architecture": {"model_type": ["llama"]},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "bitsandbytes": {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
    "activation": {"hidden_act": "silu2"},
    "rope type": {"rope_parameters": {"rope_type": "yarn2", "rope_theta": 1e4}},
    "old rope type": {"rope_scaling": {"type": "yarn2", "factor": 2.0}},
    "other width": {"hidden_size": 64, "head_dim": 8},
    "other vocabulary": {"vocab_size": 10**12},
    "more layers": {"num_hidden_layers": 4},
    "fewer layers": {"num_hidden_layers": 1},
    "absurd layers": {"num_hidden_layers": 10**9},
    "absurd labels": {"num_labels": 10**9},
    "absurd experts": {"num_experts": 10**9},
    "absurd width": {"hidden_size": 10**30},
    "no heads": {"num_attention_heads": 0},
    "negative width": {"intermediate_size": -64},
    "dtype": {"dtype": "float7"},
}


def damage_config(file: Path, damage: str) -> None:
    if damage == "no configuration":
        file.unlink()
    elif damage == "broken configuration":
        file.write_text("{")
    elif damage == "unknown architecture":
        edit_json(file, model_type="llamma")
    elif damage in BROKEN_CONFIGS:
        edit_json(file, **BROKEN_CONFIGS[damage])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("missing layer", "model.layers.1.mlp.down_proj.weight"),
        ("additional layer", "model.layers.2.mlp.up_proj.weight"),
        ("wrong shape", "model.norm.weight"),
        ("prefix", "model.embed_tokens.weight"),
        ("not finite", "model.norm.weight"),
        ("cut short", "model.safetensors"),
        ("no configuration", "config.json"),
        ("broken configuration", "config.json"),
        ("unknown architecture", "'llamma'"),
        *(
            (damage, "config.json")
            for damage in ("mistyped size", "other width", "other vocabulary", "absurd layers", "absurd labels", "dtype")
        ),
        ("mistyped architecture", "['llama']"),
        *((damage, damage) for damage in ("fp8", "gptq", "awq", "bitsandbytes")),
        ("absurd experts", "num_experts"),
        ("activation", "hidden_act 'silu2'"),
        ("rope type", "yarn2"),
        ("old rope type", "yarn2"),
        ("more layers", "model.layers.2."),
        ("fewer layers", "model.layers.1."),
        ("absurd width", "model.path: "),
        ("no heads", "model.path: "),
        ("negative width", "model.path: "),
        ("stored as FP8", "F8_E4M3"),
        ("stored as integers", "I8"),
    ],
)
def test_trap_33_broken_checkpoints_are_refused(damage: str, expected: str, tmp_path: Path, tokenizer: Any) -> None:
    """One line that starts with the recipe key and names the weights or the file."""
    base = make_base(tmp_path / "base", tokenizer)
    damage_weights(base / "model.safetensors", damage)
    damage_config(base / "config.json", damage)
    with pytest.raises(CheckpointError) as refusal:
        load(base, tokenizer)
    problem = only_problem(refusal)
    assert problem.startswith("model")
    assert expected in problem


def test_sharded_checkpoints_load_unless_a_shard_is_missing(tmp_path: Path, tokenizer: Any) -> None:
    whole = load(make_base(tmp_path / "whole", tokenizer), tokenizer)
    sharded = make_base(tmp_path / "sharded", tokenizer)
    weights = load_file(sharded / "model.safetensors")
    halves = [dict(list(weights.items())[i::2]) for i in range(2)]
    index = {}
    for number, half in enumerate(halves, start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(half, sharded / name, metadata={"format": "pt"})
        index |= dict.fromkeys(half, name)
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model = load(sharded, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.path: "):
        load(sharded, tokenizer)


def test_security_pickles_are_never_opened(tmp_path: Path, tokenizer: Any) -> None:
    canary = tmp_path / "canary"
    base = make_base(tmp_path / "base", tokenizer)
    script = f"cos\nsystem\n(S'touch {canary}'\ntR."  # what torch.load would run
    (base / "pytorch_model.bin").write_bytes(script.encode())
    load(base, tokenizer)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^model\.path: .*pytorch_model\.bin"):
        load(base, tokenizer)
    assert not canary.exists()


def test_security_code_of_a_model_does_not_run(tmp_path: Path, tokenizer: Any) -> None:
    canary = tmp_path / "canary"
    base = make_base(tmp_path / "base", tokenizer)
    (base / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    edit_json(base / "config.json", auto_map={"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"})
    load(base, tokenizer)  # an architecture that transformers knows is built by transformers
    edit_json(base / "config.json", model_type="mine")
    with pytest.raises(CheckpointError, match=r"^model\.path: .*model\.trust_remote_code"):
        load(base, tokenizer)
    with pytest.raises(RecipeError, match=r"^model\.path: trust_remote_code"):
        load(base, tokenizer, trust_remote_code=True, revision="0" * 40)
    with pytest.raises(RecipeError, match=r"^model\.path: trust_remote_code .*main"):
        build_reward_model(PretrainedModel(path="owner/name", trust_remote_code=True, revision="main"), None, tokenizer, 1)
    assert not canary.exists()


def test_missing_models_and_weights_are_reported(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.path: .*nowhere"):
        load(tmp_path / "nowhere", tokenizer)
    with pytest.raises(CheckpointError, match=r"^model\.path: .*owner/absent"):
        build_reward_model(PretrainedModel(path="owner/absent"), None, tokenizer, 1)
    scratch_config(scratch("llama").scratch, tokenizer).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"^model\.path: .*model\.safetensors"):
        load(tmp_path, tokenizer)


def test_new_tokens_get_the_mean_embedding(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_base(tmp_path, tokenizer)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    model = load(base, tokenizer)
    embeddings = model.backbone.get_input_embeddings().weight
    assert embeddings.shape[0] == model.backbone.config.vocab_size == rows + 1
    torch.testing.assert_close(embeddings[rows], embeddings[:rows].mean(dim=0))
    assert model.backbone.config.pad_token_id == rows
    with torch.no_grad():
        rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    assert spread(rewards_N) > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_end_token_of_a_padding_base_trains(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    """A base that pads with its end token is padded with another one here, and then the end token gets a gradient as any other."""
    base, end, pad = make_base(tmp_path, tokenizer, architecture), tokenizer.eos_token_id, tokenizer.pad_token_id
    edit_json(base / "config.json", pad_token_id=end)
    model = load(base, tokenizer)
    rewards_N = model(make_batch(make_sequences(tokenizer), pad))
    rewards_N.sum().backward()
    gradient = model.backbone.get_input_embeddings().weight.grad
    assert bool(gradient[end].any())
    assert not bool(gradient[pad].any())
    assert AutoModel.from_pretrained(base).get_input_embeddings().padding_idx == end, "guard: in the base it gets none"
    assert spread(rewards_N.detach()) > 1e-3, "guard"


def test_text_part_of_a_vision_model_trains(tmp_path: Path, tokenizer: Any) -> None:
    """The vision part is frozen, and the export has the pad id at both levels."""
    text = scratch_config(scratch("gemma3_text").scratch, tokenizer)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    tokens = {"image_token_index": 10, "boi_token_index": 11, "eoi_token_index": 12}
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), **tokens)
    Gemma3ForConditionalGeneration._from_config(config).save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", tokenizer)
    rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    rewards_N.sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert all(
        "vision" in name or "projector" in name for name, parameter in model.named_parameters() if not parameter.requires_grad
    )
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert check(str(tmp_path / "model"))["ok"]
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert saved["pad_token_id"] == saved["text_config"]["pad_token_id"] == tokenizer.pad_token_id
    edit_json(tmp_path / "model/config.json", text_config={**saved["text_config"], "pad_token_id": 7})
    with pytest.raises(CheckpointError, match=r"^model: .*config\.json.* 7"):
        load_reward_model(str(tmp_path / "model"), "cpu")
    assert spread(rewards_N.detach()) > 1e-3


@pytest.fixture
def snapshot(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a base model `owner/name` into a Hub cache of the test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    repository = tmp_path / "hub/models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return make_base(repository / "snapshots" / COMMIT, tokenizer)


def test_trap_31_hub_model_is_recorded_with_commit(snapshot: Path, tmp_path: Path, tokenizer: Any) -> None:
    """rmtrain.json and the adapter name the commit that was loaded."""
    model = build_reward_model(PretrainedModel(path="owner/name"), Lora(rank=2), tokenizer, 1)
    assert model.base_ref is not None
    assert (model.base_ref.path, model.base_ref.revision) == ("owner/name", COMMIT)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert json.loads((tmp_path / "model/rmtrain.json").read_text())["base"] == {"path": "owner/name", "revision": COMMIT}
    adapter = json.loads((tmp_path / "model/adapter/adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("owner/name", COMMIT)
    with pytest.raises(CheckpointError, match=r"^model: .*owner/name"):
        load_reward_model("owner/name", "cpu")


def test_security_hub_code_needs_permission_and_commit(snapshot: Path, tmp_path: Path, tokenizer: Any) -> None:
    canary = tmp_path / "canary"
    (snapshot / "modeling_mine.py").write_text(CODE.format(canary=str(canary)))
    classes = {
        name: f"modeling_mine.Mine{name.removeprefix('Auto').removeprefix('Model')}"
        for name in ("AutoConfig", "AutoModelForSequenceClassification")
    }
    edit_json(snapshot / "config.json", model_type="mine", auto_map=classes)
    with pytest.raises(CheckpointError, match=r"^model\.path: .*model\.trust_remote_code"):
        build_reward_model(PretrainedModel(path="owner/name"), None, tokenizer, 1)
    with pytest.raises(RecipeError, match=r"^model\.path: trust_remote_code .*revision"):
        build_reward_model(PretrainedModel(path="owner/name", trust_remote_code=True), None, tokenizer, 1)
    assert not canary.exists()
    pinned = PretrainedModel(path="owner/name", trust_remote_code=True, revision=COMMIT)
    for lora in (None, Lora(rank=2)):
        model = build_reward_model(pinned, lora, tokenizer, 1)
        assert type(model.backbone).__name__ == "MineForSequenceClassification"
        directory = tmp_path / ("lora" if lora else "full")
        write_export(model, tokenizer, directory, make_golden(tokenizer), {})
        assert check(str(directory), COMMIT)["ok"]
        assert torch.isfinite(model.head_weight_1H).all()
    assert canary.exists(), "guard: the code runs when it is allowed"


def test_encoder_decoder_without_classifier_is_refused(snapshot: Path, tokenizer: Any) -> None:
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "pad_token_id": 1}
    config = MarianConfig(vocab_size=len(tokenizer), max_position_embeddings=64, is_encoder_decoder=True, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(snapshot)
    edit_json(snapshot / "config.json", is_encoder_decoder=True)
    with pytest.raises(CheckpointError, match=r"^model\.path: .*marian.*encoder-decoder"):
        build_reward_model(PretrainedModel(path="owner/name"), None, tokenizer, 1)
