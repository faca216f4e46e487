"""The server around the endpoints: its socket, patience with slow clients, and an end that answers what was accepted."""

import asyncio
import errno
import ipaddress
import logging
import resource
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from rmtrain.engine.rank import GracefulShutdown
from rmtrain.errors import RecipeError
from rmtrain.serving.batcher import Worker
from rmtrain.serving.endpoints import Endpoints

TOKEN = "RMTRAIN_SERVE_TOKEN"
"""Environment variable: secret that requests have to show."""
SHORTEST_TOKEN = 16
BACKLOG = 2048
MOST_FILES = 2**16
"""Connections that are open at once, as files; fewer where the system allows fewer."""
IDLE_SECONDS = 75
"""Time after an answer until a connection without another request is closed."""
HEAD_SECONDS = 10.0
"""Time that a client has for the head of a request, once it has connected or sent the first byte of it."""
ON_THE_WAY_SECONDS = 0.3
"""Time, after a signal, in which requests are read that clients had sent before they could know."""


def checked_token(host: str, value: str | None) -> str | None:
    """Return the token that requests have to show, from the environment; None: no token.

    Raises RecipeError where other machines can reach `host` and no token is set, or where the token is too short.
    """
    if value is not None and len(value) < SHORTEST_TOKEN:
        raise RecipeError(f"{TOKEN}: expected at least {SHORTEST_TOKEN} characters; set a longer one")
    if value is None and not is_loopback(host):
        raise RecipeError(f"--host {host}: other machines can reach it; set {TOKEN} to a secret, or leave out --host")
    return value


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with the address, which does not listen yet; raises RecipeError where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        remedy = "set another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "set another --host"
        raise RecipeError(f"--host {host} --port {port}: {error.strerror}; {remedy}") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class RewardServer(Server):
    """Serves the endpoints until a signal comes; then nothing new is accepted, and what was accepted is answered.

    Args:
        ready: called once, when the server listens.
    """

    def __init__(
        self, endpoints: Endpoints, workers: Sequence[Worker], stop: GracefulShutdown, ready: Callable[[], None]
    ) -> None:
        patience = endpoints.limits.timeout + HEAD_SECONDS
        super().__init__(
            Config(
                endpoints.app(),
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_SECONDS,
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=round(patience),
            )
        )
        self.endpoints, self.workers, self.stop, self.ready = endpoints, workers, stop, ready
        self._running: list[asyncio.Task[None]] = []

    def serve_on(self, bound: socket.socket) -> None:
        """Serve until a signal comes and everything is answered."""
        for name in ("uvicorn", "uvicorn.error", "asyncio"):  # what they log can have the text of a request
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):
            most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        self.run([bound])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the workers, and listen."""
        self._running = [asyncio.create_task(self.endpoints.batcher.run(worker)) for worker in self.workers]
        await super().startup(sockets)
        self.ready()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to `stop`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; called ten times a second."""
        return await super().on_tick(counter) or self.stop.received is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, answer the rest, and end the workers."""
        self.endpoints.is_stopping = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(ON_THE_WAY_SECONDS)
        await super().shutdown(sockets)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class PatientProtocol(H11Protocol):
    """A connection that is closed where the head of a request takes too long; uvicorn alone would wait for ever."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read data; where they do not complete a head, wait for the rest of it."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        """Wait for the next request, a part of which may have arrived."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
