"""An end to the waiting for the Hub: its client repeats failed requests and resumes downloads, but waits as long as a server likes.

Importing this module bounds every request that `huggingface_hub`, `datasets` and `transformers` make in this process. All bounds follow
from the seconds of HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT, 10 unless set.
"""

import threading
import time
from collections.abc import Iterator
from http.client import responses
from typing import cast

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]  # httpx or httpx2, by version
from huggingface_hub.utils._http import default_client_factory

from rmtrain.errors import TryAgain

TIMEOUT = float(max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT))
"""Seconds until the next bytes of an answer."""
PATIENCE = 2 * TIMEOUT
"""Seconds in which a request, repeated or not, must be answered."""
LONGEST = 6 * TIMEOUT
"""Seconds of a wait that the Hub may ask for, and until the answer to an upload."""
AGES = 10**9
"""Seconds of any longer wait."""
SLOWEST = 1024
"""Bytes a second of a download: less than these for `PATIENCE` is as good as nothing."""
REMEDY = "repeat the command later: files that are downloaded whole are kept"
HUB_ERRORS = (httpx.HTTPError, HFValidationError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""Errors of the Hub's client: network, refusal, an interrupted upload, which it wraps in a RuntimeError, or an answer of another shape."""
CHAIN = 30
"""Errors behind an error that are looked at: a chain may be a circle."""
READING = ("GET", "HEAD")
PASSING = (408, 425, 429)
"""Statuses, besides those from 500, that may pass by themselves."""


class HubGivenUp(OfflineModeIsEnabled):
    """The Hub has failed for too long. As an error of being offline it is not repeated, and what is in the cache is used instead."""


class _Trouble(threading.local):
    """The requests of a thread since the last one that was answered."""

    since: float = 0.0
    """When the first of them began; 0: the last one was answered."""
    began: float = 0.0
    """When the last of them began."""
    until: float = 0.0
    """When they are history, because another request would have followed by now."""
    patience: float = PATIENCE
    received: int = 0
    reason: str = ""
    refused: str = ""
    """Status of the last answer, if it refused the user."""
    is_over: bool = False
    """Whether HubGivenUp was raised: `datasets` replaces it by an error that does not name it."""

    def begin(self, request: httpx.Request) -> None:
        """Bound a request that is about to be sent; raises HubGivenUp if those before it have failed for too long."""
        longest = TIMEOUT if request.method in READING else LONGEST
        timeouts = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions["timeout"] = {name: min(value or longest, longest) for name, value in timeouts.items()}
        now = time.monotonic()
        if not self.since or now > self.until:
            self.since, self.patience, self.received, self.reason, self.is_over = now, PATIENCE, 0, "it does not answer", False
        elif now - self.since > self.patience:
            raise self.given_up(self.reason)
        self.began, self.until = now, now + 2 * longest + PATIENCE

    def end(self, response: httpx.Response) -> None:
        """Note the status of an answer; raises HubGivenUp if the Hub asks to wait for too long."""
        now = time.monotonic()
        self.refused = _status(response) if response.status_code in (401, 403) else ""
        if response.request.method not in READING:
            self.since += now - self.began  # an upload may take its time
        if _may_pass(response.status_code):
            self.reason = f"it answers {_status(response)}"
            wished = _wished(response)
            waited = now + wished - self.since
            if waited > LONGEST:
                raise self.given_up(self.reason + (f", and asks to wait {wished:,} seconds" if wished else ""))
            if waited > self.patience:
                self.patience, self.until = waited + TIMEOUT, now + waited + PATIENCE
        else:
            response.stream = _Watched(cast(httpx.SyncByteStream, response.stream), self, now - self.since)
            self.since, self.is_over = 0.0, False

    def given_up(self, reason: str) -> HubGivenUp:
        """Return the error to raise, and remember it."""
        self.reason, self.is_over = reason, True
        return HubGivenUp(reason)


class _Watched(httpx.SyncByteStream):
    """The content of an answer; raises HubGivenUp while it is read if it comes too slowly."""

    def __init__(self, stream: httpx.SyncByteStream, trouble: _Trouble, waited: float) -> None:
        self.stream, self.trouble, self.waited = stream, trouble, waited

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self.stream)
        while True:
            begin = time.monotonic()
            try:
                chunk = next(chunks, None)
            except httpx.TransportError:
                self.waited += time.monotonic() - begin
                self.trouble.since = time.monotonic() - self.waited
                self.trouble.reason = "the connection breaks during a download"
                raise
            if chunk is None:
                self.trouble.received = 0
                return
            self.waited += time.monotonic() - begin
            self.trouble.received += len(chunk)
            if self.trouble.received > PATIENCE * SLOWEST:
                self.waited, self.trouble.received = 0.0, 0
            elif self.waited > PATIENCE:
                raise self.trouble.given_up(f"it sends less than {SLOWEST:,} bytes a second")
            yield chunk

    def close(self) -> None:
        self.stream.close()


def _may_pass(status: int) -> bool:
    return status in PASSING or status >= 500


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {responses.get(response.status_code, '')}".strip()


def _wished(response: httpx.Response) -> int:
    """Return the seconds that an answer asks to wait, as the client understands it; 0 for a date, which it ignores."""
    try:
        limit, after = parse_ratelimit_headers(response.headers), response.headers.get("Retry-After", "").strip()
        if response.status_code == 429 and limit is not None and limit.remaining == 0:
            return min(limit.reset_in_seconds, AGES)
        return min(int(after), AGES) if after.isdigit() else 0
    except ValueError:  # digits that are no number, or too many of them: the client would fail as well
        return AGES


def passing_problem(error: BaseException | None) -> str | None:
    """Return, in one line with a remedy, the problem with the Hub behind an error if it may pass by itself; None: it will not."""
    for _ in range(CHAIN):
        reason = _trouble.reason if _trouble.is_over and isinstance(error, ConnectionError) else None
        if isinstance(error, HubGivenUp):
            reason = str(error)
        elif isinstance(error, HfHubHTTPError) and error.response is not None and _may_pass(error.response.status_code):
            reason = f"it answers {_status(error.response)}"
        elif isinstance(error, httpx.TimeoutException):
            reason = "it does not answer"
        elif isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not isinstance(error, httpx.ConnectError):
            reason = "the connection breaks during a download"
        elif isinstance(error, OSError) and "Consistency check failed" in str(error):
            reason = "a download has another size than announced"
        if reason is not None:
            return f"the Hub at {constants.ENDPOINT} fails: {reason}; {REMEDY}"
        error = None if error is None else error.__cause__ or error.__context__
    return None


def refusal() -> str:
    """Return that the last answer refused this thread, with a remedy; empty: it did not. `datasets` and `transformers` hide it."""
    remedy = "check the name; if it is private or gated, run `hf auth login` or set HF_TOKEN"
    return f"the Hub answers {_trouble.refused}; {remedy}" if _trouble.refused else ""


def raise_if_passing(place: str, error: BaseException) -> None:
    """Raise TryAgain for an error at a place, such as a source or a model, if it may pass by itself; see `passing_problem`."""
    if (problem := passing_problem(error)) is not None:
        raise TryAgain(f"{place}: {problem}") from error


def _bounded_client() -> httpx.Client:
    client = default_client_factory()
    client.event_hooks = {"request": [*client.event_hooks["request"], _trouble.begin], "response": [_trouble.end]}
    return client


_trouble = _Trouble()
set_client_factory(_bounded_client)
