"""An export loads everywhere with the rewards in memory, or is refused; nothing half-written is left in its place."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, Qwen2Tokenizer, pipeline

from rmtrain.errors import CheckpointError, NumericError, RecipeError, TryAgain
from rmtrain.model import export_dir, reload_check
from rmtrain.model.build import build_reward_model, scratch_config
from rmtrain.model.export_dir import check_exportable, check_reload, export_model, old_rope, write_export
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
    """Return the model with larger rewards, so that a sigmoid or rounding would show."""
    with torch.no_grad():
        model.head_weight_1H.mul_(scale)
    return model


@pytest.mark.parametrize("architecture", CAUSAL + ENCODERS)
def test_trap_31_transformers_reproduces_the_golden_rewards(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    """The golden rewards are those in memory, and transformers alone reproduces them single, right- and left-padded."""
    model = with_scale(build(architecture, tokenizer), 3.0)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    report = check(str(tmp_path / "model"))
    assert report["ok"]
    assert report["golden"] == len(TEXTS)
    assert report["modes"] == ["single", "right", "left"][: 3 if architecture in CAUSAL else 2]
    assert bool(report["skipped"]) is (architecture in ENCODERS), "skipped modes are reported"
    golden = json.loads((tmp_path / "model/golden.json").read_text())
    with evaluating(model):
        rewards_N = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    torch.testing.assert_close(torch.tensor([entry["reward"] for entry in golden]), rewards_N, rtol=1e-5, atol=1e-5)
    assert [entry["text"] for entry in golden] == list(TEXTS)
    assert rewards_N.unique().numel() == len(TEXTS), "guard: rewards differ"


@pytest.mark.fresh_reload
def test_trap_31_fresh_process_verifies_each_export(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a verified export replaces an earlier one, and one that fails leaves the earlier one unchanged."""
    reports: list[dict[str, Any]] = []

    def check_and_record(*arguments: Any) -> dict[str, Any]:
        reports.append(check_reload(*arguments))
        return reports[-1]

    monkeypatch.setattr(export_dir, "check_reload", check_and_record)
    golden, directory = make_golden(tokenizer), tmp_path / "run/model"
    write_export(build("gpt2", tokenizer), tokenizer, directory, golden, {"seed": 1})
    model = build("llama", tokenizer, lora=Lora(rank=2))
    assert export_model(model, tokenizer, directory, golden, {"seed": 2}) == directory
    assert [(report["ok"], report["golden"], report["modes"]) for report in reports] == [(True, 4, ["single", "right", "left"])]
    assert reports[0]["largest_error"] < 1e-5
    assert os.listdir(tmp_path / "run") == ["model"], "nothing else is left"
    assert json.loads((directory / "rmtrain.json").read_text())["seed"] == 2
    before = (directory / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.backbone.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericError, match=r"^export: .*nan"):
        export_model(model, tokenizer, directory, golden, {})
    assert (directory / "model.safetensors").read_bytes() == before


@pytest.mark.fresh_reload
def test_trap_31_reload_needs_only_the_directory(tmp_path: Path, tokenizer: Any) -> None:
    """A copy elsewhere is checked without network, cache or rmtrain; a wrong pad id is then a CheckpointError."""
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    copied = Path(shutil.move(tmp_path / "model", tmp_path / "elsewhere"))
    assert check(str(copied))["ok"], "guard"
    edit_json(copied / "config.json", pad_token_id=5)
    with pytest.raises(CheckpointError, match=r"elsewhere .*pad ids.*5"):
        check_reload(copied)
    assert "import rmtrain" not in Path(reload_check.__file__).read_text()


@pytest.mark.fresh_reload
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGBUS"])
def test_killed_reload_check_is_try_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The out-of-memory killer says nothing about the model; an exit code of the check itself does."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nkill -{name.removeprefix('SIG')} $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TryAgain, match=rf"^{tmp_path}/model: .*{name}") as refused:
        check_reload(tmp_path / "model")
    assert len(refused.value.problems) == 1
    python.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(CheckpointError, match="9"):
        check_reload(tmp_path / "model")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_exported_files_have_the_same_permissions(
    umask: int, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the umask, as any new file: safetensors writes for the owner alone."""
    monkeypatch.setattr(export_dir, "check_reload", lambda *_: {})
    before = os.umask(umask)
    try:
        export_model(build("llama", tokenizer, lora=Lora(rank=2)), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert len([path for path in files if path.suffix == ".safetensors"]) == 2, "guard: weights and adapter"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_trap_10_pipelines_return_the_raw_reward(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    """A text-classification pipeline applies no sigmoid, single or batched."""
    model = with_scale(build(architecture, tokenizer), 40.0)
    write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    classify = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")
    golden = json.loads((tmp_path / "model/golden.json").read_text())
    single, batched = [classify(text)[0] for text in TEXTS], classify(list(TEXTS), batch_size=4)
    for results in (single, batched):
        assert [result["score"] for result in results] == pytest.approx([entry["reward"] for entry in golden], abs=1e-4)
        assert {result["label"] for result in results} == {"reward"}
    assert not all(0 <= entry["reward"] <= 1 for entry in golden), "guard: no sigmoid gives such a number"


def test_export_keeps_the_save_contract(tmp_path: Path, tokenizer: Any) -> None:
    """Names, types and both spellings of every file that consumers read; no path of this machine."""
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
def test_rotary_positions_get_their_old_names(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert old_rope(config) == expected


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        ("llama", {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("gpt_neox", {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}),
        ("mistral", {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    ],
)
def test_both_spellings_load_as_one(architecture: str, rope: dict[str, Any], tmp_path: Path, tokenizer: Any) -> None:
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
def test_trap_33_wrappers_leave_no_trace(wrapper: str, tmp_path: Path, tokenizer: Any) -> None:
    """The tensors have the names of the transformers model under torch.compile and DDP."""
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


def test_trap_33_wrapper_inside_the_model_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """A compiled layer changes the names of its tensors, which nobody could load."""
    model = build("llama", tokenizer)
    model.backbone.model.layers[0] = torch.compile(model.backbone.model.layers[0])
    with pytest.raises(CheckpointError, match=r"^export: .*model\.layers\.0\."):
        write_export(model, tokenizer, tmp_path / "model", make_golden(tokenizer), {})


def test_trap_30_exported_rewards_are_raw(tmp_path: Path, tokenizer: Any) -> None:
    """Scoring before the export changes no byte of it, and no normalization is stored."""
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


def test_foreign_directory_is_not_replaced(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
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
        ("head", "golden text 0 "),
        ("reward", "golden text 1 "),
        ("text", "golden text 1 "),
        ("rope", "golden text "),
        ("nothing", "golden.json"),
    ],
)
def test_reload_check_notices_changed_rewards(damage: str, problem: str, tmp_path: Path, tokenizer: Any) -> None:
    """A changed head, reward, text or configuration is reported with the number of the golden text."""
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    assert check(str(tmp_path / "model"))["ok"], "guard"
    damage_export(tmp_path / "model", damage)
    report = check(str(tmp_path / "model"))
    assert not report["ok"]
    assert problem in report["problem"]


def test_golden_texts_must_be_reproducible(tmp_path: Path, tokenizer: Any) -> None:
    """Golden texts are required, must give their ids, and must not contain the pad token."""
    model = build("llama", tokenizer)
    text, ids = make_golden(tokenizer)[0]
    for golden, expected in (
        ([], "^export: "),
        ([(text, [*ids, 5])], "^export: golden text 0 .*ids"),
        ([(f"{text}<pad>", [*ids, tokenizer.pad_token_id])], "^export: golden text 0 .*<pad>"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            write_export(model, tokenizer, tmp_path / "model", golden, {})


def test_trap_38_unloadable_tokenizer_is_refused_before_training(tokenizer: Any) -> None:
    """transformers picks the tokenizer's class by architecture; if that class gives other ids, training does not start."""
    golden = [
        ("In 1234567 days\n\n\nwe don't   know.<eos>", tokenizer("In 1234567 days\n\n\nwe don't   know.<eos>")["input_ids"])
    ]
    check_exportable(build("llama", tokenizer), tokenizer, golden)
    digits = make_tokenizer()
    digits.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    golden = [("In 1234567 days<eos>", digits("In 1234567 days<eos>")["input_ids"])]
    with pytest.raises(RecipeError, match=r"^model: .*qwen2.*Qwen2Tokenizer"):
        check_exportable(build("qwen2", digits), digits, golden)


def test_tokenizer_class_of_transformers_4_is_kept(tmp_path: Path) -> None:
    vocabulary = make_tokenizer().get_vocab()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=None, eos_token="<eos>", pad_token="<pad>")
    write_export(
        build("qwen2", tokenizer), tokenizer, tmp_path / "model", [("Hello<eos>", tokenizer("Hello<eos>")["input_ids"])], {}
    )
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["tokenizer_class"] == "Qwen2Tokenizer"
    assert type(AutoTokenizer.from_pretrained(tmp_path / "model")) is Qwen2Tokenizer
    assert check(str(tmp_path / "model"))["ok"]
