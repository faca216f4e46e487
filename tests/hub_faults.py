"""Ways in which a Hub misbehaves, for `HubServer.misbehave`: each answers one request, given what would be right."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tests.hub_server import Answers

Fault = Callable[[Answers, int, bytes, Mapping[str, str]], bool]
HANG = 30.0
"""Seconds until a hanging answer ends: longer than any client of a test waits."""


def status(code: int, times: int = 10**6, only: str = "", **headers: str) -> Fault:
    """Refuse this number of requests, then answer; only those whose path contains `only`."""
    left = Counter(times=times)

    def fault(answers: Answers, *_: Any) -> bool:
        if only not in answers.path or not left["times"]:
            return False
        left["times"] -= 1
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        send(answers, code, b"<html>no</html>", {"Content-Type": "text/html", **more})
        return True

    return fault


def send(answers: Answers, code: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
    """Send an answer whose Content-Length may lie, and close the connection."""
    answers.send_response(code)
    for name, value in (
        {"Content-Length": str(len(body) if length is None else length), "Connection": "close"} | {**headers}
    ).items():
        answers.send_header(name, value)
    answers.end_headers()
    if answers.command != "HEAD":
        answers.wfile.write(body)
    answers.close_connection = True


def circle(code: int, only: str = "") -> Fault:
    """Redirect each request to itself, or to a sibling and back."""

    def fault(answers: Answers, *_: Any) -> bool:
        if only not in answers.path:
            return False
        path = answers.path.removesuffix("?again") if answers.path.endswith("?again") else f"{answers.path}?again"
        send(answers, code, b"", {"Location": path})
        return True

    return fault


def hang(only: str = "", is_after_headers: bool = False) -> Fault:
    """Accept and never answer, or answer without content."""

    def fault(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
        if only not in answers.path or (is_after_headers and answers.command == "HEAD"):
            return False
        if is_after_headers:
            answers.send_response(code)
            answers.send_header("Content-Length", "1000")
            answers.end_headers()
        time.sleep(HANG)
        answers.close_connection = True
        return True

    return fault


def drop(answers: Answers, *_: Any) -> bool:
    """Close the connection without an answer."""
    answers.close_connection = True
    return True


def drip(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
    """Send the files a byte at a time."""
    if answers.command == "HEAD" or "/resolve/" not in answers.path:
        return False
    answers.send_response(code)
    for name, value in headers.items():
        answers.send_header(name, value)
    answers.send_header("Content-Length", str(len(body)))
    answers.end_headers()
    try:
        for number in range(min(len(body), int(HANG / 0.3))):
            answers.wfile.write(body[number : number + 1])
            time.sleep(0.3)
    except OSError:
        pass  # the client has gone
    answers.close_connection = True
    return True


def cut(times: int, share: float = 0.5) -> Fault:
    """Close the connection in the middle of a file, this number of times."""
    left = Counter(times=times)

    def fault(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
        if answers.command == "HEAD" or "/resolve/" not in answers.path or code >= 300 or not left["times"]:
            return False
        left["times"] -= 1
        send(answers, code, body[: int(len(body) * share)], headers, len(body))
        return True

    return fault


def lie(size: int) -> Fault:
    """Announce files by this much longer than they are."""

    def fault(answers: Answers, code: int, body: bytes, headers: Mapping[str, str]) -> bool:
        if answers.command != "HEAD" or "/resolve/" not in answers.path or code >= 300:
            return False
        send(answers, code, body, headers, len(body) + size)
        return True

    return fault


def other(body: bytes, only: str = "/api/", kind: str = "text/html") -> Fault:
    """Answer with other content, such as the page of a proxy, and status 200."""

    def fault(answers: Answers, code: int, right: bytes, headers: Mapping[str, str]) -> bool:
        if only not in answers.path:
            return False
        send(answers, 200, body, {**headers, "Content-Type": kind})
        return True

    return fault
