"""The head of another tool is used under its own name, or refused with what the checkpoint has."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from rmtrain import RewardScorer
from tests.forks import fork_server

PROMPT, REPLY = "amber harbour", "copper river window"


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("head_named_value_head")


def rename(folder: Path, names: Mapping[str, torch.Tensor], file: str = "model") -> dict[str, torch.Tensor]:
    """Replace the head by tensors of other names, in the file of the weights or in one of their own; return the old weights."""
    weights = load_file(folder / "m/model.safetensors")
    rest = {name: tensor for name, tensor in weights.items() if not name.startswith("value_head")}
    tensors = {**rest, **names} if file == "model" else dict(names)
    save_file(rest, folder / "m/model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / f"m/{file}.safetensors", metadata={"format": "pt"})
    return weights


def expected_reward(folder: Path, scorer: RewardScorer, head: torch.Tensor, bias: float = 0.0) -> float:
    """Compute a reward with transformers' base model and a head."""
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": REPLY}]
    (ids,) = scorer.tokenizer.apply_chat_template([turns], tokenize=True)["input_ids"]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder / "m", dtype=torch.float32)(torch.tensor([ids])).last_hidden_state[0, -1]
    return float(hidden @ head[0]) + bias


@pytest.mark.parametrize(
    ("name", "file", "bias"),
    [
        ("value_head", "model", None),
        ("v_head.summary", "model", 0.25),
        ("v_head.summary", "value_head", 0.25),
        ("head", "model", None),
        ("reward_head", "model", None),
    ],
)
def test_linear_heads_are_adopted(name: str, file: str, bias: float | None, folder: Path) -> None:
    """Heads of OpenRLHF, TRL and LLaMA-Factory, the last in a file of its own, and others."""
    head = load_file(folder / "m/model.safetensors")["value_head.weight"]
    rename(folder, {f"{name}.weight": head} | ({} if bias is None else {f"{name}.bias": torch.tensor([bias])}), file)
    scorer = RewardScorer(str(folder / "m"), device="cpu")
    (reward,) = scorer([PROMPT], [REPLY])
    assert reward == pytest.approx(expected_reward(folder, scorer, head, bias or 0.0), abs=1e-6)
    ended = fork_server().run("train", "b.yaml", "training.max_steps=1", cwd=folder)
    assert ended.code == 0, ended.stderr
    assert "new head" not in ended.stderr
    assert name in ended.stderr
    assert abs(reward - (bias or 0.0)) > 1e-3, "guard"


def test_training_starts_at_the_adopted_rewards(folder: Path) -> None:
    (reward,) = RewardScorer(str(folder / "m"), device="cpu")([PROMPT], [REPLY])
    ended = fork_server().run("train", "r.yaml", "optimizer.lr=1e-30", "training.max_steps=1", cwd=folder)
    assert ended.code == 0, ended.stderr
    assert RewardScorer(str(folder / "out/model"), device="cpu")([PROMPT], [REPLY]) == pytest.approx([reward], abs=1e-6)


MLP = {"v_head.summary.0.weight": torch.ones(8, 32), "v_head.summary.2.weight": torch.ones(1, 8)}
SEVERAL = {"regression_layer.weight": torch.ones(19, 32)}


@pytest.mark.parametrize(("names", "file"), [(MLP, "model"), (MLP, "value_head"), (SEVERAL, "model"), (MLP | SEVERAL, "model")])
def test_other_heads_are_refused_by_name(names: dict[str, torch.Tensor], file: str, folder: Path) -> None:
    """Exit code 4, with the names and shapes."""
    rename(folder, names, file)
    for command in (("score", "m", "in.jsonl", "-o", "o.jsonl"), ("train", "b.yaml")):
        ended = fork_server().run(*command, cwd=folder)
        assert ended.code == 4, ended.stderr
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert all(f"{name} {list(tensor.shape)}" in line for name, tensor in names.items())


def test_other_heads_give_way_to_a_new_one(folder: Path) -> None:
    """If the recipe asks for it; they are named among the weights that are not used."""
    rename(folder, MLP | SEVERAL)
    ended = fork_server().run("train", "b.yaml", "model.head=new", "training.max_steps=1", cwd=folder)
    assert ended.code == 0, ended.stderr
    assert "new head" in ended.stderr
    assert "not used: regression_layer.weight, v_head.* (2 tensors)" in ended.stderr


def test_unused_weights_are_named(folder: Path) -> None:
    """Heads of other tasks are not used, and everything else that does not fit is an error."""
    rename(folder, {"lm_head.weight": torch.ones(400, 32), "value_head.weight": torch.ones(1, 32)})
    ended = fork_server().run("score", "m", "in.jsonl", "-o", "o.jsonl", cwd=folder)
    assert ended.code == 0, ended.stderr
    assert "not used: lm_head.weight" in ended.stderr
    rename(folder, {"model.layers.7.mlp.up_proj.weight": torch.ones(64, 32), "value_head.weight": torch.ones(1, 32)})
    ended = fork_server().run("score", "m", "in.jsonl", "-o", "o.jsonl", "--fresh", cwd=folder)
    assert (ended.code, "model.layers.7.mlp.up_proj.weight" in ended.stderr) == (4, True)


def test_new_head_is_noted_once(folder: Path) -> None:
    """Where there is none in the checkpoint: when a run begins, not when it is resumed or exported."""
    rename(folder, {})
    first = fork_server().run("train", "r.yaml", "training.max_steps=1", cwd=folder)
    assert (first.code, first.stderr.count("note: new head, seed 1")) == (0, 1), first.stderr
    exported = fork_server().run("export", "out", cwd=folder)
    assert (exported.code, "new head" in exported.stderr) == (0, False), exported.stderr
