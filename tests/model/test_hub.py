"""Uploads: private, only files of the model, and failures with the command that repeats them. The Hub is a server of this test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.train import train
from rmtrain.errors import DataError, RecipeError, RmtrainError
from rmtrain.model.hub import push, uploaded_files
from rmtrain.recipe.schema import Hub
from tests.exports import tiny_export
from tests.hub_server import TOKEN, HubServer, hub_server
from tests.runs import tiny_recipe

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


CHECK = """
import json, logging, sys
from rmtrain.errors import RmtrainError
from rmtrain.model.hub import check_push
from rmtrain.recipe.schema import Hub
logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(message)s')
try: check_push(Hub(push=True, **json.loads(sys.argv[1])), 'rm')
except RmtrainError as error: print(error.exit_code, error)
"""


@pytest.mark.parametrize(
    ("settings", "token", "start", "words"),
    [
        ({}, TOKEN, "", []),
        ({"id": "owner/private"}, TOKEN, "", []),
        ({"id": "owner/open", "public": True}, TOKEN, "", []),
        ({}, None, "2 hub.push: ", ["hf auth login", "HF_TOKEN"]),
        ({}, "hf_other", "2 hub.push: ", ["hf auth login"]),
        ({"id": "owner/open"}, TOKEN, "2 hub.id: owner/open ", ["hub.public: true"]),
        ({"id": "stranger/rm"}, TOKEN, "WARNING hub.id: stranger/rm ", ["owner"]),
    ],
)
def test_upload_is_checked_before_the_work(
    settings: dict[str, Any], token: str | None, start: str, words: list[str], tmp_path: Path, hub: HubServer
) -> None:
    """No login, a wrong token and a public repository are refused; nothing is created or uploaded by the check."""
    hub.add("model", "owner/open", {})
    hub.add("model", "owner/private", {}, private=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_TOKEN", "HUGGING_FACE"))}
    environment |= hub.environment(tmp_path, token)
    command = [sys.executable, "-c", CHECK, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(start), done.stdout
    assert bool(done.stdout) == bool(start), done.stdout
    assert all(word in done.stdout for word in words)
    assert token is None or token not in done.stdout
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    assert len(hub.repositories) == 2


def test_a_hub_out_of_reach_is_a_warning(tmp_path: Path, hub: HubServer) -> None:
    """A run starts although the Hub cannot be asked: it may be back by the time of the upload."""
    environment = {**os.environ, **hub.environment(tmp_path, TOKEN), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK, "{}"], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("WARNING hub: "), done.stderr


def test_train_without_login_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes before the data are read and the directory is made."""
    monkeypatch.setattr("rmtrain.model.hub.get_token", lambda: None)
    recipe, guard = (tiny_recipe(tmp_path, hub={"push": wanted}) for wanted in (True, False))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"^hub\.push: "):
        train(recipe, Console(quiet=True))
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=r"train\.jsonl"):
        train(guard, Console(quiet=True))


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
