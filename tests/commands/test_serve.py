"""`rmtrain serve` as a process: its address, its end under load, several processes, and what it refuses."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rmtrain.command_line import model_options
from rmtrain.command_line.model_options import ScoreOptions, ServeOptions
from rmtrain.commands.score import score
from rmtrain.errors import RecipeError
from rmtrain.report.terminal import TerminalConsole
from rmtrain.serving.server import TOKEN, checked_token, is_loopback
from tests.exports import tiny_export
from tests.forks import ON_CPU, Ended, fork_server, rmtrain
from tests.helpers import write_jsonl
from tests.serving.running import get, post

PATIENCE = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_export(tmp_path_factory.mktemp("serve") / "model"))


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {number % 7}?", "response": f"answer {number} " * (1 + number % 5)} for number in range(count)]


class Server:
    """A server as a process, and what it announced."""

    def __init__(self, model: str, *words: str, **how: Any) -> None:
        self.child = fork_server().start("serve", model, "--port", "0", "--json", *words, **how)
        self.ended: Ended | None = None
        output, end = self.child.output.with_suffix(".out"), time.monotonic() + PATIENCE
        printed = ""
        while not printed.endswith("\n") and time.monotonic() < end:
            time.sleep(0.05)
            printed = output.read_text() if output.exists() else ""
        if not printed:
            raise AssertionError(self.stop().stderr)
        self.about = json.loads(printed)
        self.port = int(self.about["url"].rpartition(":")[2])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal, once, and wait for the end."""
        if self.ended is None:
            self.child.signal(number)
            self.ended = self.child.wait()
        return self.ended


@contextmanager
def running(model: str, *words: str, **how: Any) -> Iterator[Server]:
    """A server, which is stopped at the end."""
    server = Server(model, *words, **how)
    try:
        yield server
    finally:
        server.stop()


def test_rewards_equal_score_to_the_bit(model: str, tmp_path: Path) -> None:
    """A request alone has the bytes that `rmtrain score` writes for a file with that line."""
    with running(model) as server:
        for number, row in enumerate([*rows(3), {"prompt": "a", "responses": ["b", "c", "d"]}]):
            source, target = write_jsonl(tmp_path / f"{number}.jsonl", [row]), tmp_path / f"{number}.out.jsonl"
            score(ScoreOptions(model, str(source), str(target)), TerminalConsole(quiet=True))
            written = json.loads(target.read_text())
            answer = post(server.port, "/score", row).document
            assert answer == {key: written[key] for key in answer}
        ended = server.stop()
    assert (ended.code, server.about["layout"], server.about["max_length"]) == (143, "shared_prefix", 256)
    assert "4" in ended.stderr.splitlines()[-1], "requests answered"


class Load:
    """Clients that send requests one after the other until the server is gone; with their answers."""

    def __init__(self, port: int, clients: int) -> None:
        self.port, self.answers, self.codes = port, 0, set[int]()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        row = rows(number + 1)[-1]
        while True:
            try:
                answer = post(self.port, "/score", row)
            except OSError:
                return
            self.answers += 1
            self.codes.add(answer.code)

    def wait(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_signal_under_load_answers_everything(model: str, processes: int, number: signal.Signals) -> None:
    """The server counts as many answers as the clients got; with two processes, both score."""
    with running(model, "--max-tokens", "256", processes=processes, **ON_CPU) as server:
        load = Load(server.port, 8)
        time.sleep(1.0)
        ended = server.stop(number)
        load.wait()
    assert load.codes == {200}
    assert load.answers > 20, "guard: there was load"
    assert ended.code == 128 + number
    last = next(line for line in ended.stderr.splitlines() if f"stopped by {number.name}; requests answered" in line)
    assert last.endswith(f": {load.answers:,}")
    assert server.about["processes"] == processes


def test_strangers_text_stays_off_the_terminal(model: str) -> None:
    evil = "\x1b]0;title\x07stranger"
    with running(model) as server:
        port = server.port
        for path in ("/score", "/get_reward", "/classify", "/stranger"):
            for document in ({evil: evil}, {"prompt": evil, "response": 3}, {"query": [evil, 1]}, evil.encode()):
                assert post(port, path, document).code in (404, 422)
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(evil.encode() + b"\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
        assert get(port, "/health").document["status"] == "ok"
        ended = server.stop()
    assert "stranger" not in ended.stdout + ended.stderr
    assert len(ended.stderr.splitlines()) <= 6, "guard: the announcement and the end, no line for a request"


def test_taken_port_and_open_host_are_refused(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = rmtrain("serve", model, "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 2
    assert "--port" in ended.stderr.splitlines()[-1]
    refused = rmtrain("serve", model, "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert TOKEN in refused.stderr.splitlines()[-1]
    absent = rmtrain("serve", f"{model}-absent", "--port", "0")
    assert absent.returncode == 4


def test_token_is_needed_beyond_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
    assert checked_token("127.0.0.1", None) is None
    assert checked_token("0.0.0.0", "x" * 16) == "x" * 16
    for host, token in (("0.0.0.0", None), ("127.0.0.1", ""), ("0.0.0.0", "short")):
        with pytest.raises(RecipeError, match=TOKEN):
            checked_token(host, token)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_options, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(RecipeError, match=r"uvicorn.*rmtrain\[serve\]"):
        ServeOptions("model").check()


@pytest.mark.long
def test_launched_processes_share_the_work(model: str) -> None:
    """`--processes 2` through the launcher: the same rewards, and the exit code of the signal."""
    with running(model, "--processes", "2") as server:
        answers = [post(server.port, "/score", row).document["reward"] for row in rows(6)]
        ended = server.stop()
    assert server.about["processes"] == 2
    assert len(set(answers)) == 6
    assert ended.code == 143
