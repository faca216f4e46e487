"""The Hub of the tests answers the real client: what is uploaded is downloaded again, and private is private."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.hub_server import MAIN, TOKEN, hub_server
from tests.runs import ROOT

CLIENT = """
import json, pathlib, sys
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

api, folder = HfApi(), pathlib.Path(sys.argv[1])
for kind in ("model", "dataset"):
    repo = f"owner/{kind}"
    api.create_repo(repo, repo_type=kind, private=True)
    api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder)
    assert api.repo_info(repo, repo_type=kind).private
    assert api.create_repo(repo, repo_type=kind, exist_ok=True)
    copy = pathlib.Path(snapshot_download(repo, repo_type=kind))
    print(json.dumps({str(file.relative_to(copy)): file.read_text() for file in sorted(copy.rglob("*")) if file.is_file()}))
    try:
        HfApi(token=False).repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        print(json.dumps("refused"))
"""


def test_upload_download_and_privacy(tmp_path: Path) -> None:
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "folder/config.json").write_text("{}")
    (tmp_path / "folder/inside/weights.txt").write_text("1 2 3")
    with hub_server() as hub:
        environment = {**os.environ, **hub.environment(tmp_path, TOKEN), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", CLIENT, str(tmp_path / "folder")]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    files = {"config.json": "{}", "inside/weights.txt": "1 2 3"}
    assert [json.loads(line) for line in result.stdout.splitlines()] == [files, "refused"] * 2
    stored = hub.repositories["model", "owner/model"]
    assert stored.private
    assert set(stored.revisions[MAIN]) == set(files)
