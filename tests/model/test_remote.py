"""Models of the Hub, from a cache made by the test: found offline, pinned, and their own code runs only with permission."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import write_export
from rmtrain.model.reload_check import check
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import Lora, PretrainedModel
from tests.model.builders import edit_json, make_base, make_golden

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
    with pytest.raises(RecipeError, match=r"^model\.path: .*model\.trust_remote_code"):
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


def test_architecture_without_classifier_is_refused(snapshot: Path, tokenizer: Any) -> None:
    from transformers import MambaConfig

    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(snapshot)
    with pytest.raises(RecipeError, match=r"^model\.path: .*mamba"):
        build_reward_model(PretrainedModel(path="owner/name"), None, tokenizer, 1)
