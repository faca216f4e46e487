"""A server in this process: real clients, wrong ones, and hostile ones."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rmtrain.data.rows.readers import MAX_LINE_BYTES
from rmtrain.data.text.renderer import render
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.serving import endpoints as endpoints_module
from rmtrain.serving import server as server_module
from tests.serving.running import Served, get, post, served

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
LINE = {"prompt": "What is 2 + 2?", "response": "It is 4."}


@pytest.fixture(scope="module")
def server(scorer: RewardScorer) -> Iterator[Served]:
    with served(scorer) as running:
        yield running


def test_request_alone_has_the_scorers_bits(server: Served, scorer: RewardScorer) -> None:
    answer = server.post("/score", LINE)
    assert (answer.code, answer.document) == (200, {"reward": scorer.score([CHAT])[0]})


def test_many_clients_get_their_own_rewards(server: Served, scorer: RewardScorer) -> None:
    lines = [
        {"prompt": f"question {number % 9}", "responses": [f"answer {number}", "no"][: 1 + number % 2]} for number in range(120)
    ]
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda line: server.post("/score", line), lines))
    assert {answer.code for answer in answers} == {200}
    for line, answer in zip(lines, answers, strict=True):
        replies = line["responses"]
        expected = scorer([line["prompt"]] * len(replies), replies)
        assert answer.document["rewards"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len({str(answer.document) for answer in answers}) > 60, "guard: rewards differ"


def test_openrlhf_finds_what_it_reads(server: Served, scorer: RewardScorer) -> None:
    """As in `openrlhf/utils/agent.py`, `samples_generator.py` and the older `remote_rm_utils.py`."""
    text = render(CHAT, scorer.tokenizer)
    answer = server.post("/get_reward", {"query": [text], "prompts": [text[:9]], "labels": [None]})
    assert answer.code < 400, "raise_for_status"
    info = answer.document
    assert torch.tensor([info.get("rewards")]).shape == torch.tensor([info.get("scores")]).shape == (1, 1)
    assert [torch.tensor([value]) for value in (info.get("extra_logs") or {}).values()] == []
    assert "rewards" in info
    assert torch.tensor(info.get("rewards")).tolist() == scorer.score([CHAT])


def test_slime_gets_a_number(server: Served, scorer: RewardScorer) -> None:
    """As in `slime/rollout/rm_hub`: the JSON document is the reward, unless --reward-key is set."""
    text = render(CHAT, scorer.tokenizer)
    answer = server.post("/get_reward", {"prompt": text[:20], "response": text[20:], "label": "4"})
    assert answer.code < 400
    assert torch.tensor([answer.document], dtype=torch.float).tolist() == scorer.score([CHAT])
    keyed = server.post("/score", {"prompt": CHAT[:1], "response": "It is 4.", "label": "4"}).document
    assert keyed["reward"] == answer.document


def test_verl_and_vllm_clients_find_the_reward(server: Served, scorer: RewardScorer) -> None:
    """As in verl's `reward_loop.py`, of this year and the last."""
    text = render(CHAT, scorer.tokenizer)
    for asks in ({"use_activation": False}, {"activation": False}):
        answer = server.post("/classify", {"model": "any/path", "input": text, **asks})
        assert answer.code < 400
        assert answer.headers["content-type"] == "application/json", "aiohttp's json() checks it"
        assert answer.document["data"][-1]["probs"][-1] == scorer.score([CHAT])[0]


def test_trl_reward_function_gets_floats(server: Served, scorer: RewardScorer) -> None:
    """The function of docs/serve.md, called as `GRPOTrainer._calculate_rewards` does."""

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        query = [prompt + reply for prompt, reply in zip(prompts, completions, strict=True)]
        rewards: list[float] = server.post("/get_reward", {"query": query}).document["rewards"]
        return rewards

    found = reward(prompts=[CHAT[:1]] * 3, completions=[[CHAT[1]]] * 3, completion_ids=[[1]] * 3, trainer_state=None)
    assert torch.tensor(found, dtype=torch.float32).tolist() == pytest.approx(scorer.score([CHAT]) * 3, abs=1e-6)


def test_wrong_requests_get_one_line(server: Served) -> None:
    for path, document, code in (
        ("/score", b"{oops", 422),
        ("/score", {"prompt": "a"}, 422),
        ("/score", {"prompt": "word " * 400, "response": "b"}, 422),
        ("/nothing", {}, 404),
        ("/health", {}, 405),
        ("/score", b"x" * (MAX_LINE_BYTES + 1), 413),
    ):
        answer = server.post(path, document)
        assert (answer.code, answer.document["error"]["code"]) == (code, code)
        assert answer.document["error"]["message"].count("\n") == 0
    text = http.client.HTTPConnection("127.0.0.1", server.port)
    text.request("POST", "/score", json.dumps({"\x1b]0;title\x07": 1}))
    assert b"\x1b" not in (body := text.getresponse().read())
    assert b"\\u001b" in body, "guard: the name is there, escaped"
    text.close()


def test_health_and_metrics(server: Served) -> None:
    row = {"prompt": "What is one plus one, and what is two plus two?", "responses": [f"It is {n}." for n in range(64)]}
    before = numbers(server)
    assert server.post("/score", row).code == 200
    after = numbers(server)
    assert get(server.port, "/health").document == {"status": "ok", "model": "tiny"}
    answered = 'rmtrain_requests_total{code="200",path="/score"}'
    assert after[answered] == before.get(answered, 0) + 1
    sent, computed = (after[name] - before[name] for name in ("rmtrain_tokens_sent_total", "rmtrain_tokens_computed_total"))
    assert 0 < computed < sent / 2, "64 responses share their prompt"
    assert after["rmtrain_requests_inside"] == 0


def numbers(server: Served) -> dict[str, float]:
    page = get(server.port, "/metrics").document
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_token_is_demanded_in_either_form(scorer: RewardScorer) -> None:
    token = "a secret of this test"
    with served(scorer, token=token) as running:
        basic = base64.b64encode(f"any:{token}".encode()).decode()
        for header, code in (
            (None, 401),
            ("Bearer wrong", 401),
            (f"Token {token}", 401),
            ("Basic %%%", 401),
            (f"Bearer {token}x", 401),
            ("Bearer \xff", 401),
            (f"Bearer {token}", 200),
            (f"Basic {basic}", 200),
        ):
            headers = {} if header is None else {"Authorization": header}
            assert running.post("/score", LINE, **headers).code == code, header
        assert (get(running.port, "/health").code, get(running.port, "/metrics").code) == (200, 401)


def slow(running: Served, seconds: float) -> list[int]:
    """Make the worker slow; the list gets the number of requests that are inside after each of its waits."""
    score, inside = running.worker.score, []

    def wait(rows: Any) -> Any:
        time.sleep(seconds)
        inside.append(running.endpoints.inside)
        return score(rows)

    running.worker.score = wait  # type: ignore[method-assign]
    return inside


def test_full_queue_answers_429(scorer: RewardScorer) -> None:
    with served(scorer, queue=3) as running, ThreadPoolExecutor(10) as clients:
        inside = slow(running, 0.3)
        answers = list(clients.map(lambda _: running.post("/score", LINE), range(10)))
        codes = sorted(answer.code for answer in answers)
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 3
        assert max(inside) == 3
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.code == 429)
        assert running.post("/score", LINE).code == 200, "and again when there is room"


def test_bodies_in_memory_are_bounded(scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "MOST_BYTES", 1000)
    with served(scorer) as running:
        assert running.post("/score", {"prompt": "a" * 2000, "response": "b"}).code == 429
        assert running.post("/score", LINE).code == 200


def test_deadline_answers_504(scorer: RewardScorer) -> None:
    with served(scorer, timeout=0.2) as running:
        slow(running, 0.5)
        assert running.post("/score", LINE).code == 504
        running.wait_until_idle()


def test_bug_ends_its_request_alone(scorer: RewardScorer, caplog: pytest.LogCaptureFixture) -> None:
    with served(scorer) as running:
        score = running.worker.score

        def fail(rows: Any) -> Any:
            raise ValueError("text of a stranger")

        running.worker.score = fail  # type: ignore[method-assign]
        answer = running.post("/score", LINE)
        assert answer.code == 500
        running.worker.score = score  # type: ignore[method-assign]
        assert running.post("/score", LINE).code == 200
    logged = [record.getMessage() for record in caplog.records if record.name == "rmtrain"]
    assert len(logged) == 1
    assert "ValueError" in logged[0]
    assert "stranger" not in logged[0] + str(answer.document)


@pytest.fixture
def impatient(scorer: RewardScorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that waits half a second for the head of a request, and for its body."""
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.5)
    with served(scorer, timeout=0.5) as running:
        yield running
        running.wait_until_idle()
        assert running.endpoints._bytes == 0
        assert running.post("/score", LINE).code == 200, "the server still answers"


def connection(running: Served, *sent: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", running.port), timeout=8)
    for data in sent:
        made.sendall(data)
    return made


def everything(made: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    try:
        while data := made.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    made.close()
    return received


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BODY = json.dumps(LINE).encode()


def test_clients_that_hang_are_left(impatient: Served) -> None:
    """With nothing, with half a head, with half a head after an answer, and with half a body."""
    silent, half = connection(impatient), connection(impatient, b"POST /score HT")
    again = connection(impatient, HEAD % len(BODY) + BODY)
    answer = b""
    while not answer.endswith(b"}"):
        answer += again.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    again.sendall(b"POST /sco")
    body = connection(impatient, HEAD % len(BODY) + BODY[:5])
    assert [everything(made) for made in (silent, half, again)] == [b""] * 3
    assert body.recv(65536).startswith(b"HTTP/1.1 408")
    body.close()


def test_lies_about_length_are_found(impatient: Served) -> None:
    longer = connection(impatient, HEAD % (len(BODY) + 9) + BODY)
    assert longer.recv(65536).startswith(b"HTTP/1.1 408")
    longer.close()
    shorter = connection(impatient, HEAD % 5 + BODY)
    answers = everything(shorter)
    assert answers.startswith(b"HTTP/1.1 422"), "and what is left is not a request"
    for value in (b"x", b"-1", b"5\r\nContent-Length: 6", b"99999999999999999999999"):
        wrong = connection(impatient, HEAD.replace(b"%d", value))
        assert wrong.recv(65536).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")), value
        wrong.close()


def test_large_bodies_are_refused(impatient: Served) -> None:
    """50 MB with their length, and an endless body without one."""
    assert post(impatient.port, "/score", b"x" * (50 * 2**20)).code == 413
    endless = connection(impatient, b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    endless.settimeout(0.01)
    chunk, received, sent = b"%x\r\n" % 2**20 + b"x" * 2**20 + b"\r\n", b"", 0
    while not received and sent < 100 * 2**20:
        try:
            endless.sendall(chunk)
            sent += 2**20
            received = endless.recv(65536)
        except TimeoutError:
            continue
    assert received.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    endless.close()


def test_cut_connections_leave_nothing(impatient: Served) -> None:
    """Before the body ends, and before the answer, which is then not computed."""
    slow(impatient, 0.2)
    connection(impatient, HEAD % len(BODY) + BODY[:5]).close()
    for _ in range(20):
        connection(impatient, HEAD % len(BODY) + BODY).close()
    end = time.monotonic() + 20
    while 'code="499"' not in get(impatient.port, "/metrics").document and time.monotonic() < end:
        time.sleep(0.02)
    impatient.wait_until_idle()
    assert impatient.endpoints.batcher.batches < 10, "most were not computed"


def test_stop_answers_what_was_accepted(scorer: RewardScorer) -> None:
    with served(scorer) as running:
        slow(running, 0.2)
        clients = ThreadPoolExecutor(20)
        answers = [clients.submit(running.post, "/score", {**LINE, "id": number}) for number in range(20)]
        end = time.monotonic() + 20
        while running.endpoints.inside < 20 and time.monotonic() < end:
            time.sleep(0.01)
        late = connection(running, HEAD % len(BODY) + BODY[:-1])
        threading.Timer(0.1, late.sendall, (BODY[-1:],)).start()
    assert [answer.result().code for answer in answers] == [200] * 20
    assert everything(late).startswith(b"HTTP/1.1 200"), "a request whose body was on its way"
    clients.shutdown()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.port), timeout=5)
