"""`rmtrain serve` under load over loopback: rewards, requests per second, latencies, and tokens computed against sent.

HH rows go as requests with one conversation each to servers in processes of their own:
1. ours, for each number of clients: every reward must be that of `rmtrain score` within 1e-6, or the benchmark fails; of rewards above 1,
   within 1e-6 of the largest, as float32 has them;
2. plain: a FastAPI loop around transformers, which scores each request by itself, as small reward servers do (needs fastapi). It takes
   texts that are rendered already, and ours is measured with the same requests;
3. one by one: `RewardScorer` in this process, without a server, each row by itself.
Then prompts with 64 responses, as one request and as 64; and a signal under load, after which every accepted request must be answered.
"""

import http.client
import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, figure, finish, installed, machine, now, parser, show
from benchmarks.pairs import HH, MAX_LENGTH, hh_rows, llama, read_comparisons, recipe_for
from rmtrain.data.comparison import Comparison
from rmtrain.data.text.encoder import Encoder, LengthPolicy
from rmtrain.data.text.renderer import render_all
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.model.build import build_reward_model
from rmtrain.model.export_dir import golden_texts, write_export

TOLERANCE, PLAIN_TOLERANCE = 1e-6, 1e-4
RESPONSES = 64
PATIENCE = 120.0
Request = dict[str, Any]


@dataclass
class Load:
    """Requests that clients sent, with their answers in the order of the requests.

    seconds: of all; latencies: of each.
    """

    answers: list[Any]
    latencies: list[float]
    seconds: float = 0.0
    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.answers) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds in which a share of the requests was answered."""
        return 1000 * float(np.quantile(self.latencies, share))


def send(port: int, path: str, requests: Sequence[Request], clients: int) -> Load:
    """Send all requests, each client one after the other over a connection that it keeps."""
    bodies = [json.dumps(request).encode() for request in requests]
    load = Load([None] * len(bodies), [math.nan] * len(bodies))
    numbers = iter(range(len(bodies)))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            while True:
                with load.lock:
                    number = next(numbers, None)
                if number is None:
                    return
                start = time.perf_counter()
                connection.request("POST", path, bodies[number], {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = response.read()
                load.latencies[number] = time.perf_counter() - start
                if response.status == 200:
                    load.answers[number] = json.loads(answer)
        except (OSError, http.client.HTTPException):  # the server has ended
            with load.lock:
                load.failures += 1
        finally:
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - start
    return load


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server as a process that prints a JSON document with its `url` when it is ready; and its port."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {process.communicate()[1]}")
        port = int(json.loads(line)["url"].rpartition(":")[2])
        wait_until_ready(port)
        yield process, port
    finally:
        process.terminate()
        process.communicate()


def wait_until_ready(port: int) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise SystemExit("the server does not answer")


def serve_plain(model: str) -> None:
    """A reward server as it is written in twenty lines: one forward of transformers for each text."""
    import socket

    import torch
    import uvicorn
    from fastapi import FastAPI, Request
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded, tokenizer = AutoModelForSequenceClassification.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, list[float]]:
        queries = (await request.json())["query"]
        inputs = tokenizer(queries, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            return {"rewards": loaded(**inputs).logits[:, 0].tolist()}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # With the protocol, so that asyncio switches Nagle's algorithm off, as where uvicorn opens the socket itself.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    print(json.dumps({"url": f"http://127.0.0.1:{bound.getsockname()[1]}"}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([bound])


def make_model(arguments: Namespace, folder: Path) -> tuple[Path, list[Comparison], list[str]]:
    """Write a model from scratch, and return it with conversations of HH that fit it, and their texts as its template renders them."""
    file, _ = hh_rows(HH, folder)
    recipe = recipe_for(file, folder, llama(arguments.hidden))
    tokenizer = load_tokenizer(recipe.model, recipe.data)
    model = build_reward_model(recipe.model, None, tokenizer, 1)
    write_export(model, tokenizer, folder / "model", golden_texts(tokenizer, MAX_LENGTH), {})
    encoder, fitting = Encoder(tokenizer, LengthPolicy(MAX_LENGTH, overlong="drop")), []
    for row, checked in zip(pairs := read_comparisons(recipe), encoder.encode(pairs), strict=True):
        if checked.row is not None:
            fitting += [Comparison(row.id, "", row.prompt, (response,), ()) for response in row.responses]
    conversations = [(*row.prompt, *row.responses[0]) for row in fitting]
    return folder / "model", fitting, render_all(conversations, tokenizer, [row.id for row in fitting])


def expected_rewards(model: Path, lines: Sequence[Request], folder: Path) -> np.ndarray[Any, Any]:
    """The rewards that `rmtrain score` writes for the lines."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "rmtrain", "score", str(model), str(source), "-o", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return np.array([json.loads(line)["reward"] for line in target.read_text(encoding="utf-8").splitlines()])


def metric(port: int, name: str) -> float:
    """A number of `/metrics`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).rpartition(" ")[2])


def many_responses(port: int, rows: Sequence[Comparison], prompts: int) -> dict[str, Any]:
    """Tokens sent and computed for long prompts of HH with 64 responses each, as one request and as a request for each response."""
    found: dict[str, Any] = {}
    replies = [row.responses[0][0]["content"] for row in rows]
    fitting = [row for row in rows if 1000 < sum(len(turn["content"]) for turn in row.prompt) < 2000]
    groups = [
        {"prompt": list(row.prompt), "responses": [replies[(7 * number + k) % len(replies)][:400] for k in range(RESPONSES)]}
        for number, row in enumerate(fitting[:: max(1, len(fitting) // prompts)][:prompts])
    ]
    for name, requests, clients in (
        ("one request", groups, 1),
        ("64 requests", [{"prompt": g["prompt"], "response": reply} for g in groups for reply in g["responses"]], RESPONSES),
    ):
        before = [metric(port, f"rmtrain_tokens_{kind}_total") for kind in ("sent", "computed")]
        load = send(port, "/score", requests, clients)
        sent, computed = (
            metric(port, f"rmtrain_tokens_{kind}_total") - was for kind, was in zip(("sent", "computed"), before, strict=True)
        )
        rewards = [reward for answer in load.answers for reward in answer.get("rewards", [answer.get("reward")])]
        found[name] = {"sent": sent, "computed": computed, "seconds": load.seconds, "rewards": rewards}
    one, many = (np.array(found[name].pop("rewards")) for name in ("one request", "64 requests"))
    return {"prompts": len(groups), "max_difference": float(np.abs(one - many).max()), **found}


def signal_under_load(model: Path, requests: Sequence[Request]) -> dict[str, Any]:
    """Answers that the server counted, and that its clients got, when SIGTERM comes while 64 clients send."""
    with running("-m", "rmtrain", "serve", str(model), "--port", "0", "--json") as (process, port):
        timer = threading.Timer(2.0, process.send_signal, (signal.SIGTERM,))
        timer.start()
        load = send(port, "/score", list(islice(cycle(requests), 10**5)), 64)
        _, stderr = process.communicate(timeout=PATIENCE)
        counted = int(stderr.splitlines()[-1].rpartition(" ")[2].replace(",", ""))
        return {
            "counted": counted,
            "received": sum(answer is not None for answer in load.answers),
            "exit_code": process.returncode,
        }


def measure(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Loads by name, with the largest difference of a reward from `rmtrain score`."""
    model, rows, texts = make_model(arguments, folder)
    lines = [{"prompt": list(row.prompt), "response": row.responses[0][0]["content"]} for row in rows]
    rewards = expected_rewards(model, lines, folder)
    repeated = list(islice(cycle(lines), arguments.requests))
    expected = np.resize(rewards, arguments.requests)
    found: dict[str, Any] = {"rows": len(rows), "spread": float(rewards.std()), "loads": {}}
    found["largest"] = float(np.abs(rewards).max())

    def note(name: str, load: Load, got: Sequence[float], wanted: np.ndarray[Any, Any]) -> None:
        difference = float(np.abs(np.array(got, np.float64) - wanted[: len(got)]).max())
        figures = {"requests": len(got), "seconds": load.seconds, "per_second": load.per_second, "max_difference": difference}
        found["loads"][name] = {**figures, "p50": load.percentile(0.5), "p99": load.percentile(0.99)}

    queries: list[Request] = [{"query": [text]} for text in islice(cycle(texts), arguments.plain_requests)]

    def note_plain(name: str, port: int) -> None:
        for clients in arguments.clients:
            print(f"{name}, clients: {clients}", file=sys.stderr, flush=True)
            load = send(port, "/get_reward", queries, clients)
            note(f"{name}, {clients} clients", load, [answer["rewards"][0] for answer in load.answers], expected)

    with running("-m", "rmtrain", "serve", str(model), "--port", "0", "--json") as (_, port):
        for clients in arguments.clients:
            print(f"ours, clients: {clients}", file=sys.stderr, flush=True)
            load = send(port, "/score", repeated, clients)
            note(f"ours, {clients} clients", load, [answer["reward"] for answer in load.answers], expected)
        note_plain("ours with texts", port)
        found["responses"] = many_responses(port, rows, arguments.prompts)
    if installed("fastapi") is not None:
        with running(str(Path(__file__)), "--serve-plain", str(model)) as (_, port):
            note_plain("plain", port)
    found["signal"] = signal_under_load(model, lines)
    found["one_by_one_per_second"] = one_by_one(model, rows, arguments.plain_requests)
    return found


def one_by_one(model: Path, rows: Sequence[Comparison], count: int) -> float:
    """Rows a second that `RewardScorer` scores in this process, each by itself, with rendering and encoding."""
    scorer = RewardScorer(model)
    scorer.choose_layout([])
    start, made = now(), list(islice(cycle(rows), count))
    for row in made:
        scorer.rewards(scorer.encoder.encode_for_scoring([row])[0])
    return len(made) / (now() - start)


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--hidden", type=int, default=64, help="width of the llama, with 2 layers")
    made.add_argument("--requests", type=int, default=10_000, help="requests to our server at each number of clients")
    made.add_argument("--plain-requests", type=int, default=2000, help="requests to the plain server, and rows one by one")
    made.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="numbers of clients")
    made.add_argument("--prompts", type=int, default=20, help="prompts with 64 responses")
    made.add_argument("--serve-plain", metavar="MODEL", help="serve a model by FastAPI and transformers, and nothing else")
    arguments = made.parse_args()
    if arguments.serve_plain:
        serve_plain(arguments.serve_plain)
        return
    if arguments.quick:
        arguments.hidden, arguments.requests, arguments.plain_requests, arguments.prompts = 64, 200, 60, 2
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    loads = found["loads"]
    columns = ["load", "requests", "requests/s", "p50 ms", "p99 ms", "largest difference"]
    lines = [
        [name, load["requests"], load["per_second"], load["p50"], load["p99"], f"{load['max_difference']:.1e}"]
        for name, load in loads.items()
    ]
    title = (
        f"rewards of {found['rows']:,} conversations, standard deviation {found['spread']:.2g}, at most {found['largest']:.2g}"
    )
    show(title, columns, lines)
    responses, stopped = found["responses"], found["signal"]
    shown = [[name, responses[name]["sent"], responses[name]["computed"]] for name in ("one request", "64 requests")]
    show(
        f"{responses['prompts']} prompts of 1,000 to 2,000 characters with {RESPONSES} responses",
        ["sent as", "tokens sent", "tokens computed"],
        shown,
    )
    finish(arguments, {"machine": about, **found}, figures_of(found, arguments.clients))
    for name, load in loads.items():
        most = (TOLERANCE if name.startswith("ours") else PLAIN_TOLERANCE) * max(1.0, found["largest"])
        if not load["max_difference"] <= most:
            raise SystemExit(
                f"{name}: rewards differ by {load['max_difference']:.2g} from those of rmtrain score; at most {most:g}"
            )
    if stopped["counted"] != stopped["received"] or stopped["exit_code"] != 128 + signal.SIGTERM:
        raise SystemExit(f"a signal under load: {stopped}")


def figures_of(found: dict[str, Any], clients: Sequence[int]) -> list[dict[str, str]]:
    """Lines for docs/PERFORMANCE.md."""
    loads, lines = found["loads"], []
    for count in clients:
        ours, plain = (loads.get(f"{name}, {count} clients") for name in ("ours with texts", "plain"))
        if ours and plain:
            ratio = f"{ours['per_second'] / plain['per_second']:.2f} ×"
            lines.append(figure(f"requests/s of HH rows, {count} clients, against FastAPI around transformers", ratio, "-"))
    most = loads[f"ours, {max(clients)} clients"]["per_second"]
    lines.append(
        figure(f"requests/s, {max(clients)} clients, against one by one", f"{most / found['one_by_one_per_second']:.2f} ×", "-")
    )
    for name in ("one request", "64 requests"):
        tokens = found["responses"][name]
        lines.append(
            figure(f"tokens sent for one computed, 64 responses as {name}", f"{tokens['sent'] / tokens['computed']:.2f} ×", "-")
        )
    return lines


if __name__ == "__main__":
    main()
