"""Only what can be scored is loaded for scoring; everything else ends in one line that names the fix."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rmtrain.errors import CheckpointError
from rmtrain.model.export_dir import write_export
from rmtrain.model.saved_model import load_reward_model
from tests.model.builders import build, edit_json, make_base, make_batch, make_golden, make_sequences, spread


@pytest.fixture
def exported(tmp_path: Path, tokenizer: Any) -> Path:
    write_export(build("llama", tokenizer), tokenizer, tmp_path / "model", make_golden(tokenizer), {})
    return tmp_path / "model"


def refusal_of(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as refusal:
        load_reward_model(str(path), "cpu", **options)
    (problem,) = refusal.value.problems
    assert "\n" not in problem
    return problem


def test_an_export_loads_with_the_rewards_it_had(exported: Path, tokenizer: Any) -> None:
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


def test_trap_13_a_base_model_is_not_scored_with_a_random_head(tmp_path: Path, tokenizer: Any) -> None:
    base = make_base(tmp_path, tokenizer)
    assert refusal_of(base) == f"model: no score head: {base} is a base model; train one with `rmtrain train`"


def test_trap_13_a_head_with_two_outputs_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from tests.model.test_pretrained import make_reward_model

    saved = make_reward_model(tmp_path, tokenizer, labels=2)
    tokenizer.save_pretrained(saved)
    assert "has shape [2, 32], expected one output: [1, H]" in refusal_of(saved)


@pytest.mark.parametrize(("pad", "came"), [(..., "no pad_token_id"), (7, "pad_token_id 7")])
def test_trap_01_a_lost_or_changed_pad_id_is_refused_with_the_fix(pad: Any, came: str, exported: Path, tokenizer: Any) -> None:
    edit_json(exported / "config.json", pad_token_id=pad)
    problem = refusal_of(exported)
    assert f"config.json of {exported} has {came}, but its tokenizer pads with '<pad>'" in problem
    assert f'set "pad_token_id": {tokenizer.pad_token_id} in config.json' in problem


def test_trap_01_a_tokenizer_without_pad_token_or_with_the_end_token_for_it_is_refused(exported: Path, tokenizer: Any) -> None:
    edit_json(exported / "tokenizer_config.json", pad_token="<eos>")
    edit_json(exported / "config.json", pad_token_id=tokenizer.eos_token_id)
    assert "pads with its end token '<eos>', so transformers reads rewards before it" in refusal_of(exported)
    edit_json(exported / "tokenizer_config.json", pad_token=None)
    assert "has no pad token; set pad_token in its tokenizer_config.json" in refusal_of(exported)


def test_trap_04_a_changed_template_is_refused_unless_allowed(exported: Path) -> None:
    (exported / "chat_template.jinja").write_text("{{ messages }}")
    edit_json(exported / "tokenizer_config.json", chat_template="{{ messages }}")
    assert "template hash differs" in refusal_of(exported)
    model, _ = load_reward_model(str(exported), "cpu", allow_template_change=True)
    assert model.pools_last_token


def test_trap_38_a_tokenizer_that_reads_a_text_otherwise_than_at_export_is_refused_naming_it(exported: Path) -> None:
    load_reward_model(str(exported), "cpu")
    file = exported / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    assert '"normalizer": null' in text, "guard: there is something to change"
    file.write_text(
        text.replace('"normalizer": null', '"normalizer": {"type": "Replace", "pattern": {"String": "e"}, "content": "i"}')
    )
    with pytest.raises(CheckpointError, match=r"gives other tokens than when the model was exported, such as for '.*'; install"):
        load_reward_model(str(exported), "cpu")
    file.write_text(text, encoding="utf-8")
    (exported / "golden.json").write_text('[{"text": "x"}]')
    with pytest.raises(CheckpointError, match=r"golden.json of .* is damaged; export the model again"):
        load_reward_model(str(exported), "cpu")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(exported: Path, tokenizer: Any) -> None:
    _, larger = load_reward_model(str(exported), "cpu")
    larger.add_tokens(["<new>"])
    larger.save_pretrained(exported)
    assert f"has {len(tokenizer) + 1} tokens, its weights have embeddings for {len(tokenizer)}" in refusal_of(exported)


def test_security_only_safetensors_are_opened_and_code_is_not_run(exported: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (exported / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    edit_json(exported / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    assert "comes with code of its own (auto_map)" in refusal_of(exported)
    assert "needs a Hub id pinned by revision" in refusal_of(exported, trust_remote_code=True, revision="0" * 40)
    edit_json(exported / "config.json", model_type="llama", auto_map=...)
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    assert "only pytorch_model.bin, which can run code when opened" in refusal_of(exported)
    assert not canary.exists()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert refusal_of(tmp_path / "nowhere") == f"model: there is no directory {tmp_path / 'nowhere'}"
    assert "has no config.json" in refusal_of(tmp_path)
