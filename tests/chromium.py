"""A headless Chromium for tests, controlled through a pipe: the messages of a page, its requests and a screenshot.

with chromium(tmp_path) as browser:
    seen = browser.visit(page, width=390, scheme="dark")
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 30.0


@dataclass
class Visit:
    """Events while a page was open."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    screenshot: bytes = b""
    values: dict[str, Any] = field(default_factory=dict)


class Browser:
    """One page of a running Chromium."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self.commands, self.answers, self.number, self.session = commands, answers, 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a method of the devtools protocol; events that arrive meanwhile are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message

    def visit(self, page: Path, width: int, scheme: str, *, measure: Mapping[str, str] | None = None, most: int = 16000) -> Visit:
        """Open a file at a width in CSS pixels, in the light or dark scheme; the screenshot has the first `most` pixels of its height.

        Args:
            measure: JavaScript expressions to evaluate, by name.
        """
        self.events.clear()
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._size(width, 900)
        answer = self.call("Page.navigate", url=page.resolve().as_uri())
        assert "errorText" not in answer, f"{page}: {answer}"
        until = time.monotonic() + SECONDS
        while self.value("document.readyState") != "complete" and time.monotonic() < until:
            time.sleep(0.05)
        self._size(width, min(most, int(self.value("document.documentElement.scrollHeight"))))
        values = {name: self.value(expression) for name, expression in (measure or {}).items()}
        picture = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return Visit(self._complaints(), self._requests(), picture, values)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def _complaints(self) -> list[str]:
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def _requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]


@contextmanager
def chromium(home: Path) -> Iterator[Browser]:
    """Start a browser with its profile under `home`."""
    assert PROGRAM is not None
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-dev-shm-usage",
    )
    # the browser reads the protocol from file descriptor 3 and writes it to 4
    script = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    command = ["bash", "-c", script, "bash", PROGRAM, *options, f"--user-data-dir={home / 'profile'}", "--remote-debugging-pipe"]
    process = subprocess.Popen(command, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(from_us)
    os.close(to_us)
    with open(to_browser, "wb") as commands, open(from_browser, "rb") as answers:
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait()
