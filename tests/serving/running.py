"""Servers in a thread of the test process, and a plain client."""

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rmtrain.engine.rank import GracefulShutdown
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.serving.batcher import Batcher, LocalWorker
from rmtrain.serving.endpoints import Endpoints, ServerLimits
from rmtrain.serving.forms import Forms
from rmtrain.serving.server import RewardServer, bind

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: its code, its JSON document, and its headers."""

    code: int
    document: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: its port, and the parts that tests look into."""

    port: int
    endpoints: Endpoints
    worker: LocalWorker

    def post(self, path: str, document: Any, **headers: str) -> Answer:
        """Send JSON, or bytes as they are."""
        return post(self.port, path, document, **headers)

    def wait_until_idle(self) -> None:
        """Wait until no request is being answered."""
        end = time.monotonic() + PATIENCE
        while self.endpoints.inside and time.monotonic() < end:
            time.sleep(0.01)
        assert self.endpoints.inside == 0


def post(port: int, path: str, document: Any, **headers: str) -> Answer:
    """Send JSON, or bytes as they are, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        return read(connection.getresponse())
    finally:
        connection.close()


def get(port: int, path: str, **headers: str) -> Answer:
    """Ask for a page; a text is its document where it is not JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        return read(connection.getresponse())
    finally:
        connection.close()


def read(response: http.client.HTTPResponse) -> Answer:
    """Read an answer."""
    text = response.read().decode()
    is_json = response.headers.get("content-type") == "application/json"
    return Answer(response.status, json.loads(text) if is_json else text, dict(response.headers))


@contextmanager
def served(scorer: RewardScorer, queue: int = 100, timeout: float = PATIENCE, token: str | None = None) -> Iterator[Served]:
    """Serve a model; at the end, the server stops as after a signal."""
    layout = scorer.choose_layout([])
    endpoints = Endpoints(
        Forms(scorer, "tiny"), Batcher(layout, scorer.max_tokens), ServerLimits(queue, timeout, token), {"model": "tiny"}
    )
    worker, stop, bound = LocalWorker(scorer), GracefulShutdown(), bind("127.0.0.1", 0)
    listens = threading.Event()
    server = RewardServer(endpoints, [worker], stop, listens.set)
    port = bound.getsockname()[1]
    thread = threading.Thread(target=server.serve_on, args=(bound,))
    thread.start()
    try:
        assert listens.wait(PATIENCE)
        yield Served(port, endpoints, worker)
    finally:
        stop.received = signal.SIGTERM
        thread.join(PATIENCE)
    assert not thread.is_alive(), "the server ends"
