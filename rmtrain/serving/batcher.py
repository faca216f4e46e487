"""The queue between requests and the model: batches of waiting sequences, in order of arrival, for one worker or several.

All of it but the scoring itself runs in the event loop. A batch has the sequences of several requests, and a large request is spread over
several batches, so that no request computes more at once than the token budget.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Protocol

import torch

from rmtrain.batching.layout import Layout
from rmtrain.batching.plan import Costs
from rmtrain.data.comparison import TokenizedComparison, Tokens, common_prefix_length
from rmtrain.errors import NumericError
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scoring import TokenizedRows
from rmtrain.serving.shared_tokens import BatchTokens, group_by_prefix

ROW = TokenizedComparison("request", "", (), 0, 0, ())
Rewards = list[tuple[float, ...]]

logger = logging.getLogger("rmtrain")


class WorkerLost(Exception):
    """The process of a worker has ended."""


class Worker(Protocol):
    """Scores batches, one at a time, in a thread of its own."""

    thread: ThreadPoolExecutor

    def score(self, rows: Sequence[TokenizedComparison]) -> Rewards:
        """Return the rewards of each row, float32; raises NumericError, and torch.OutOfMemoryError."""
        ...


class LocalWorker:
    """Scores with the model of this process. Always in the same thread: torch has a team of threads for each that calls it."""

    def __init__(self, scorer: RewardScorer) -> None:
        self.scorer, self.thread = scorer, ThreadPoolExecutor(1, "scoring")

    def score(self, rows: Sequence[TokenizedComparison]) -> Rewards:
        """See `Worker.score`."""
        return self.scorer.rewards(rows)


class RemoteWorker:
    """Scores with the model of another process, which runs `answer_batches`."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.thread = connection, ThreadPoolExecutor(1, "rank")

    def score(self, rows: Sequence[TokenizedComparison]) -> Rewards:
        """See `Worker.score`; raises WorkerLost where the process has ended."""
        try:
            self.connection.send(rows)
            outcome: Rewards | Exception = self.connection.recv()
        except (OSError, EOFError) as error:
            raise WorkerLost from error
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def end(self, number: int) -> None:
        """End the process, which then exits as if it had received this signal."""
        with suppress(OSError):
            self.connection.send(number)
        self.connection.close()


def answer_batches(scorer: RewardScorer, connection: Connection) -> int | None:
    """Score the batches that a `RemoteWorker` sends, until it ends this process by a signal's number; None: the connection is lost."""
    while True:
        try:
            rows: Sequence[TokenizedComparison] | int = connection.recv()
        except (OSError, EOFError):
            return None
        if isinstance(rows, int):
            return rows
        outcome: Rewards | Exception
        try:
            outcome = scorer.rewards(rows)
        except (NumericError, torch.OutOfMemoryError) as error:
            outcome = type(error)(str(error))
        except Exception as error:
            outcome = RuntimeError(type(error).__name__)
        try:
            connection.send(outcome)
        except OSError:
            return None


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was accepted: its rows, and the rewards that are there so far. `answer` is done, or cancelled where nobody waits."""

    rows: Sequence[TokenizedComparison]
    answer: asyncio.Future[Rewards]
    rewards: list[list[float]] = field(default_factory=list)
    missing: int = 0

    @property
    def is_one_row(self) -> bool:
        """True for the responses to one prompt, such as a line of `rmtrain score`."""
        return len(self.rows) == 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence of a request: the number of its row, and of the response in that."""

    ticket: Ticket
    row: int
    response: int

    @property
    def sequence(self) -> Tokens:
        """Its tokens."""
        return self.ticket.rows[self.row].sequences[self.response]

    @property
    def is_open(self) -> bool:
        """True until it has a reward, which is never NaN."""
        return math.isnan(self.ticket.rewards[self.row][self.response])

    def note(self, reward: float) -> None:
        """Store its reward; the last one of a request answers it."""
        assert self.is_open, "each sequence is scored once"
        ticket = self.ticket
        ticket.rewards[self.row][self.response] = reward
        ticket.missing -= 1
        if not ticket.missing and not ticket.answer.done():
            ticket.answer.set_result([tuple(rewards) for rewards in ticket.rewards])


class Batcher:
    """Scores requests in order of arrival. Each worker takes a batch when it is free, so nothing waits for a batch to fill.

    Args:
        layout: of the model; only `shared_prefix` computes tokens once that requests have in common.
        max_tokens: tokens of a batch, computed once where they are shared. One sequence may have more.
    """

    def __init__(self, layout: Layout, max_tokens: int) -> None:
        self.layout, self.max_tokens = layout, max_tokens
        self.sent_tokens = self.computed_tokens = self.batches = 0
        self._pieces: deque[Piece] = deque()
        self._filled = asyncio.Event()

    def submit(self, rows: Sequence[TokenizedComparison]) -> Ticket:
        """Put a request into the queue. `answer` of the ticket will have the rewards of each row, or an exception."""
        ticket = Ticket(rows, asyncio.get_running_loop().create_future())
        ticket.rewards = [[float("nan")] * len(row.sequences) for row in rows]
        ticket.missing = sum(len(row.sequences) for row in rows)
        if not ticket.missing:
            ticket.answer.set_result([])
        self._pieces.extend(Piece(ticket, number, k) for number, row in enumerate(rows) for k in range(len(row.sequences)))
        self._filled.set()
        return ticket

    async def run(self, worker: Worker) -> None:
        """Score batches with a worker, until this task is cancelled or the worker is lost."""
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            try:
                await self._score(batch, worker)
            except WorkerLost:
                self._pieces.extendleft(piece for piece in reversed(batch) if piece.is_open)  # for the other workers
                self._filled.set()
                logger.warning("a process of the server has ended; its requests go to the others")
                return

    def _take(self) -> list[Piece]:
        """Take the next batch from the queue, and pass over requests that nobody waits for any more."""
        batch: list[Piece] = []
        tokens = BatchTokens(self.max_tokens, self.layout == "shared_prefix")
        while self._pieces:
            piece = self._pieces[0]
            if not piece.ticket.answer.done():
                if not tokens.add(piece.sequence):
                    break
                batch.append(piece)
            self._pieces.popleft()
        return batch

    async def _score(self, batch: Sequence[Piece], worker: Worker) -> None:
        """Score a batch. Where that fails, as one request can make it, each of its requests is scored alone."""
        try:
            rows, places = self._rows(batch)
            rewards = await asyncio.get_running_loop().run_in_executor(worker.thread, worker.score, rows)
        except WorkerLost:
            raise
        except Exception as error:
            tickets = dict.fromkeys(piece.ticket for piece in batch)
            if len(tickets) == 1:
                (ticket,) = tickets
                if not ticket.answer.done():
                    ticket.answer.set_exception(error)
                return
            for ticket in tickets:
                await self._score([piece for piece in batch if piece.ticket is ticket], worker)
            return
        self._count(rows)
        for of_row, its in zip(rewards, places, strict=True):
            for reward, place in zip(of_row, its, strict=True):
                batch[place].note(reward)

    def _rows(self, batch: Sequence[Piece]) -> tuple[Sequence[TokenizedComparison], list[Sequence[int]]]:
        """Return the rows to score, and for each response of each its place in the batch."""
        ticket = batch[0].ticket
        if ticket.is_one_row and len(batch) == len(ticket.rows[0].sequences) and batch[-1].ticket is ticket:
            return ticket.rows, [range(len(batch))]  # alone: to the bit as `rmtrain score` has it
        sequences = [piece.sequence for piece in batch]
        groups = [[number] for number in range(len(batch))]
        if self.layout == "shared_prefix":
            groups = group_by_prefix(sequences, self.max_tokens)
        rows = []
        for group in groups:
            members = tuple(sequences[number] for number in group)
            prefix = common_prefix_length(members) if len(members) > 1 else 0
            rows.append(replace(ROW, sequences=members, prefix_length=prefix, prompt_length=prefix))
        return rows, list(groups)

    def _count(self, rows: Sequence[TokenizedComparison]) -> None:
        data = TokenizedRows(rows)
        self.sent_tokens += int(data.total_tokens.sum())
        self.computed_tokens += int(Costs.of(data, self.layout).alone.sum())
        self.batches += 1
