"""The HTTP endpoints: what is accepted, within which limits, and how each request is answered, also the wrong ones.

Nothing of a request is logged. An answer that is not 200 has `{"error": {"code", "message"}}` with one line that says what to change.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rmtrain.data.rows.readers import MAX_LINE_BYTES
from rmtrain.errors import DataError, NumericError, TryAgain
from rmtrain.report.console import json_text
from rmtrain.serving.batcher import Batcher, Rewards
from rmtrain.serving.forms import Asked, Forms

MOST_BYTES = 16 * MAX_LINE_BYTES
"""Of the bodies of all requests that are being answered."""
GONE = 499
"""Code, in the metrics alone, of a request whose client went away."""
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)

logger = logging.getLogger("rmtrain")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server accepts at a time, and from whom.

    queue: requests that are being answered or wait.
    timeout: seconds for a request, from its first byte to its answer.
    token: secret that requests have to show; None: no one asks.
    """

    queue: int
    timeout: float
    token: str | None = None


class Refused(Exception):
    """A request that is not answered with rewards."""

    def __init__(self, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, {name.replace("_", "-"): text for name, text in headers.items()}


class Endpoints:
    """Answers requests with the rewards that a batcher computes.

    Args:
        forms: reads the requests.
        about: of the model, for `/health`.
    """

    def __init__(self, forms: Forms, batcher: Batcher, limits: ServerLimits, about: Mapping[str, Any]) -> None:
        self.forms, self.batcher, self.limits, self.about = forms, batcher, limits, about
        self.answered = 0
        self.is_stopping = False
        self._inside = self._bytes = 0
        self._seconds = 1.0
        self._encoding = ThreadPoolExecutor(1, "encoding")  # one, which keeps the order of arrival
        self._metrics = Metrics(self)

    def app(self) -> Starlette:
        """Return the application."""
        readers = {"/score": self.forms.score, "/get_reward": self.forms.get_reward, "/classify": self.forms.classify}
        routes = [Route(path, self._endpoint(path, self._scoring(reader)), methods=["POST"]) for path, reader in readers.items()]
        routes.append(Route("/health", self._health, methods=["GET"]))
        routes.append(Route("/metrics", self._endpoint("/metrics", self._show_metrics), methods=["GET"]))
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_found})

    @property
    def inside(self) -> int:
        """Requests that are being answered or wait."""
        return self._inside

    def _endpoint(self, path: str, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            start = time.monotonic()
            try:
                self._check_token(request)
                response = await answer(request)
            except Refused as refused:
                response = _error(refused)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception as error:  # a bug ends its request and nothing else; its text may be a stranger's
                logger.warning("%s: a request failed with %s; this is a bug", path, type(error).__name__)
                response = _error(Refused(500, f"unexpected {type(error).__name__}; this is a bug of rmtrain"))
            self._metrics.note(path, response.status_code, time.monotonic() - start)
            return response

        return endpoint

    def _check_token(self, request: Request) -> None:
        """Raise Refused unless the request has the token: as `Bearer`, or as the password of a URL, `http://any:TOKEN@host`."""
        if self.limits.token is None:
            return
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                value = ""
        elif kind.lower() != "bearer":
            value = ""
        if not hmac.compare_digest(value.encode(), self.limits.token.encode()):
            raise Refused(401, "the token is missing or wrong; send Authorization: Bearer TOKEN", WWW_Authenticate="Bearer")

    def _scoring(self, read: Callable[[bytes], Asked]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if self._inside >= self.limits.queue:
                raise self._busy()
            self._inside += 1
            held, start = _Held(self), time.monotonic()
            stage = Refused(408, "the body did not arrive in time; send it at once, with its Content-Length")
            try:
                async with asyncio.timeout(self.limits.timeout):
                    body = await self._body(request, held)
                    seconds = f"{self.limits.timeout:g} seconds"
                    stage = Refused(504, f"not answered within {seconds}; send less at once, or start the server with --timeout")
                    asked = await self._read(read, body)
                    response = _json(asked.answer(await self._rewards(asked, request)))
            except TimeoutError:
                raise stage from None
            finally:
                self._inside -= 1
                held.release()
            self._seconds = time.monotonic() - start
            self.answered += 1
            return response

        return answer

    def _busy(self) -> Refused:
        """Return the refusal of a request that does not fit; it may come again after as long as the last one took."""
        seconds = max(1, math.ceil(self._seconds))
        return Refused(429, f"too many requests wait; try again in {seconds} s", Retry_After=str(seconds))

    async def _body(self, request: Request, held: "_Held") -> bytes:
        """Return the body; raises Refused where it is too large, or those of all requests together are.

        The connection stays open and the rest is discarded for some seconds: most clients read the answer only when all is sent.
        """
        declared = request.headers.get("content-length", "")
        seen = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
        body = bytearray()
        if seen <= MAX_LINE_BYTES:
            async for chunk in request.stream():
                held.hold(len(chunk))
                if self._bytes > MOST_BYTES:
                    raise self._busy()
                body += chunk
                if len(body) > MAX_LINE_BYTES:
                    break
        if max(seen, len(body)) > MAX_LINE_BYTES:
            raise Refused(
                413, f"the body is too large; at most {MAX_LINE_BYTES:,} bytes are allowed: send it in several requests"
            )
        return bytes(body)

    async def _read(self, read: Callable[[bytes], Asked], body: bytes) -> Asked:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoding, read, body)
        except DataError as error:
            raise Refused(422, error.problems[0]) from None
        except TryAgain:
            raise Refused(503, "the chat template could not be applied; try again", Retry_After="1") from None

    async def _rewards(self, asked: Asked, request: Request) -> Rewards:
        """Wait for the rewards; raises ClientDisconnect where the client does not."""
        ticket = self.batcher.submit(asked.rows)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((ticket.answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not ticket.answer.done():
                raise ClientDisconnect
            return ticket.answer.result()
        except NumericError:
            raise Refused(500, "a reward is not finite; start the server with --precision float32, or check the model") from None
        except torch.OutOfMemoryError:
            raise Refused(503, "out of memory; start the server with a smaller --max-tokens, or send shorter texts") from None
        finally:
            gone.cancel()
            ticket.answer.cancel()

    async def _health(self, _: Request) -> Response:
        return _json({"status": "stopping" if self.is_stopping else "ok", **self.about}, 503 if self.is_stopping else 200)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


class _Held:
    """Bytes that a request holds in memory."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints, self.bytes = endpoints, 0

    def hold(self, count: int) -> None:
        self.bytes += count
        self.endpoints._bytes += count

    def release(self) -> None:
        self.endpoints._bytes -= self.bytes
        self.bytes = 0


class Metrics:
    """Numbers for Prometheus, in a registry of their own."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints, self.registry = endpoints, CollectorRegistry()
        labels = ("path", "code")
        self.requests = Counter("rmtrain_requests", "Requests that were answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "rmtrain_request_seconds", "Seconds to answer a request.", ("path",), buckets=BUCKETS, registry=self.registry
        )
        self.registry.register(self)

    def note(self, path: str, code: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(path, str(code)).inc()
        self.seconds.labels(path).observe(seconds)

    def collect(self) -> list[Metric]:
        """Return the numbers that are counted elsewhere; the registry calls this."""
        batcher = self.endpoints.batcher
        return [
            GaugeMetricFamily("rmtrain_requests_inside", "Requests that wait or are scored.", self.endpoints.inside),
            CounterMetricFamily("rmtrain_batches", "Batches that were scored.", batcher.batches),
            CounterMetricFamily("rmtrain_tokens_sent", "Tokens of the sequences that were scored.", batcher.sent_tokens),
            CounterMetricFamily("rmtrain_tokens_computed", "Tokens computed for them.", batcher.computed_tokens),
        ]


def _json(document: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_text(document).encode(), code, headers, media_type="application/json")


def _error(refused: Refused) -> Response:
    return _json({"error": {"code": refused.code, "message": refused.message}}, refused.code, refused.headers)


async def _disconnected(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "expected POST /score, /get_reward or /classify, or GET /health or /metrics"
    return _error(Refused(error.status_code, message, **(error.headers or {})))
