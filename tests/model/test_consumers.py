"""Requirements of the programs that serve or train on exports, each by name; and an older transformers, if one is installed."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from rmtrain.commands.train import train
from rmtrain.model import reload_check
from tests.exports import tiny_export
from tests.runs import tiny_recipe

CAUSAL = ("llama", "qwen2", "qwen3", "gemma", "mistral", "phi3", "gpt_neox")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "deberta-v2")
OLDER = os.environ.get("OLDER_TRANSFORMERS")


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


@pytest.mark.parametrize("architecture", CAUSAL)
def test_vllm_and_sglang_find_a_linear_head(architecture: str, tmp_path: Path) -> None:
    """They find one linear head without a bias, and return raw scores."""
    config = config_of(tiny_export(tmp_path / "model", architecture))
    weights = load_file(tmp_path / "model/model.safetensors")
    (name,) = config["architectures"]
    assert name.endswith("ForSequenceClassification")
    assert weights["score.weight"].shape == (1, 32)
    assert not [key for key in weights if key.startswith("score.") and key != "score.weight"], "a bias would stay random there"
    assert config["problem_type"] == "regression", "otherwise vLLM applies a sigmoid"
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0}), (
        "SGLang recognizes a reward model by them"
    )
    assert not [key for key in weights if "lora" in key or "base_layer" in key]


@pytest.mark.parametrize("architecture", ENCODERS)
def test_tei_finds_a_classifier_with_one_label(architecture: str, tmp_path: Path) -> None:
    config = config_of(tiny_export(tmp_path / "model", architecture))
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0}), "both, and one label makes a reranker"
    assert (tmp_path / "model/tokenizer.json").exists(), "it reads no other tokenizer"


def test_trl_and_openrlhf_find_template_and_pad_token(tmp_path: Path) -> None:
    """The pad token is not the end token."""
    directory = tiny_export(tmp_path / "model")
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert tokenizer["chat_template"]
    assert tokenizer["pad_token"] != tokenizer["eos_token"]
    assert tokenizer["padding_side"] == "right"
    assert isinstance(config_of(directory)["pad_token_id"], int)


def exported(kind: str, folder: Path) -> Path:
    """Return an export of an architecture, or of a run with merged adapters."""
    adapters: dict[str, dict[str, Any]] = {"lora": {"rank": 4}, "dora": {"rank": 4, "dora": True}}
    if kind not in adapters:
        return tiny_export(folder / "model", kind)
    train(tiny_recipe(folder, lora=adapters[kind], optimizer={"lr": 1e-2}), Console(quiet=True))
    return Path(shutil.move(folder / "run/model", folder / "model"))


@pytest.mark.skipif(OLDER is None, reason="needs a Python with transformers 4.57 in OLDER_TRANSFORMERS; `make older` makes one")
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS, "lora", "dora"])
def test_older_transformers_reproduces_the_golden_rewards(kind: str, tmp_path: Path) -> None:
    directory = exported(kind, tmp_path)
    assert OLDER is not None
    version = [OLDER, "-c", "import transformers; print(transformers.__version__)"]
    version_found = subprocess.run(version, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    result = subprocess.run(
        [OLDER, "-P", str(reload_check.__file__), str(directory)], capture_output=True, text=True, cwd=tmp_path
    )
    found = json.loads(result.stdout)
    assert found["ok"], found
    assert found["largest_error"] < 1e-5
    assert {"single", "right"} <= set(found["modes"])
    assert version_found.startswith("4."), "guard: it is an older version"
