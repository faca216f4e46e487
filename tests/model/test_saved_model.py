"""Saved models are loaded for scoring only if their rewards can be trusted; otherwise one line names the fix."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rmtrain.errors import CheckpointError
from rmtrain.model.export_dir import write_export
from rmtrain.model.saved_model import load_reward_model
from tests.model.builders import (
    build,
    edit_json,
    make_base,
    make_batch,
    make_golden,
    make_reward_model,
    make_sequences,
    only_problem,
    spread,
)


@pytest.fixture
def exported(tmp_path: Path, tokenizer: Any) -> Path:
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    return tmp_path / "model"


def refusal_of(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as refusal:
        load_reward_model(str(path), "cpu", **options)
    return only_problem(refusal)


def test_export_loads_with_its_rewards(exported: Path, tokenizer: Any) -> None:
    model, loaded_tokenizer = load_reward_model(str(exported), "cpu")
    batch = make_batch(make_sequences(tokenizer), tokenizer.pad_token_id)
    with torch.no_grad():
        rewards_N = model(batch)
        torch.testing.assert_close(rewards_N, build("llama", tokenizer).eval()(batch), rtol=1e-5, atol=1e-5)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert loaded_tokenizer.padding_side == "right"
    assert spread(rewards_N) > 1e-3


def test_trap_13_base_models_are_not_scored(tmp_path: Path, tokenizer: Any) -> None:
    """A base model has no head; a random one would give meaningless rewards."""
    base = make_base(tmp_path, tokenizer)
    problem = refusal_of(base)
    assert problem.startswith("model: ")
    assert str(base) in problem


def test_trap_13_two_outputs_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    saved = make_reward_model(tmp_path, tokenizer, labels=2)
    tokenizer.save_pretrained(saved)
    assert "[2, 32]" in refusal_of(saved)


@pytest.mark.parametrize(("pad", "found"), [(..., "no pad_token_id"), (7, "7")])
def test_trap_01_wrong_pad_id_is_refused(pad: Any, found: str, exported: Path, tokenizer: Any) -> None:
    """The message has both pad ids, and the line to write into config.json."""
    edit_json(exported / "config.json", pad_token_id=pad)
    problem = refusal_of(exported)
    assert problem.startswith("model: config.json of ")
    assert found in problem
    assert "'<pad>'" in problem
    assert f'set "pad_token_id": {tokenizer.pad_token_id} in config.json' in problem


def test_trap_01_unusable_pad_tokens_are_refused(exported: Path, tokenizer: Any) -> None:
    """A tokenizer without a pad token, or with the end token in its place."""
    edit_json(exported / "tokenizer_config.json", pad_token="<eos>")
    edit_json(exported / "config.json", pad_token_id=tokenizer.eos_token_id)
    assert "'<eos>'" in refusal_of(exported)
    edit_json(exported / "tokenizer_config.json", pad_token=None)
    assert "tokenizer_config.json" in refusal_of(exported)


def test_trap_04_changed_template_needs_permission(exported: Path) -> None:
    (exported / "chat_template.jinja").write_text("{{ messages }}")
    edit_json(exported / "tokenizer_config.json", chat_template="{{ messages }}")
    assert "template" in refusal_of(exported)
    model, _ = load_reward_model(str(exported), "cpu", allow_template_change=True)
    assert model.pools_last_token


def test_trap_38_changed_tokenization_is_refused(exported: Path) -> None:
    """The message has a text that gets other tokens than at export."""
    load_reward_model(str(exported), "cpu")
    file = exported / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    assert '"normalizer": null' in text, "guard: there is something to change"
    file.write_text(
        text.replace('"normalizer": null', '"normalizer": {"type": "Replace", "pattern": {"String": "e"}, "content": "i"}')
    )
    with pytest.raises(CheckpointError, match=r"^model: the tokenizer of .* 'The cat"):
        load_reward_model(str(exported), "cpu")
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "content",
    [
        *("{}", "[]", "[{}]", "null", '[{"text": "x"}]', "[[]]", "[" * 100_000, "", "\xff"),
        *(
            '[{"text": "\\ud800", "add_special_tokens": true, "ids": [1]}]',
            '[{"text": 1, "add_special_tokens": true, "ids": [1]}]',
        ),
        '[{"text": "x", "add_special_tokens": true, "ids": 7}]',
    ],
)
def test_damaged_golden_record_is_refused(exported: Path, content: str) -> None:
    """An empty record checks nothing, and is refused as well."""
    (exported / "golden.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"^model: golden\.json of ") as refused:
        load_reward_model(str(exported), "cpu")
    assert only_problem(refused)


def test_more_tokens_than_embeddings_are_refused(exported: Path, tokenizer: Any) -> None:
    _, larger = load_reward_model(str(exported), "cpu")
    larger.add_tokens(["<new>"])
    larger.save_pretrained(exported)
    problem = refusal_of(exported)
    assert f"{len(tokenizer) + 1} tokens" in problem
    assert problem.endswith(str(len(tokenizer)))


def test_security_neither_pickles_nor_code_run(exported: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (exported / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    edit_json(exported / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    assert "auto_map" in refusal_of(exported)
    edit_json(exported / "config.json", model_type="llama", auto_map=...)
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal_of(exported)
    assert not canary.exists()


def test_missing_models_are_reported(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal_of(tmp_path / "nowhere")
    assert "config.json" in refusal_of(tmp_path)
