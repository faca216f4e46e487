"""A Hub that misbehaves: each door ends soon, in one line, and opens when the Hub is well again. The Hub is a server of this test."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.exports import tiny_export
from tests.forks import ForkServer, stream
from tests.helpers import pairs
from tests.hub_faults import Fault, circle, cut, drip, drop, hang, lie, other, status
from tests.hub_server import TOKEN, Answers, HubServer, hub_server
from tests.runs import environment_of_process, tiny_recipe

CLIENT = """
import json, sys, threading, time, traceback
import datasets, transformers.models.llama.modeling_llama
from rmtrain.data.rows.dataset import read_rows
from rmtrain.errors import RmtrainError
from rmtrain.model.saved_model import load_reward_model
from pathlib import Path
from rmtrain.model.hub import push
from rmtrain.recipe.schema import Hub, PairSource

def dataset(name): return len([*read_rows(PairSource(path=name, split="train"))])
def stream(name): return len([*read_rows(PairSource(path=name, split="train", streaming=True, limit=40))])
def upload(name): return push(Path(sys.argv[1]), Hub(push=True, id=name), "rm", "AGAIN") and "uploaded"
def model(name): return len(load_reward_model(name, "cpu")[1])

results, few = [], threading.Semaphore(24)

def run(case, door):
    with few:
        begin = time.monotonic()
        try:
            code, line = 0, str(globals()[door](f"owner/{case}"))
        except RmtrainError as error:
            code, line = error.exit_code, str(error)
        except Exception as error:
            code, line = 1, "".join(traceback.format_exception(error))
        results.append([case, door, code, line, time.monotonic() - begin])

for line in sys.stdin:
    results.clear()
    threads = [threading.Thread(target=run, args=pair) for pair in json.loads(line)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(json.dumps(results), flush=True)
"""
CASES: dict[str, tuple[Fault | None, int]] = {
    "good": (None, 0),
    "script": (None, 3),
    "card": (None, 3),
    "card2": (None, 3),
    "card3": (None, 3),
    "circle301": (circle(301), 3),
    "circle302": (circle(302), 3),
    "circlefile": (circle(307, "/resolve/"), 3),
    "cut1": (cut(1), 0),
    "cut2": (cut(2), 0),
    "cutall": (cut(10**6), 75),
    "cut0": (cut(10**6, 0), 75),
    "after": (status(429, Retry_After="999999999"), 75),
    "afterneg": (status(429, Retry_After="-5"), 75),
    "afterdate": (status(429, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"), 75),
    "afteruni": (status(503, Retry_After="²"), 75),
    "after503": (status(503, Retry_After="31536000"), 75),
    "ratelimit": (status(429, RateLimit='"api";r=0;t=99999999'), 75),
    "always500": (status(500), 75),
    "always502": (status(502), 75),
    "always503": (status(503), 75),
    "once500": (status(500, 1, "/resolve/"), 0),
    "once503": (status(503, 1, "/resolve/"), 0),
    "polite": (status(429, 2, "/resolve/", Retry_After="5"), 0),
    "hang": (hang(), 75),
    "drop": (drop, 75),
    "hangbody": (hang("/resolve/", True), 75),
    "drip": (drip, 75),
    "html": (other(b"<html>log in to the WiFi</html>"), 3),
    "htmlall": (other(b"<html>log in to the WiFi</html>", ""), 3),
    "list": (other(b"[1, 2]", kind="application/json"), 3),
    "null": (other(b"null", kind="application/json"), 3),
    "longer": (lie(1000), 75),
    "shorter": (lie(-20), 75),
    "gated401": (status(401, X_Error_Code="GatedRepo", X_Error_Message="Access to model \x1b[31m is restricted"), 3),
    "gated403": (status(403, X_Error_Code="GatedRepo"), 3),
    "plain403": (status(403), 3),
    "gone404": (status(404), 3),
}
"""By name of the repository: how the Hub misbehaves, and the exit code of a dataset."""
DOORS = ("dataset", "stream", "model")
CARDS: dict[str, dict[str, bytes]] = {
    "script": {"script.py": b"import datasets\n"},
    "card": {"README.md": b"---\nconfigs: [\n---\n"},
    "card2": {"README.md": b"---\n\tconfigs: x: y\n---\n"},
    "card3": {"README.md": b"---\nconfigs: 7\n---\n"},
}
"""Files besides the rows; a script has no rows besides."""
HALFWAY = ("cutall", "drip", "hangbody", "longer", "shorter", "always503")
"""After which there may be parts of files."""
TIMEOUT = 2
SHORT = {"HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT), "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT)}


class Said(NamedTuple):
    """Exit code or 0, the error or the number of rows or tokens, and how long it took."""

    code: int
    line: str
    seconds: float


Answered = dict[tuple[str, str], Said]


class Results(NamedTuple):
    """What was said by case and door: while the Hub was ill; by those that may have left something, when it was well; from the cache."""

    ill: Answered
    well: Answered
    cached: Answered


def misbehave(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
    """Misbehave as the name of the repository says."""
    path = f"{answers.path.partition('?')[0]}/"
    fault = next((fault for name, (fault, _) in CASES.items() if f"/owner/{name}/" in path), None)
    return fault is not None and fault(answers, code, body, headers)


def fill(hub: HubServer, export: Path) -> None:
    """Add a dataset and a model for each case."""
    rows = "".join(json.dumps(row) + "\n" for row in pairs(40)).encode()
    files = {file.name: file.read_bytes() for file in export.iterdir() if file.is_file()}
    for name in CASES:
        hub.add("dataset", f"owner/{name}", CARDS.get(name, {}) | ({} if name == "script" else {"train.jsonl": rows}))
        hub.add("model", f"owner/{name}", files)


@contextmanager
def client(hub: HubServer, home: Path, token: str | None = None) -> Iterator[Callable[[Sequence[tuple[str, str]]], Answered]]:
    """A process that goes to doors, all at the same time, and says what each said."""
    command = [sys.executable, "-W", "ignore", "-c", CLIENT, str(home / "model")]
    environment = environment_of_process(**hub.environment(home, token), **SHORT)
    pipe, log = subprocess.PIPE, home / "stderr"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):

        def ask(wanted: Sequence[tuple[str, str]]) -> Answered:
            stream(process.stdin).write(json.dumps(wanted) + "\n")
            stream(process.stdin).flush()
            line = stream(process.stdout).readline()
            assert line, log.read_text()
            return {(case, door): Said(*rest) for case, door, *rest in json.loads(line)}

        try:
            yield ask
        finally:
            process.kill()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each door says to each case, in one process, at the same time; and then again while the Hub is well."""
    home = tmp_path_factory.mktemp("home")
    wanted = [(case, door) for case in CASES for door in DOORS if door != "model" or case not in CARDS]
    with hub_server() as hub:
        fill(hub, tiny_export(home / "model"))
        with client(hub, home) as ask:
            hub.misbehave = misbehave
            ill = ask(wanted)
            hub.misbehave = None
            well = ask([(case, door) for case in HALFWAY for door in DOORS])
            hub.misbehave = hang()
            return Results(ill, well, ask([("good", "dataset"), ("good", "model")]))


def expected(case: str, door: str) -> int:
    """A dataset is refused with 3, a model with 4."""
    code = CASES[case][1]
    if door == "stream" and case in ("longer", "shorter"):
        return 0  # a stream asks for no size
    if door == "model" and code == 3:
        return 4
    return code


@pytest.mark.parametrize("door", DOORS)
def test_every_fault_has_its_exit_code(door: str, results: Results) -> None:
    """And one line with the repository."""
    said = {case: of_case for (case, of), of_case in results.ill.items() if of == door}
    assert {case: one for case, one in said.items() if one.code != expected(case, door)} == {}
    assert {case: one for case, one in said.items() if one.code and (case not in one.line or "\n" in one.line)} == {}
    assert said["good"].code == 0, "guard: the Hub serves what is asked for"
    assert len({one.code for one in said.values()}) == 3, "guard: opened, refused, and to be repeated"


def test_every_wait_ends(results: Results) -> None:
    """All bounds are multiples of the timeout: with 10 seconds instead of 2 it is a minute at most."""
    seconds = {key: said.seconds for key, said in results.ill.items()}
    assert max(seconds.values()) < 6 * TIMEOUT, seconds
    for case in ("after", "after503", "ratelimit"):
        assert max(seconds[case, door] for door in DOORS) < TIMEOUT, "an absurd wait is not begun"
    assert min(seconds["hang", door] for door in DOORS) > 0.9 * TIMEOUT, "guard: some waited"


def test_the_same_command_continues_afterwards(results: Results) -> None:
    """Nothing half-written is taken for whole."""
    assert {key: said.line for key, said in results.well.items() if said.line != results.ill["good", key[1]].line} == {}
    assert len(results.well) == len(HALFWAY) * len(DOORS), "guard"


def test_what_is_in_the_cache_needs_no_hub(results: Results) -> None:
    assert {key: said.line for key, said in results.cached.items()} == {key: results.ill[key].line for key in results.cached}
    assert max(said.seconds for said in results.cached.values()) < 6 * TIMEOUT
    assert len(results.cached) == 2, "guard"


def test_a_cut_download_is_resumed(tmp_path: Path) -> None:
    """The client keeps ten megabytes at a time."""
    content = b"".join(json.dumps({**row, "chosen": "x" * 2_000_000}).encode() + b"\n" for row in pairs(12))
    with hub_server() as hub, client(hub, tmp_path) as ask:
        hub.add("dataset", "owner/large", {"train.jsonl": content})
        hub.misbehave = cut(1)
        assert ask([("large", "dataset")])["large", "dataset"].line == "12"
        assert 0 < hub.sent() < 0.6 * len(content), "after the cut only the rest was sent"


@pytest.mark.parametrize(
    ("case", "door", "words"),
    [
        ("script", "dataset", "refs/convert/parquet"),
        ("card", "stream", "hf download"),
        ("circle301", "dataset", "HF_ENDPOINT"),
        ("html", "stream", "HF_ENDPOINT"),
        ("list", "dataset", "HF_ENDPOINT"),
        ("after", "model", "999,999,999 seconds"),
        ("always502", "dataset", "502 Bad Gateway"),
        ("plain403", "dataset", "hf auth login"),
        ("plain403", "model", "hf auth login"),
        ("gated403", "model", "403 Forbidden"),
    ],
)
def test_messages_say_why_or_what_to_do(case: str, door: str, words: str, results: Results) -> None:
    assert words in results.ill[case, door].line


UPLOADS: dict[str, tuple[Fault, int]] = {
    "always503": (status(503), 75),
    "after": (status(429, only="preupload", Retry_After="999999999"), 75),
    "commit500": (status(500, only="/commit/"), 75),
    "drop": (drop, 75),
    "hang": (hang("/api/repos/create"), 75),
    "html": (other(b"<html>log in</html>"), 1),
    "list": (other(b"[1, 2]", kind="application/json"), 1),
    "denied": (status(403, only="/commit/"), 1),
    "once": (status(503, 1, "/lfs/"), 0),
}


def test_uploads_end_and_can_be_repeated(tmp_path: Path) -> None:
    """An upload that may succeed later exits with 75, another one with 1; both say how to repeat it, and nothing is half uploaded."""
    tiny_export(tmp_path / "model")
    with hub_server() as hub, client(hub, tmp_path, TOKEN) as ask:
        sizes: set[int] = set()
        for case, (fault, code) in UPLOADS.items():
            hub.misbehave = fault
            said = ask([(case, "upload")])[case, "upload"]
            assert said.code == code, said
            assert said.seconds < 8 * TIMEOUT, said
            assert not code or (said.line.endswith("Retry: AGAIN") and f"owner/{case}" in said.line and "\n" not in said.line), (
                said
            )
            hub.misbehave = None
            sizes |= {len(repository.revisions["main"]) for repository in hub.repositories.values()}
        again = ask([(case, "upload") for case in UPLOADS])
        assert {said.line for said in again.values()} == {"uploaded"}
        whole = {len(repository.revisions["main"]) for repository in hub.repositories.values()}
    assert len(whole) == 1
    assert sizes == {0, *whole}, "all or nothing; an answer can be lost after the commit"


ROW = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
TWO_SPLITS = r"""---
configs: [{config_name: "default", data_files: [{split: "a\e[31m", path: a.jsonl}, {split: "b\e]0;x\a", path: b.jsonl}]}]
---
"""
NAMES: dict[str, dict[str, bytes]] = {
    "split": {"README.md": TWO_SPLITS.encode(), "a.jsonl": ROW, "b.jsonl": ROW},
    "value": {"README.md": b'---\nconfigs: "\\e[31m"\n---\n', "train.jsonl": ROW},
    "file": {"tr\x1b[31main.jsonl": b"{broken"},
    "reason": {"train.jsonl": ROW},
    "again": {"train.jsonl": ROW},
}
"""Datasets with control characters in what their author may choose."""


def test_command_prints_one_clean_line(tmp_path: Path) -> None:
    """No control character, no traceback, nothing of the client that tries again; and `preprocess` has the exit code of the fault."""
    recipe = tiny_recipe(tmp_path).model_dump(mode="json", exclude_unset=True)
    ended = {}
    with hub_server() as hub, ForkServer(**hub.environment(tmp_path), **SHORT) as server:
        for name, files in NAMES.items():
            hub.add("dataset", f"owner/{name}", files)
        for name in NAMES:
            recipe["data"]["train"] = [{"path": f"owner/{name}"}]
            (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
            faults = {"reason": status(403, X_Error_Message="no \x1b[31m way"), "again": status(503)}
            hub.misbehave = faults.get(name)
            ended[name] = server.run("preprocess", tmp_path / "recipe.yaml")
    for name, end in ended.items():
        assert end.code == (75 if name == "again" else 3), (name, end)
        assert sum(line.startswith("error: ") for line in end.stderr.splitlines()) == 1, (name, end)
        assert not any(ord(letter) < 32 and letter != "\n" for letter in end.stderr + end.stdout), (name, end)
        assert "Traceback" not in end.stderr, (name, end)
        assert "Retry" not in end.stderr, (name, end)
    assert "31m" in ended["split"].stderr, "guard: the name is printed"
