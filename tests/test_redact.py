"""Secret keys are known by their names, secrets and paths are hidden, and ordinary words are unchanged."""

import os
from pathlib import Path
from typing import Any

import pytest

from rmtrain.redact import HIDDEN, asks_for_secret, is_secret, redact, redact_paths


@pytest.mark.parametrize(
    "name", ["hf_token", "token", "HF_TOKEN", "hub.token", "api_key", "openai-api-key", "wandb_api_key", "password"]
)
def test_names_that_ask_for_a_secret(name: str) -> None:
    advice = asks_for_secret(name)
    assert advice is not None
    assert advice.startswith("no secrets in a recipe")
    assert ("WANDB_API_KEY" in advice) == ("wandb" in name)


@pytest.mark.parametrize(
    "name", ["tokenizer", "max_tokens", "max_token", "pad_token", "data.eos_token", "key", "secretary", "monkey"]
)
def test_names_that_ask_for_no_secret(name: str) -> None:
    assert asks_for_secret(name) is None


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "sk-proj-" + "aB3_" * 12, "me:hunter2"])
def test_secrets_are_hidden(secret: str) -> None:
    text = f"https://{secret}@host" if ":" in secret else secret
    assert is_secret(text)
    assert secret not in redact(f"got {text}, expected")
    assert HIDDEN in redact(text)


def test_wandb_keys_are_hidden_and_commits_not() -> None:
    hexadecimal = "0123456789abcdef" * 2 + "01234567"
    assert hexadecimal not in redact(f"wandb_api_key: {hexadecimal}")
    assert redact(f"revision: {hexadecimal}") == f"revision: {hexadecimal}"


@pytest.mark.parametrize(
    "text", ["task-specific-and-long-name", "hf_model", "https://host/a:b@c", "org/hf_internal", "risk-" + "a" * 40]
)
def test_ordinary_words_are_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not is_secret(text)


def test_paths_keep_only_their_last_part() -> None:
    secret = "hf_" + "a" * 34
    values: dict[str, Any] = {
        "output_dir": "/mnt/disk/somebody/runs/mine",
        "data": [{"path": "~/rows.jsonl"}, {"path": "owner/pairs"}, {"path": "../rows.jsonl"}],
        "note": f"token {secret}",
        "home": f"saved in {os.path.expanduser('~')}/x and {Path.cwd()}/y",
        "template": "{{ x }}</s>",
        "slash": "/",
        "seed": 1,
        "none": None,
    }
    shown = redact_paths(values)
    assert shown["output_dir"] == "…/mine"
    assert [source["path"] for source in shown["data"]] == ["…/rows.jsonl", "owner/pairs", "../rows.jsonl"]
    assert secret not in str(shown)
    assert os.path.expanduser("~") + "/" not in shown["home"]
    assert str(Path.cwd()) not in shown["home"]
    assert [shown[key] for key in ("template", "slash", "seed", "none")] == ["{{ x }}</s>", "/", 1, None]
