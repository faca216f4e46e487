"""`rmtrain serve`: rewards over HTTP, by one process or several.

The first process reads and answers the requests. All processes score batches, each with a model of its own.
"""

import os
import secrets
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import NoReturn

from rmtrain.command_line.model_options import ServeOptions
from rmtrain.command_line.options import CommandResult
from rmtrain.commands.score import load_scorer
from rmtrain.engine.distributed import run_on_main, start_evaluation
from rmtrain.engine.rank import GracefulShutdown
from rmtrain.errors import RecipeError, Stopped, TryAgain
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.report.console import KeyValues
from rmtrain.serving.batcher import Batcher, LocalWorker, RemoteWorker, answer_batches
from rmtrain.serving.endpoints import Endpoints, ServerLimits
from rmtrain.serving.forms import Forms
from rmtrain.serving.server import TOKEN, RewardServer, bind, checked_token, url_of


def serve(options: ServeOptions, announce: Callable[[CommandResult], None]) -> NoReturn:
    """Serve until a signal comes, answer what was accepted, and raise `Stopped`.

    Args:
        announce: prints the address, once the server listens.

    Raises:
        RecipeError: the address cannot be used, or needs a token; or the model has no maximum length.
        CheckpointError: no model, or no score head.
        Stopped: a signal came. TryAgain: another process than this one has ended.
    """
    token = checked_token(options.host, os.environ.get(TOKEN))
    accelerator = start_evaluation()
    bound: list[socket.socket] = []
    run_on_main(
        accelerator, lambda: bound.append(bind(options.host, options.port))
    )  # before the model, which takes minutes to load
    # A name without a file, which nothing has to remove; the key keeps others out.
    address, key = run_on_main(accelerator, lambda: (f"\0rmtrain-{secrets.token_hex(8)}", secrets.token_bytes(32)))
    others = accelerator.num_processes - 1
    listener = Listener(address, "AF_UNIX", others, key) if others and bound else None
    scorer = load_scorer(options, accelerator)
    if scorer.limit.max_length is None:
        raise RecipeError(
            f"{options.model}: the model has no maximum length; set --max-length, which bounds the memory of a request"
        )
    scorer.choose_layout([])
    accelerator.wait_for_everyone()
    if not bound:
        _score_for_the_first(scorer, Client(address, "AF_UNIX", key))
    connections = [listener.accept() for _ in range(others)] if listener else []
    _answer(options, scorer, connections, ServerLimits(options.queue, options.timeout, token), bound[0], announce)


def _answer(
    options: ServeOptions,
    scorer: RewardScorer,
    connections: list[Connection],
    limits: ServerLimits,
    bound: socket.socket,
    announce: Callable[[CommandResult], None],
) -> NoReturn:
    name = Path(options.model).name if Path(options.model).is_absolute() else options.model
    layout = scorer.choose_layout([])
    about = {"model": name, "processes": 1 + len(connections), "layout": layout, **scorer.settings}
    batcher = Batcher(layout, scorer.max_tokens)
    endpoints = Endpoints(Forms(scorer, name), batcher, limits, about)
    others = [RemoteWorker(connection) for connection in connections]
    with GracefulShutdown() as stop:
        ready = partial(announce, _announcement(url_of(bound), about))
        RewardServer(endpoints, [LocalWorker(scorer), *others], stop, ready).serve_on(bound)
        assert stop.received is not None, "only a signal ends the server"
        for worker in others:
            worker.end(stop.received)
        raise Stopped(stop.received, f"stopped by {stop.received.name}; requests answered: {endpoints.answered:,}")


def _score_for_the_first(scorer: RewardScorer, connection: Connection) -> NoReturn:
    with GracefulShutdown() as stop:  # the first process still has requests to answer, and ends this one
        number = answer_batches(scorer, connection) or stop.received
        if number is None:
            raise TryAgain("the process that answers the requests has ended; start the server again")
        raise Stopped(number)


def _announcement(url: str, about: dict[str, object]) -> CommandResult:
    values = {
        "model": str(about["model"]),
        "serves": f"{url}/score, /get_reward (OpenRLHF, slime), /classify (verl, vLLM); GET /health, /metrics",
        "computes": f"{about['dtype']}, {about['layout']}, texts of up to {about['max_length']} tokens, processes: {about['processes']}",
        "stop": "Ctrl-C or SIGTERM; requests that were accepted are answered",
    }
    return CommandResult(KeyValues(values), {"url": url, **about})
