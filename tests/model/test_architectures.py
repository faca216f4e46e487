"""Every causal model and encoder of transformers is trained and exported, or refused with a reason; docs/engine.md has the table."""

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import export_adapter, export_model
from rmtrain.model.last_token_classifier import CODE, make_classifier
from rmtrain.model.model_files import ModelRef, find_weights
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import amplified, edit_json, make_batch, make_golden, make_sequences, only_problem, spread
from tests.model.zoo import ARCHITECTURES, outcome_table, shrunk, tiny_config, try_out

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/engine.md"
SAMPLE = (
    "llama",
    "bert",
    "granite",
    "olmoe",
    "gemma4",
    "lfm2",
    "nemotron_h",
    "deepseek_v4",
    "gpt_neo",
    "whisper",
    "fnet",
    "cpmant",
)


def documented() -> str:
    return DOCUMENT.read_text(encoding="utf-8").partition("<!-- architectures -->\n")[2].partition("<!-- end -->")[0]


def row_of(table: str, model_type: str) -> str:
    """Return the row that lists an architecture, without its number and its list."""
    rows = [
        line
        for line in table.splitlines()
        if line.startswith("|") and model_type in re.split(r"[ |,]+", line.rpartition(" | ")[2])
    ]
    assert len(rows) == 1, (model_type, rows)
    return re.sub(r"\d+ \| [^|]*\|$", "", rows[0])


@pytest.mark.parametrize("model_type", SAMPLE)
def test_architecture_does_what_the_table_says(model_type: str, tokenizer: Any, tmp_path: Path) -> None:
    outcome = try_out(model_type, tokenizer, tmp_path)
    assert row_of(outcome_table({model_type: outcome}), model_type) == row_of(documented(), model_type)


@pytest.mark.long
def test_table_of_all_architectures_is_current(tokenizer: Any, tmp_path: Path) -> None:
    outcomes = {model_type: try_out(model_type, tokenizer, tmp_path) for model_type in ARCHITECTURES}
    assert outcome_table(outcomes) == documented()
    assert sum(outcome.refused is None for outcome in outcomes.values()) > 180, "guard: most are trained"


def test_made_class_equals_the_one_of_transformers(tokenizer: Any) -> None:
    """Llama without its class gets one that gives the rewards of the class that transformers has."""
    ids = torch.tensor([sequence[:6] for sequence in make_sequences(tokenizer) if len(sequence) >= 6])
    config = tiny_config("llama", len(tokenizer))
    config.num_labels = 1
    torch.manual_seed(0)
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    made = make_classifier(config, RecipeError)(config).eval()
    made.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, theirs(ids).logits, rtol=1e-6, atol=1e-6)
        labels = torch.ones(len(ids), 1)
        torch.testing.assert_close(made(ids, labels=labels).loss, theirs(ids, labels=labels).loss, rtol=1e-6, atol=0)
    assert made.__class__.__name__ == type(theirs).__name__
    assert made.__class__ is not type(theirs), "guard: it was made"


def base_of(model_type: str, tokenizer: Any, directory: Path) -> Path:
    """Write a causal model of an architecture, as its authors publish it: with its parts for images, if it has them."""
    config = shrunk(CONFIG_MAPPING[model_type](), len(tokenizer))
    torch.manual_seed(5)
    kind = AutoModelForImageTextToText if "vision_config" in config.sub_configs else AutoModelForCausalLM
    kind.from_config(copy.deepcopy(config)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def rewards_of(model: RewardModel, tokenizer: Any) -> torch.Tensor:
    model.eval().use_layout("padded")
    with torch.no_grad():
        rewards: torch.Tensor = model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id))
    return rewards


@pytest.mark.parametrize("model_type", ["granite", "olmoe", "nemotron_h"])
def test_made_class_trains_from_a_published_checkpoint(
    model_type: str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are those of the causal model; the export loads without its code in rmtrain, and is trained again."""
    base = base_of(model_type, tokenizer, tmp_path / "base")
    with caplog.at_level(logging.INFO):
        model = build_reward_model(PretrainedModel(path=str(base)), None, tokenizer, seed=1)
    assert type(model.backbone).__name__ in caplog.text
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, parameter in causal.base_model.named_parameters():
        assert torch.equal(model.backbone.base_model.get_parameter(name), parameter), name
    export_model(amplified(model), tokenizer, tmp_path / "export", make_golden(tokenizer), {})
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["architectures"] == [type(model.backbone).__name__]
    assert config["auto_map"].keys() == {"AutoModelForSequenceClassification"}
    loaded, _ = load_reward_model(str(tmp_path / "export"), "cpu")
    assert torch.equal(rewards_of(loaded, tokenizer), rewards_of(model, tokenizer))
    again = build_reward_model(PretrainedModel(path=str(tmp_path / "export")), None, tokenizer, seed=2)
    assert torch.equal(rewards_of(again, tokenizer), rewards_of(model, tokenizer))
    assert spread(rewards_of(model, tokenizer)) > 0.05, "guard: rewards differ"
    assert (tmp_path / "export" / CODE).is_file()


@pytest.mark.parametrize("model_type", ["gemma4", "llama4", "qwen3_5_moe"])
def test_text_part_of_larger_models_is_trained(
    model_type: str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = base_of(model_type, tokenizer, tmp_path / "base")
    with caplog.at_level(logging.INFO):
        model = build_reward_model(PretrainedModel(path=str(base)), None, tokenizer, seed=1)
    assert "only the text part" in caplog.text
    published = find_weights(ModelRef(str(base), None, "base"))
    (prefix,) = {
        name.removesuffix("norm.weight") for name in published.files if re.search(r"(model|language_model)\.norm\.weight$", name)
    }
    assert torch.equal(model.backbone.base_model.get_parameter("norm.weight"), published.tensor(f"{prefix}norm.weight"))
    embeddings = published.tensor(f"{prefix}embed_tokens.weight")
    assert torch.equal(model.backbone.get_input_embeddings().weight, embeddings)
    export_model(model, tokenizer, tmp_path / "export", make_golden(tokenizer), {})
    names = {name.partition(".")[0] for name in find_weights(ModelRef(str(tmp_path / "export"), None, "export")).files}
    assert names == {"model", "score"}
    assert json.loads((tmp_path / "export/config.json").read_text())["model_type"] == model.backbone.config.model_type
    assert prefix != "model.", "guard: the checkpoint has other names"


def test_adapter_of_a_made_class_reloads(tokenizer: Any, tmp_path: Path) -> None:
    base = base_of("granite", tokenizer, tmp_path / "base")
    model = build_reward_model(PretrainedModel(path=str(base)), Lora(rank=2), tokenizer, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    export_adapter(model, tokenizer, tmp_path / "adapter", make_golden(tokenizer), {})
    export_model(model, tokenizer, tmp_path / "merged", make_golden(tokenizer), {})
    expected = rewards_of(model, tokenizer)
    for name in ("adapter", "merged"):
        loaded, _ = load_reward_model(str(tmp_path / name), "cpu")
        torch.testing.assert_close(rewards_of(loaded, tokenizer), expected, rtol=1e-5, atol=5e-5)
    assert spread(expected) > 0.01, "guard: rewards differ"


def test_checkpoint_without_a_text_part_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    base = base_of("granite", tokenizer, tmp_path / "base")
    config = shrunk(CONFIG_MAPPING["gemma4"](), len(tokenizer))
    config.save_pretrained(base)
    edit_json(base / "config.json", architectures=["Gemma4ForConditionalGeneration"])
    with pytest.raises(CheckpointError) as refusal:
        build_reward_model(PretrainedModel(path=str(base)), None, tokenizer, seed=1)
    assert str(base) in only_problem(refusal)


@pytest.mark.parametrize("model_type", ["whisper", "trocr", "musicgen", "marian"])
def test_what_is_no_decoder_is_refused_by_name(model_type: str, tokenizer: Any, tmp_path: Path) -> None:
    refused = try_out(model_type, tokenizer, tmp_path).refused
    assert refused is not None


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_parameters_that_only_choose_are_frozen(lora: Lora | None, tokenizer: Any, tmp_path: Path) -> None:
    """The indexer of sparse attention and the balancing bias of experts choose, which has no gradient; everything else gets one."""
    base = base_of("deepseek_v32", tokenizer, tmp_path / "base")
    model = build_reward_model(PretrainedModel(path=str(base)), lora, tokenizer, seed=1)
    model.use_layout("padded")
    model(make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    assert not [name for name in trained if "indexer" in name]
    assert any("indexer" in name for name, _ in model.named_parameters()), "guard: there is an indexer"
    assert any("o_proj" in name for name in trained), "guard: attention is trained"
