"""A Hub on this machine for tests: repositories in memory behind the HTTP interface that `huggingface_hub` and `datasets` speak.

    with hub_server() as hub:
        hub.add("dataset", "owner/pairs", {"train.jsonl": content})
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})

The libraries read their settings when they are imported, so a client of this Hub is a process of its own.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "main"
TOKEN = "hf_test"
USER = "owner"
API = re.compile(r"^/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)(?P<rest>/.*)?$")
LFS = re.compile(r"^/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch$")
CONTENT = re.compile(r"^/lfs/(?P<oid>[0-9a-f]{64})$")
LARGE = (".safetensors", ".bin")
FILE = re.compile(r"^/(?:(?P<kind>dataset|space)s/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rest>.+)$")
RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")
SPECIAL = re.compile(r"refs/(?:convert/\w+|pr/\d+)")


@dataclass
class Repository:
    """The files of one id for each revision: a branch, a tag or a ref such as `refs/convert/parquet`."""

    private: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, revision: str) -> str:
        """A commit hash that follows the content."""
        digest = hashlib.sha1(revision.encode())
        for name, content in sorted(self.revisions[revision].items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def find(self, revision: str) -> str | None:
        """The name of a revision that is given by name or by commit."""
        named = [name for name in self.revisions if revision in (name, self.commit(name))]
        return named[0] if named else None


@dataclass
class Request:
    """A request that was answered, and the number of bytes of content that were sent."""

    method: str
    path: str
    sent: int


class HubServer(ThreadingHTTPServer):
    """The server. `repositories` are by kind (model, dataset) and id; `requests` is what came; `fail_after` lets downloads break."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.large: dict[str, bytes] = {}
        """Content of large files by sha256, once uploaded."""
        self.refusals: dict[str, int] = {}
        """Number of requests of a kind (`create`, `upload`, `commit`) that will be refused."""
        self.fail_after: int | None = None
        """Answer 404 to requests of files after this number of bytes, as when a dataset is removed during a download."""
        self.misbehave: Callable[[Answers, int, bytes, Mapping[str, str]], bool] | None = None
        """Takes each request with the right answer, status, body and headers, and returns whether it has answered otherwise."""

    @property
    def address(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(
        self, kind: str, repo_id: str, files: Mapping[str, bytes], *, revision: str = MAIN, private: bool = False
    ) -> Repository:
        """Store files under an id; what that revision had before is gone."""
        repository = self.repositories.setdefault((kind, repo_id), Repository(private))
        repository.revisions[revision] = dict(files)
        return repository

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables of a process that uses this Hub, with its caches under `home`."""
        variables = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "*",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def sent(self, kind: str = "dataset") -> int:
        """Bytes of files that were downloaded from repositories of a kind."""
        start = "/datasets/" if kind == "dataset" else "/"
        return sum(request.sent for request in self.requests if "/resolve/" in request.path and request.path.startswith(start))


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answers(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/whoami-v2":
            self._whoami()
        elif found := API.match(path):
            self._get_api(found["kind"], unquote(found["id"]), found["rest"] or "")
        elif found := FILE.match(path):
            self._get_file(found["kind"] or "model", found["id"], unquote(found["rest"]))
        else:
            self._refuse(404, "no such page")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            if not self._refuses("create"):
                self._create(json.loads(body))
        elif LFS.match(path):
            self._batch(json.loads(body))
        elif found := API.match(path):
            self._post_api(found["kind"], unquote(found["id"]), found["rest"] or "", body)
        else:
            self._json({})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = CONTENT.match(urlsplit(self.path).path)
        if found is None:
            self._refuse(404, "no such page")
        elif self._refuses("upload"):
            return
        elif hashlib.sha256(body).hexdigest() != found["oid"]:
            self._refuse(400, "other content")
        else:
            self.server.large[found["oid"]] = body
            self._json({})

    def _refuses(self, what: str) -> bool:
        """Refuse this request if it is one of `refusals`; return whether it was."""
        if not self.server.refusals.get(what):
            return False
        self.server.refusals[what] -= 1
        self._refuse(403, f"no {what} today")
        return True

    def _batch(self, request: Mapping[str, Any]) -> None:
        """Answer where to upload those large files that are missing."""
        objects = []
        for file in request["objects"]:
            upload = {"href": f"{self.server.address}/lfs/{file['oid']}", "header": {}}
            is_stored = file["oid"] in self.server.large
            objects.append({**file} if is_stored else {**file, "actions": {"upload": upload}})
        self._json({"objects": objects, "transfer": "basic"})

    def _whoami(self) -> None:
        if self._is_known():
            self._json({"name": USER, "type": "user", "orgs": []})
        else:
            self._refuse(401, "who are you?")

    def _get_api(self, kind: str, repo_id: str, rest: str) -> None:
        what, _, more = rest.lstrip("/").partition("/")
        found = self._repository(kind, repo_id, unquote(more) if what in ("revision", "tree") else MAIN)
        if found is None:
            return
        repository, revision, path = found
        if what == "tree":
            self._tree(repository.revisions[revision], path)
        elif what in ("", "revision"):
            self._json(self._facts(repo_id, repository, revision))
        else:
            self._refuse(404, "no such page")

    def _post_api(self, kind: str, repo_id: str, rest: str, body: bytes) -> None:
        what, _, more = rest.lstrip("/").partition("/")
        found = self._repository(kind, repo_id, unquote(more) or MAIN)
        if found is None:
            return
        repository, revision, _ = found
        if what == "paths-info":
            named = parse_qs(body.decode()).get("paths", [])
            self._json([entry for entry in _entries(repository.revisions[revision], "", True) if entry["path"] in named])
        elif what == "preupload":
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in json.loads(body)["files"]}
            self._json({"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]})
        elif what == "commit":
            self._commit(repo_id, repository, revision, body)
        else:
            self._json({})

    def _repository(self, kind: str, repo_id: str, rest: str) -> tuple[Repository, str, str] | None:
        """The repository, and revision and path in `rest`; None: it was refused."""
        repository = self.server.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self._is_known()):
            self._refuse(404 if self._is_known() else 401, "no such repository", "RepoNotFound")
            return None
        special = SPECIAL.match(rest)
        name, _, path = (special[0], "", rest[special.end() + 1 :]) if special else rest.partition("/")
        revision = repository.find(name)
        if revision is None:
            self._refuse(404, f"no revision {name}", "RevisionNotFound")
            return None
        return repository, revision, path

    def _get_file(self, kind: str, repo_id: str, rest: str) -> None:
        found = self._repository(kind, repo_id, rest)
        if found is None:
            return
        repository, revision, path = found
        content = repository.revisions[revision].get(path)
        limit = self.server.fail_after
        if content is None or (self.command == "GET" and limit is not None and self.server.sent(kind) > limit):
            self._refuse(404, f"no file {path}", "EntryNotFound", {"X-Repo-Commit": repository.commit(revision)})
            return
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": repository.commit(revision),
            "Accept-Ranges": "bytes",
        }
        part = RANGE.match(self.headers.get("Range", ""))
        if part is None:
            self._answer(200, content, headers)
            return
        begin, end = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
        if begin >= len(content):
            self._refuse(416, "no such range")
            return
        self._answer(206, content[begin : end + 1], headers | {"Content-Range": f"bytes {begin}-{end}/{len(content)}"})

    def _tree(self, files: Mapping[str, bytes], path: str) -> None:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        entries = _entries(files, path, recursive)
        if path and not entries:
            self._refuse(404, f"no folder {path}", "EntryNotFound")
        else:
            self._json(entries)

    def _create(self, request: Mapping[str, Any]) -> None:
        kind = request.get("type") or "model"
        repo_id = f"{request.get('organization') or USER}/{request['name'].rpartition('/')[2]}"
        url = f"{self.server.address}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if (kind, repo_id) in self.server.repositories:
            self._answer(409, json.dumps({"error": "it exists", "url": url}).encode(), {"Content-Type": "application/json"})
            return
        self.server.add(kind, repo_id, {}, private=request.get("private") is True or request.get("visibility") == "private")
        self._json({"url": url, "id": repo_id})

    def _commit(self, repo_id: str, repository: Repository, revision: str, body: bytes) -> None:
        if self._refuses("commit"):
            return
        files = repository.revisions[revision]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(line["value"]["path"], None)
        commit = repository.commit(revision)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.server.address}/{repo_id}/commit/{commit}"})

    def _facts(self, repo_id: str, repository: Repository, revision: str) -> dict[str, Any]:
        names = sorted(repository.revisions[revision])
        return {
            "id": repo_id,
            "author": repo_id.partition("/")[0],
            "sha": repository.commit(revision),
            "private": repository.private,
            "siblings": [{"rfilename": name} for name in names],
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def _is_known(self) -> bool:
        return self.headers.get("Authorization", "") == f"Bearer {TOKEN}"

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str = "", headers: Mapping[str, str] = {}) -> None:
        reason = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **reason, **headers})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if self.server.misbehave is not None and self.server.misbehave(self, status, body, headers):
            self.server.requests.append(Request(self.command, self.path, 0))
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        is_content = self.command != "HEAD"
        if is_content:
            self.wfile.write(body)
        self.server.requests.append(Request(self.command, self.path, len(body) if is_content and status < 300 else 0))


def _entries(files: Mapping[str, bytes], path: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders at a path, as the Hub lists them."""
    start = f"{path}/" if path else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in sorted(files.items()):
        if not name.startswith(start):
            continue
        folders = name.split("/")[:-1]
        parents = ["/".join(folders[: depth + 1]) for depth in range(len(folders))]
        inside = [folder for folder in parents if folder.startswith(start) and folder != path]
        for folder in inside if recursive else inside[:1]:
            entries[folder] = {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}
        if recursive or not inside:
            oid = hashlib.sha1(content).hexdigest()
            entries[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
    return list(entries.values())
