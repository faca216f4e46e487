"""Ids that have no embedding: the tokenizer's pad token is used, everything else is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import RewardScorer
from tests.forks import rmtrain
from tests.model.builders import edit_json


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("pad_id_beyond_vocabulary")


@pytest.mark.parametrize("pad", [399, 10**9, -1])
def test_pad_of_the_tokenizer_decides(pad: int, folder: Path) -> None:
    """In train, eval and score, which report it; rewards are those of a model with the right id."""
    edit_json(folder / "m/config.json", pad_token_id=pad)
    wrong = RewardScorer(str(folder / "m"), device="cpu")(["amber", "amber"], ["river", "copper river window"])
    for command in (
        ("train", "r.yaml", "--json"),
        ("eval", "m", "--data", "d.jsonl", "--json"),
        ("score", "m", "in.jsonl", "-o", "o.jsonl", "--json"),
    ):
        ended = rmtrain(*command, cwd=folder)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["pad_token"] == {"token": "<pad>", "id": 0, "replaced": pad}
    assert json.loads((folder / "out/model/config.json").read_text())["pad_token_id"] == 0
    edit_json(folder / "m/config.json", pad_token_id=0)
    assert wrong == RewardScorer(str(folder / "m"), device="cpu")(["amber", "amber"], ["river", "copper river window"])
    assert json.loads(rmtrain("eval", "m", "--data", "d.jsonl", "--json", cwd=folder).stdout)["pad_token"] is None


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "sep_token_id"])
@pytest.mark.parametrize("value", [399, [2, 10**12]])
def test_other_ids_beyond_vocabulary_are_refused(name: str, value: object, folder: Path) -> None:
    edit_json(folder / "m/config.json", **{name: value})
    for command in (("score", "m", "in.jsonl", "-o", "o.jsonl"), ("train", "r.yaml")):
        ended = rmtrain(*command, cwd=folder)
        assert ended.returncode == 4, ended.stderr
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
        ended = rmtrain(*command, cwd=folder)
        assert ended.returncode == 4, ended.stderr
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert "501 tokens" in line
    assert len(vocabulary) < 500, "guard: the number of tokens alone would pass"
