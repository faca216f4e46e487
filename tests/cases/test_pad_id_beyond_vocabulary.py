"""Ids that have no embedding: the tokenizer's pad token is used, everything else is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import RewardScorer
from tests.forks import fork_server
from tests.model.builders import edit_json


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("pad_id_beyond_vocabulary")


@pytest.mark.parametrize("pad", [399, 10**9, -1])
def test_pad_of_the_tokenizer_decides(pad: int, folder: Path) -> None:
    """In train, eval and score, which report a pad id that is not the tokenizer's; it gets an embedding that nothing attends to."""
    edit_json(folder / "m/config.json", pad_token_id=pad)
    replaced = None if pad == 399 else {"token": "<pad>", "id": 399, "replaced": pad}
    for command in (
        ("train", "r.yaml", "--json"),
        ("eval", "m", "--data", "d.jsonl", "--json"),
        ("score", "m", "in.jsonl", "-o", "o.jsonl", "--json"),
    ):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 0, ended.stderr
        assert json.loads(ended.stdout)["pad_token"] == replaced
    config = json.loads((folder / "out/model/config.json").read_text())
    assert (config["pad_token_id"], config["vocab_size"]) == (399, 400)


def test_rewards_are_those_of_a_sound_model(folder: Path) -> None:
    """One whose tokenizer pads with a token that has an embedding."""
    asked = (["amber", "amber"], ["river", "copper river window, and a longer reply"])
    rewards = RewardScorer(str(folder / "m"), device="cpu")(*asked)
    edit_json(folder / "m/config.json", pad_token_id=0)
    edit_json(folder / "m/tokenizer_config.json", pad_token="<unk>")
    file = folder / "m/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 399]
    file.write_text(json.dumps(tokenizer))
    assert RewardScorer(str(folder / "m"), device="cpu")(*asked) == pytest.approx(rewards, abs=1e-7)
    assert len(set(rewards)) == 2, "guard"


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "sep_token_id"])
@pytest.mark.parametrize("value", [399, [2, 10**12]])
def test_other_ids_beyond_vocabulary_are_refused(name: str, value: object, folder: Path) -> None:
    edit_json(folder / "m/config.json", **{name: value})
    for command in (("score", "m", "in.jsonl", "-o", "o.jsonl"), ("train", "r.yaml")):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 4, ended.stderr
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert name in line


def test_tokenizer_larger_than_embeddings_is_refused(folder: Path) -> None:
    """A vocabulary of which some tokens have no embedding is that of another model."""
    file = folder / "m/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["zq"] = 500
    file.write_text(json.dumps(tokenizer))
    for command in (("score", "m", "in.jsonl", "-o", "o.jsonl"), ("train", "r.yaml")):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 4, ended.stderr
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert "501 tokens" in line
    assert len(vocabulary) < 500, "guard: the number of tokens alone would pass"
