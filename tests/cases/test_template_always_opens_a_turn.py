"""A template that announces another reply after the last one: the reward is read at the end of the reply."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rmtrain.data.text.tokenizer import prepared
from tests.forks import rmtrain


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
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    whole = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert tokenizer.apply_chat_template(talk, tokenize=False) == whole
    announced = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert announced == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
