"""Uploads: private, only files of the model, and failures with the command that repeats them. The Hub is a server of this test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import RmtrainError
from rmtrain.model.hub import push, uploaded_files
from rmtrain.recipe.schema import Hub
from tests.exports import tiny_export
from tests.hub_server import TOKEN, HubServer, hub_server

MINE = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "golden.json",
    "README.md",
)
OTHERS = ("optimizer.pt", "training_args.bin", "metrics.jsonl", "scores.jsonl", "recipe.yaml", "report.html", ".env")
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
PUSH = """
import json, pathlib, sys
from rmtrain.errors import RmtrainError
from rmtrain.model.hub import push
from rmtrain.recipe.schema import Hub
for _ in range(int(sys.argv[3])):
    try: print(push(pathlib.Path(sys.argv[1]), Hub(**json.loads(sys.argv[2])), 'rm'))
    except RmtrainError as error: print(error)
"""
PUSH_AND_SCORE = """
import json, pathlib, sys
from rmtrain.model.hub import push
from rmtrain.recipe.schema import Hub
push(pathlib.Path(sys.argv[1]), Hub(push=True, id=sys.argv[2]), "rm")
from rmtrain.batching.layout import lay_out
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.model.saved_model import load_reward_model
model, tokenizer = load_reward_model(sys.argv[2], "cpu")
rows = [TokenizedComparison("r", "r", (ids,), 0, 0, ()) for ids in json.loads(sys.argv[3])]
print(json.dumps([float(model(lay_out([row], tokenizer.pad_token_id))) for row in rows]))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "model"
    (directory / "adapter").mkdir(parents=True)
    for name in (*MINE, *OTHERS, "adapter/adapter_model.safetensors", "adapter/notes.txt"):
        (directory / name).write_text(f"content of {name}")
    (directory / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    return directory


def process(hub: HubServer, home: Path, code: str, *arguments: str | Path) -> str:
    """Run code in a process whose Hub is the test's, and return what it prints."""
    environment = {**os.environ, **hub.environment(home, TOKEN)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def push_to(hub: HubServer, directory: Path, settings: dict[str, Any], times: int = 1) -> str:
    """Push a number of times; return the printed lines, each an address or an error."""
    return process(hub, directory.parent, PUSH, directory, json.dumps(settings), str(times))


def stored(hub: HubServer, repo_id: str = "owner/rm") -> dict[str, bytes]:
    return hub.repositories["model", repo_id].revisions["main"]


def test_trap_s7_push_is_private_and_minimal(exported: Path, hub: HubServer) -> None:
    """Only files of the model are uploaded, to a private repository."""
    assert push_to(hub, exported, {"push": True}) == f"{hub.address}/owner/rm"
    assert hub.repositories["model", "owner/rm"].private
    assert set(stored(hub)) == {*MINE, *ADAPTER}
    assert stored(hub)["golden.json"] == b"content of golden.json"
    assert stored(hub)["model.safetensors"] == b"content of model.safetensors", "through large-file storage"


def test_trap_s7_public_repository_needs_consent(exported: Path, hub: HubServer) -> None:
    """Nothing is uploaded to an existing public repository unless the recipe sets hub.public."""
    hub.add("model", "owner/rm", {})
    line = push_to(hub, exported, {"push": True, "id": "owner/rm"})
    assert line.startswith("hub.id: owner/rm ")
    assert "hub.public: true" in line
    assert not stored(hub)
    push_to(hub, exported, {"push": True, "id": "owner/rm", "public": True})
    assert not hub.repositories["model", "owner/rm"].private
    assert "model.safetensors" in stored(hub)


@pytest.mark.parametrize("what", ["create", "commit", "upload"])
def test_refused_push_prints_the_retry_command(what: str, exported: Path, hub: HubServer) -> None:
    """The message has no token, and the printed command then completes the upload."""
    hub.refusals[what] = 1 if what != "upload" else 2
    line, address = push_to(hub, exported, {"push": True, "id": "owner/rm"}, times=2).splitlines()
    assert line.startswith("hub: owner/rm ")
    assert line.endswith(f"Retry: rmtrain export {exported.parent} --push")
    assert TOKEN not in line
    assert address == f"{hub.address}/owner/rm"
    assert set(stored(hub)) == {*MINE, *ADAPTER}


def test_retry_sends_only_missing_files(exported: Path, hub: HubServer) -> None:
    hub.refusals["commit"] = 1
    push_to(hub, exported, {"push": True}, times=2)
    sent = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(sent) == len(set(sent)) == 2, "the weights of model and adapter, once each"
    assert set(stored(hub)) == {*MINE, *ADAPTER}


def test_push_without_network_prints_the_retry_command(exported: Path) -> None:
    with pytest.raises(RmtrainError) as refusal:
        push(exported, Hub(push=True, public=True), "rm")
    (line,) = refusal.value.problems
    assert line.endswith(f"Retry: rmtrain export {exported.parent} --push")
    with pytest.raises(RmtrainError, match=r"Retry: rmtrain export there --push$"):
        push(exported, Hub(push=True), "rm", retry="rmtrain export there --push")


@pytest.mark.parametrize("base", ["/home/somebody/base", "./base", "~/base", None])
def test_trap_s7_adapter_of_local_base_stays(base: str | None, exported: Path) -> None:
    """An adapter whose base is a local directory is not uploaded."""
    assert "adapter/adapter_model.safetensors" in uploaded_files(exported), "guard"
    (exported / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert set(uploaded_files(exported)) == set(MINE)


def test_pushed_model_loads_with_the_same_rewards(tmp_path: Path, hub: HubServer) -> None:
    directory = tiny_export(tmp_path / "run" / "model")
    golden = json.loads((directory / "golden.json").read_text())
    ids = json.dumps([entry["ids"] for entry in golden])
    rewards = json.loads(process(hub, tmp_path / "elsewhere", PUSH_AND_SCORE, directory, "owner/tiny", ids))
    assert stored(hub, "owner/tiny")["golden.json"] == (directory / "golden.json").read_bytes()
    assert rewards == pytest.approx([entry["reward"] for entry in golden], abs=1e-6)
    assert len({round(reward, 3) for reward in rewards}) > 1, "guard"
