"""An empty completion is a reply like any other: the same reward wherever it is scored."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import RewardScorer
from tests.forks import rmtrain


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("empty_completion")


def test_empty_completions_score_alike(folder: Path) -> None:
    """On the command line as text and as messages; in Python as conversations, texts and messages, as TRL passes them."""
    rewards = {}
    for name in ("in", "in2"):
        assert rmtrain("score", "m", f"{name}.jsonl", "-o", f"{name}.out", cwd=folder).returncode == 0
        rewards[name] = json.loads((folder / f"{name}.out").read_text())["rewards"]
    scorer = RewardScorer(str(folder / "m"), device="cpu")
    asked, texts = [{"role": "user", "content": "a"}], ["b", ""]
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    rewards["texts"] = scorer(prompts=["a", "a"], completions=texts)
    rewards["messages"] = scorer(prompts=[asked, asked], completions=replies)
    rewards["conversations"] = scorer.score([[*asked, *reply] for reply in replies])
    expected = rewards.pop("in")[:2]
    for name, found in rewards.items():
        assert found == pytest.approx(expected, abs=1e-6), name
    assert abs(expected[0] - expected[1]) > 1e-5, "guard: an empty reply has a reward of its own"


def test_empty_reply_is_rendered_as_a_turn(folder: Path) -> None:
    """Its reward is not that of the prompt alone, and training refuses it."""
    scorer = RewardScorer(str(folder / "m"), device="cpu")
    text = scorer.tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], tokenize=False
    )
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    row = {"prompt": "a", "chosen": "b", "rejected": ""}
    (folder / "d.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "run": {"name": "x", "output_dir": "out"},
        "data": {"train": [{"path": "d.jsonl"}], "cache_dir": "cache"},
        "model": {"path": "m"},
        "optimizer": {"lr": 0.001},
    }
    (folder / "r.yaml").write_text(json.dumps(recipe))
    ended = rmtrain("preprocess", "r.yaml", cwd=folder)
    assert ended.returncode == 3
    assert "empty_response" in ended.stderr
