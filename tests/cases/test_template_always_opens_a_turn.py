"""A template that announces another reply after the last one: the reward is read at the end of the reply."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrain.data.text.tokenizer import prepared
from tests.forks import rmtrain

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("template_always_opens_a_turn")


def test_reward_is_read_at_the_reply(folder: Path) -> None:
    """Every row is kept, and each of its responses ends in the end token that follows its own text."""
    ended = rmtrain("inspect", "r.yaml", "--limit", "100", "--json", cwd=folder)
    rows = json.loads(ended.stdout)["rows"]
    assert len(rows) == len((folder / "d.jsonl").read_text().splitlines())
    raw = AutoTokenizer.from_pretrained(folder / "m")
    for row in rows:
        for response in row["responses"]:
            assert response["reward_index"] == response["length"] - 1
            assert response["tokens"][-1].endswith("<|im_end|>")
            assert response["own_text"].count("<|im_end|>") == 1
            assert response["own_text"].endswith("<|im_end|>")
    opened = raw.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert opened.endswith("<|im_start|>assistant\n"), "guard: the template as it came opens a turn"


def test_completed_template_still_announces_replies(folder: Path) -> None:
    """What is exported renders whole conversations without the open turn, and prompts with it."""
    tokenizer = prepared(AutoTokenizer.from_pretrained(folder / "m"), "tokenizer")
    whole = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == whole
    announced = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert announced == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_export_reads_the_reward_at_the_reply(folder: Path) -> None:
    """transformers alone, with the exported template, ends in the reply's end token, and gives the reward that `score` gives."""
    assert rmtrain("train", "r.yaml", "training.max_steps=1", cwd=folder).returncode == 0
    assert rmtrain("score", "out/model", "in.jsonl", "-o", "out.jsonl", cwd=folder).returncode == 0
    reward = json.loads((folder / "out.jsonl").read_text())["reward"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out/model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out/model")
    ids = tokenizer.apply_chat_template(TALK, return_tensors="pt", return_dict=True)
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"][0].tolist())[-2:] == ["b", "<|im_end|>"]
    with torch.no_grad():
        assert reward == pytest.approx(model(**ids).logits[0, 0].item(), abs=1e-5)
    golden = json.loads((folder / "out/model/golden.json").read_text())
    assert all(entry["text"].endswith("<|im_end|>") for entry in golden)
    assert not any(entry["text"].endswith("assistant\n<|im_end|>") for entry in golden)
