"""Uploads: private, only what belongs to the model, and a failure that says how to repeat it. The Hub is a server of this test."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import RmtrainError
from rmtrain.model.hub import push, uploaded_files
from rmtrain.recipe.schema import Hub

MINE = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "golden.json",
    "README.md",
)
OTHERS = ("optimizer.pt", "training_args.bin", "metrics.jsonl", "scores.jsonl", "recipe.yaml", ".env")


class FakeHub(ThreadingHTTPServer):
    """Answers the few calls of an upload and remembers what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.private: bool | None = None
        self.exists_as_public = False
        self.refuses = False
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.endswith("whoami-v2"):
            self.answer({"name": "owner", "type": "user"})
        else:
            private = not self.server.exists_as_public
            self.answer(
                {"id": "owner/rm", "private": private, "sha": "0" * 40, "siblings": [], "tags": [], "downloads": 0, "likes": 0}
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuses:
            self.answer({"error": "Forbidden"}, 403)
        elif self.path.endswith("repos/create"):
            asked = json.loads(body)
            self.server.private = asked.get("visibility") == "private" or asked.get("private") is True
            self.answer({"url": f"{self.server.address}/owner/rm"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/owner/rm/commit/{'0' * 40}"}
            )
        else:
            self.answer({})


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "adapter").mkdir(parents=True)
    for name in (*MINE, *OTHERS, "adapter/adapter_model.safetensors", "adapter/notes.txt"):
        (directory / name).write_text(f"content of {name}")
    (directory / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    return directory


def push_to(server: FakeHub, directory: Path, hub: dict[str, Any]) -> str:
    """Push in a process of its own, whose Hub is the test's; returns what it printed: the address, or the error's line."""
    code = (
        "import json, pathlib, sys\n"
        "from rmtrain.errors import RmtrainError\n"
        "from rmtrain.model.hub import push\n"
        "from rmtrain.recipe.schema import Hub\n"
        "try: print(push(pathlib.Path(sys.argv[1]), Hub(**json.loads(sys.argv[2])), 'rm'))\n"
        "except RmtrainError as error: print(error)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", code, str(directory), json.dumps(hub)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_trap_s7_a_push_is_private_and_uploads_the_model_only(exported: Path, fake_hub: FakeHub) -> None:
    address = push_to(fake_hub, exported, {"push": True})
    assert address == f"{fake_hub.address}/owner/rm"
    assert fake_hub.private is True
    assert set(fake_hub.files) == {*MINE, "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert fake_hub.files["golden.json"] == b"content of golden.json"


def test_trap_s7_an_existing_public_repository_takes_nothing_unless_the_recipe_says_public(
    exported: Path, fake_hub: FakeHub
) -> None:
    fake_hub.exists_as_public = True
    line = push_to(fake_hub, exported, {"push": True, "id": "owner/rm"})
    assert line.startswith("hub: owner/rm exists and is public; set hub.public: true")
    assert not fake_hub.files
    push_to(fake_hub, exported, {"push": True, "id": "owner/rm", "public": True})
    assert fake_hub.private is False
    assert "model.safetensors" in fake_hub.files


def test_a_refusal_says_how_to_repeat_the_upload(exported: Path, fake_hub: FakeHub) -> None:
    fake_hub.refuses = True
    line = push_to(fake_hub, exported, {"push": True, "id": "owner/rm"})
    assert line.startswith("hub: owner/rm was not uploaded: ")
    assert line.endswith(f"Retry: hf upload owner/rm {exported} --private")
    assert "\n" not in line
    assert "hf_test" not in line


def test_without_network_the_line_says_how_to_repeat_the_upload(exported: Path) -> None:
    with pytest.raises(RmtrainError) as refusal:
        push(exported, Hub(push=True, public=True), "rm")
    (line,) = refusal.value.problems
    assert line.endswith(f"Retry: hf upload rm {exported} --no-private")


@pytest.mark.parametrize("base", ["/home/somebody/base", "./base", "~/base", None])
def test_trap_s7_an_adapter_for_a_model_of_this_machine_stays_here(base: str | None, exported: Path) -> None:
    assert "adapter/adapter_model.safetensors" in uploaded_files(exported), "guard"
    (exported / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert set(uploaded_files(exported)) == set(MINE)
    with pytest.raises(RmtrainError, match=r"--exclude 'adapter/\*'$"):
        push(exported, Hub(push=True), "rm")
