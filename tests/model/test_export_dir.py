"""The export loads everywhere as it was in memory, or is refused; nothing half-written is left in its place."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, Qwen2Tokenizer, pipeline

from rmtrain.errors import CheckpointError, NumericError, RecipeError
from rmtrain.model import reload_check
from rmtrain.model.build import build_reward_model, scratch_config
from rmtrain.model.export_dir import check_exportable, check_reload, export_model, write_export
from rmtrain.model.hf_compat import old_rope
from rmtrain.model.reload_check import check
from rmtrain.model.reward_model import RewardModel, evaluating
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import (
    CAUSAL,
    ENCODERS,
    TEXTS,
    build,
    edit_json,
    make_batch,
    make_golden,
    make_sequences,
    make_tokenizer,
    scratch,
)


def with_scale(model: RewardModel, scale: float) -> RewardModel:
    """The same model with larger rewards, so that a sigmoid or a rounding would show."""
    with torch.no_grad():
        model.head_weight_1H.mul_(scale)
    return model


@pytest.mark.parametrize("architecture", CAUSAL + ENCODERS)
def test_trap_31_transformers_alone_reproduces_the_golden_rewards(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    model = with_scale(build(architecture, tokenizer), 3.0)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    report = check(str(tmp_path / "model"))
    assert report["ok"]
    assert report["golden"] == len(TEXTS)
    assert report["modes"] == ["single", "right", "left"][: 3 if architecture in CAUSAL else 2]
    assert bool(report["skipped"]) is (architecture in ENCODERS), "what is skipped is said"
    golden = json.loads((tmp_path / "model/golden.json").read_text())
    with evaluating(model):
        rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    torch.testing.assert_close(torch.tensor([entry["reward"] for entry in golden]), rewards_N, rtol=1e-5, atol=1e-5)
    assert [entry["text"] for entry in golden] == list(TEXTS)
    assert rewards_N.unique().numel() == len(TEXTS), "guard: rewards differ"


def test_trap_31_a_fresh_process_verifies_an_export_before_it_replaces_an_earlier_one(tmp_path: Path, tokenizer: Any) -> None:
    golden = make_golden(tokenizer)
    write_export(build("gpt2", tokenizer), tokenizer, tmp_path / "run/model", golden, {"seed": 1})
    model = build("llama", tokenizer, lora=Lora(rank=2))
    exported = export_model(model, tokenizer, tmp_path / "run/model", golden, {"seed": 2})
    assert exported == tmp_path / "run/model"
    assert os.listdir(tmp_path / "run") == ["model"], "nothing is left beside it"
    assert json.loads((exported / "rmtrain.json").read_text())["seed"] == 2
    before = (exported / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.backbone.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericError, match="golden rewards are not finite"):
        export_model(model, tokenizer, tmp_path / "run/model", golden, {})
    assert (exported / "model.safetensors").read_bytes() == before, "an export that fails leaves the earlier one alone"


def test_trap_31_a_copy_elsewhere_needs_no_network_no_cache_and_no_rmtrain(tmp_path: Path, tokenizer: Any) -> None:
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    copied = shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "model")
    report = check_reload(copied)
    assert report["ok"]
    assert report["largest_error"] < 1e-5
    edit_json(copied / "config.json", pad_token_id=5)
    with pytest.raises(
        CheckpointError, match="elsewhere does not load as it was saved: the pad ids of tokenizer and configuration are"
    ):
        check_reload(copied)
    assert "import rmtrain" not in Path(reload_check.__file__).read_text()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_trap_10_a_pipeline_gives_the_raw_reward(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    model = with_scale(build(architecture, tokenizer), 40.0)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    classify = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")
    golden = json.loads((tmp_path / "model/golden.json").read_text())
    single, batched = [classify(text)[0] for text in TEXTS], classify(list(TEXTS), batch_size=4)
    for results in (single, batched):
        assert [result["score"] for result in results] == pytest.approx([entry["reward"] for entry in golden], abs=1e-4)
        assert {result["label"] for result in results} == {"reward"}
    assert not all(0 <= entry["reward"] <= 1 for entry in golden), "guard: no sigmoid gives such a number"


def test_the_directory_keeps_the_save_contract(tmp_path: Path, tokenizer: Any) -> None:
    model = build("qwen3", tokenizer)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {"max_length": 64, "recipe_sha256": "abc"})
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
    assert config["label2id"] == {"reward": 0}
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    saved = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["chat_template"] == tokenizer.chat_template == (tmp_path / "model/chat_template.jinja").read_text()
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]
    with safe_open(tmp_path / "model/model.safetensors", "pt") as weights:
        assert weights.get_slice("score.weight").get_shape() == [1, 32]
        assert "score.bias" not in set(weights.keys())
    facts = json.loads((tmp_path / "model/rmtrain.json").read_text())
    assert {"versions", "base", "head", "dtype", "template_sha256"} <= set(facts)
    assert (facts["max_length"], facts["recipe_sha256"], facts["reads"]) == (64, "abc", "last token")
    text = "".join(file.read_text() for file in (tmp_path / "model").glob("*.json"))
    assert str(tmp_path) not in text, "no path of this machine is exported"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
            },
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25, "rotary_emb_base": 1e4, "rotary_pct": 0.25},
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (
            {
                "model_type": "modernbert",
                "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            },
            {"global_rope_theta": 1e6, "local_rope_theta": 1e4},
        ),
        (
            {
                "model_type": "phi3",
                "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]},
            },
            {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        ),
        ({}, {}),
    ],
)
def test_rotary_positions_are_written_in_the_old_names_too(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert old_rope(config) == expected


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        ("llama", {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("gpt_neox", {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}),
        ("mistral", {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_both_spellings_together_load_as_one(architecture: str, rope: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    config = scratch_config(scratch(architecture).scratch, tokenizer)
    config.rope_parameters = rope
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = build_reward_model(PretrainedModel(path=str(tmp_path / "base")), None, tokenizer, 1)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    exported, _ = load_reward_model(str(tmp_path / "model"), "cpu")
    assert exported.backbone.config.rope_parameters == model.backbone.config.rope_parameters
    assert exported.backbone.config.rope_parameters["rope_theta"] == rope["rope_theta"]
    assert check(str(tmp_path / "model"))["ok"]


@pytest.mark.parametrize("wrapper", ["plain", "compiled", "ddp", "compiled ddp"])
def test_trap_33_wrappers_leave_no_trace_in_the_names(wrapper: str, tmp_path: Path, tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    wrapped: torch.nn.Module = model
    if "ddp" in wrapper:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        wrapped = DistributedDataParallel(wrapped)
    if "compiled" in wrapper:
        wrapped = torch.compile(wrapped)  # type: ignore[assignment]
    try:
        write_export(wrapped, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    finally:
        if "ddp" in wrapper:
            torch.distributed.destroy_process_group()
    weights = load_file(tmp_path / "model/model.safetensors")
    assert set(weights) == set(model.backbone.state_dict())
    assert (wrapped is model) is (wrapper == "plain"), "guard: it was wrapped"


def test_trap_33_a_wrapper_within_the_model_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    model.backbone.model.layers[0] = torch.compile(model.backbone.model.layers[0])
    with pytest.raises(CheckpointError, match=r"model.layers.0._orig_mod\..* bears the name of a wrapper"):
        write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})


def test_trap_30_rewards_are_raw_whatever_was_scored_before(tmp_path: Path, tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    write_export(model, tokenizer, tmp_path / "first", make_golden(tokenizer), {})
    with evaluating(model):
        for _ in range(3):
            model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    write_export(model, tokenizer, tmp_path / "second", make_golden(tokenizer), {"reward_mean": 3.0, "reward_std": 2.0})
    assert (tmp_path / "first/golden.json").read_bytes() == (tmp_path / "second/golden.json").read_bytes()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = json.loads((tmp_path / "second/config.json").read_text())
    assert "mean" not in config
    assert "std" not in config


def test_a_directory_of_something_else_is_not_replaced(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is no export of rmtrain"):
        export_model(build("llama", tokenizer), tokenizer, tmp_path, make_golden(tokenizer), {})
    assert os.listdir(tmp_path) == ["thesis.txt"]


def damage_export(directory: Path, damage: str) -> None:
    if damage == "head":
        weights = load_file(directory / "model.safetensors")
        save_file(
            {**weights, "score.weight": weights["score.weight"] + 0.01},
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
    elif damage == "reward":
        golden = json.loads((directory / "golden.json").read_text())
        golden[1]["reward"] += 1e-3
        (directory / "golden.json").write_text(json.dumps(golden))
    elif damage == "text":
        golden = json.loads((directory / "golden.json").read_text())
        golden[1]["text"] += "!"
        (directory / "golden.json").write_text(json.dumps(golden))
    elif damage == "rope":
        edit_json(directory / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 17.0})
    elif damage == "nothing":
        (directory / "golden.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("head", "golden text 0 has the reward"),
        ("reward", "golden text 1 has the reward"),
        ("text", "golden text 1 gives the ids"),
        ("rope", "has the reward"),
        ("nothing", "golden.json is empty"),
    ],
)
def test_the_reload_check_notices_what_changes_a_reward(damage: str, problem: str, tmp_path: Path, tokenizer: Any) -> None:
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert check(str(tmp_path / "model"))["ok"], "guard"
    damage_export(tmp_path / "model", damage)
    report = check(str(tmp_path / "model"))
    assert not report["ok"]
    assert problem in report["problem"]


def test_golden_texts_that_cannot_be_reproduced_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    model = build("llama", tokenizer)
    text, ids = make_golden(tokenizer)[0]
    for golden, expected in (
        ([], "no golden texts"),
        ([(text, [*ids, 5])], "golden text 0 does not give its ids"),
        ([(f"{text}<pad>", [*ids, tokenizer.pad_token_id])], "golden text 0 contains the pad token '<pad>'"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            write_export(model, tokenizer, tmp_path / "model", golden, {})


def test_trap_38_a_tokenizer_that_transformers_would_load_otherwise_is_refused_before_training(tokenizer: Any) -> None:
    golden = [
        ("In 1234567 days\n\n\nwe don't   know.<eos>", tokenizer("In 1234567 days\n\n\nwe don't   know.<eos>")["input_ids"])
    ]
    check_exportable(build("llama", tokenizer), tokenizer, golden)
    digits = make_tokenizer()
    digits.backend_tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.ByteLevel(add_prefix_space=True)
    golden = [("In 1234567 days<eos>", digits("In 1234567 days<eos>")["input_ids"])]
    with pytest.raises(
        RecipeError, match="transformers loads the tokenizer of a qwen2 model as Qwen2Tokenizer, with other ids than this one's"
    ):
        check_exportable(build("qwen2", digits), digits, golden)


def test_tokenizers_keep_their_class_where_transformers_4_has_it(tmp_path: Path) -> None:
    vocabulary = make_tokenizer().get_vocab()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=None, eos_token="<eos>", pad_token="<pad>")
    write_export(
        build("qwen2", tokenizer), tokenizer, tmp_path / "model", [("Hello<eos>", tokenizer("Hello<eos>")["input_ids"])], {}
    )
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["tokenizer_class"] == "Qwen2Tokenizer"
    assert type(AutoTokenizer.from_pretrained(tmp_path / "model")) is Qwen2Tokenizer
    assert check(str(tmp_path / "model"))["ok"]
