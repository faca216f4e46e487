"""A Hub that misbehaves, at all doors: each ends soon, in one line, and opens when the Hub is well again. The Hub is a server of this test."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import pairs
from tests.hub_faults import Fault, circle, cut, drip, drop, hang, lie, other, status
from tests.hub_server import Answers, HubServer

CLIENT = """
import json, sys, threading, time, traceback
from rmtrain.data.rows.dataset import fingerprint, read_rows
from rmtrain.errors import RmtrainError
from rmtrain.model.saved_model import load_reward_model
from rmtrain.recipe.schema import PairSource
import transformers.models.llama.modeling_llama, datasets

def dataset(name): return len([*read_rows(PairSource(path=name, split="train"))])
def stream(name): return len([*read_rows(PairSource(path=name, split="train", streaming=True, limit=40))])
def model(name): return len(load_reward_model(name, "cpu")[1])

few = threading.Semaphore(12)

def run(case, door):
    few.acquire()
    begin = time.monotonic()
    try:
        code, line = 0, f"{door('owner/' + case)}"
    except RmtrainError as error:
        code, line = error.exit_code, str(error)
    except Exception as error:
        code, line = 1, "TRACEBACK " + "".join(traceback.format_exception(error))[-300:]
    seconds = time.monotonic() - begin
    few.release()
    print(json.dumps({"case": case, "door": door.__name__, "code": code, "line": line, "seconds": seconds}) + "\\n", end="", flush=True)

threads = [threading.Thread(target=run, args=(case, door)) for case in json.loads(sys.argv[1]) for door in (dataset, stream, model)]
for thread in threads: thread.start()
for thread in threads: thread.join()
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
    "always429": (status(429), 75),
    "always500": (status(500), 75),
    "always502": (status(502), 75),
    "always503": (status(503), 75),
    "file503": (status(503, only="/resolve/"), 75),
    "once500": (status(500, 1, "/resolve/"), 0),
    "once503": (status(503, 1, "/resolve/"), 0),
    "hang": (hang(), 75),
    "drop": (drop, 75),
    "hangfile": (hang("/resolve/"), 75),
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


def misbehave(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
    """Misbehave as the name of the repository says."""
    fault = next((fault for name, (fault, _) in CASES.items() if f"/owner/{name}/" in f"{answers.path.partition('?')[0]}/"), None)
    return fault is not None and fault(answers, code, body, headers)


def files_of(hub: HubServer, export: Path) -> None:
    """Fill a Hub with a dataset and a model for each case."""
    rows = "".join(json.dumps(row) + "\n" for row in pairs(40)).encode()
    cards = {
        "script": {"script.py": b"import datasets\n"},
        "card": {"README.md": b"---\nconfigs: [\n---\n"},
        "card2": {"README.md": b"---\n\tconfigs: x: y\n---\n"},
        "card3": {"README.md": b"---\nconfigs: 7\n---\n"},
    }
    model = {file.name: file.read_bytes() for file in export.iterdir() if file.is_file()}
    for name in CASES:
        hub.add("dataset", f"owner/{name}", cards.get(name, {}) | ({} if name == "script" else {"train.jsonl": rows}))
        hub.add("model", f"owner/{name}", model)
