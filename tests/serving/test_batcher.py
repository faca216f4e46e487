"""The queue: rewards of requests that share batches, in order, whatever one of them does."""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from rmtrain.data.comparison import Comparison, TokenizedComparison
from rmtrain.errors import NumericError
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.serving.batcher import Batcher, LocalWorker, RemoteWorker, Rewards, Ticket, Worker, WorkerLost, answer_batches

WORDS = ["bright", "dull", "é", "barn", "mill", "harbour"]


def words(generator: random.Random, most: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, most)))


def requests(scorer: RewardScorer, counts: Sequence[int], seed: int = 0) -> list[Sequence[TokenizedComparison]]:
    """Requests with one prompt, and as many responses as `counts` says."""
    generator = random.Random(seed)
    rows = []
    for number, count in enumerate(counts):
        prompt = ({"role": "user", "content": f"{number}: {words(generator, 9)}"},)
        replies = tuple(({"role": "assistant", "content": words(generator, 9)},) for _ in range(count))
        rows.append(Comparison(f"row {number}", "", prompt, replies, ()))
    encoded, _ = scorer.encoder.encode_for_scoring(rows)
    return [[row] for row in encoded]


class Recorder:
    """A worker that scores with a model and notes the rows of each batch; `fails` raises for some of them."""

    def __init__(self, scorer: RewardScorer | None, fails: Any = None) -> None:
        self.scorer, self.fails, self.thread = scorer, fails, ThreadPoolExecutor(1)
        self.batches: list[Sequence[TokenizedComparison]] = []

    def score(self, rows: Sequence[TokenizedComparison]) -> Rewards:
        self.batches.append(rows)
        if self.fails is not None:
            self.fails(rows)
        if self.scorer is None:
            return [tuple(float(sequence[0]) for sequence in row.sequences) for row in rows]
        return self.scorer.rewards(rows)


def together(batcher: Batcher, workers: Sequence[Worker], asked: Sequence[Sequence[TokenizedComparison]]) -> list[Any]:
    """Submit requests at once, before a worker is free, and return their rewards, or exceptions."""

    async def run() -> list[Any]:
        tickets = [batcher.submit(rows) for rows in asked]
        running = [asyncio.create_task(batcher.run(worker)) for worker in workers]
        answers = await asyncio.gather(*(ticket.answer for ticket in tickets), return_exceptions=True)
        for task in running:
            task.cancel()
        return answers

    return run_soon(run())


def run_soon(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_request_alone_is_exact(scorer: RewardScorer) -> None:
    for asked in requests(scorer, [1, 2, 9]):
        worker = LocalWorker(scorer)
        (answer,) = together(Batcher("shared_prefix", scorer.max_tokens), [worker], [asked])
        assert answer == scorer.rewards(asked), "to the bit"
        worker.thread.shutdown()


def test_batched_requests_differ_by_rounding(scorer: RewardScorer) -> None:
    asked = requests(scorer, [1, 2, 5, 1, 1, 3] * 10)
    worker = Recorder(scorer)
    answers = together(Batcher("shared_prefix", 512), [worker], asked)
    expected = [scorer.rewards(rows) for rows in asked]
    found, alone = (np.array([reward for rows in each for row in rows for reward in row]) for each in (answers, expected))
    assert np.abs(found - alone).max() <= 1e-6 * max(1.0, np.abs(alone).max())
    assert np.ptp(found) > 0.5, "guard: rewards differ"
    assert 1 < len(worker.batches) < 60, "guard: requests were batched"
    worker.thread.shutdown()


def test_batches_keep_order_and_budget() -> None:
    """Each batch has the next sequences that fit, also where one request is spread over several batches."""
    rows = [
        [TokenizedComparison("r", "", tuple([number * 10 + k] * 20 for k in range(count)), 0, 0, ())]
        for number, count in enumerate([1, 2, 9, 1, 3])
    ]
    worker, batcher = Recorder(None), Batcher("packed", 100)
    answers = together(batcher, [worker], rows)
    assert answers == [[tuple(float(sequence[0]) for sequence in row.sequences) for row in each] for each in rows]
    begun = [int(sequence[0]) for batch in worker.batches for row in batch for sequence in row.sequences]
    assert begun == sorted(begun)
    assert [sum(len(row.sequences) for row in batch) for batch in worker.batches] == [5, 5, 5, 1]
    assert (batcher.sent_tokens, batcher.computed_tokens, batcher.batches) == (320, 320, 4)
    worker.thread.shutdown()


def test_requests_of_one_prompt_share_it(scorer: RewardScorer) -> None:
    """64 requests with one response each compute the prompt once, as one request with 64 responses does."""
    ((row,),) = requests(scorer, [64])
    single = [[TokenizedComparison("r", "", (sequence,), 0, 0, ())] for sequence in row.sequences]
    batcher, worker = Batcher("shared_prefix", 16384), Recorder(scorer)
    answers = together(batcher, [worker], single)
    (whole,) = scorer.rewards([row])
    assert [answer[0][0] for answer in answers] == pytest.approx(whole, abs=1e-5)
    assert batcher.sent_tokens == sum(map(len, row.sequences))
    assert batcher.computed_tokens <= batcher.sent_tokens - 63 * row.prefix_length, "or fewer: some replies begin alike"
    assert row.prefix_length > 16, "guard: there is something to share"
    worker.thread.shutdown()


@pytest.mark.parametrize("error", [NumericError("not finite"), torch.OutOfMemoryError("full"), ValueError("\x1b]0;text")])
def test_failing_request_fails_alone(error: Exception) -> None:
    def fails(rows: Sequence[TokenizedComparison]) -> None:
        if any(sequence[0] == 3 for row in rows for sequence in row.sequences):
            raise error

    rows = [[TokenizedComparison("r", "", ([number] * 5,), 0, 0, ())] for number in range(6)]
    worker = Recorder(None, fails)
    answers = together(Batcher("packed", 1000), [worker], rows)
    assert answers[3] is error
    assert [answer[0][0] for number, answer in enumerate(answers) if number != 3] == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert len(worker.batches) == 7, "guard: all together, then each alone"
    worker.thread.shutdown()


def test_abandoned_requests_are_not_scored() -> None:
    rows = [[TokenizedComparison("r", "", ([number] * 5,), 0, 0, ())] for number in range(6)]
    worker, batcher = Recorder(None), Batcher("packed", 1000)

    async def run() -> list[Any]:
        tickets: list[Ticket] = [batcher.submit(each) for each in rows]
        for ticket in tickets[::2]:
            ticket.answer.cancel()
        task = asyncio.create_task(batcher.run(worker))
        answers = [await ticket.answer for ticket in tickets[1::2]]
        task.cancel()
        return answers

    assert [answer[0][0] for answer in run_soon(run())] == [1.0, 3.0, 5.0]
    assert [row.sequences[0][0] for row in worker.batches[0]] == [1, 3, 5]
    worker.thread.shutdown()


def test_other_processes_score_as_this_one(scorer: RewardScorer) -> None:
    """Three workers, one of which is lost on the way, answer everything, and errors cross the connection."""
    ours, theirs = Pipe()
    ended: list[int | None] = []
    thread = Thread(target=lambda: ended.append(answer_batches(scorer, theirs)))
    thread.start()

    def lost(_: Sequence[TokenizedComparison]) -> None:
        raise WorkerLost

    asked = requests(scorer, [1, 2, 3] * 8)
    remote, local, dying = RemoteWorker(ours), Recorder(scorer), Recorder(None, lost)
    answers = together(Batcher("shared_prefix", 128), [dying, remote, local], asked)
    for answer, rows in zip(answers, asked, strict=True):
        assert answer[0] == pytest.approx(scorer.rewards(rows)[0], abs=1e-5)
    assert len(local.batches) > 0, "guard"
    assert len(dying.batches) == 1

    vocabulary = len(scorer.tokenizer)
    bad = [[TokenizedComparison("r", "", ([vocabulary + 10**6],), 0, 0, ())]]
    (error,) = together(Batcher("shared_prefix", 128), [remote], bad)
    assert isinstance(error, RuntimeError)
    assert str(error) == "IndexError"
    remote.end(15)
    thread.join(60)
    assert ended == [15]
    for worker in (remote, local, dying):
        worker.thread.shutdown()


def test_empty_request_is_answered_at_once() -> None:
    assert together(Batcher("packed", 10), [], [[]]) == [[]]
