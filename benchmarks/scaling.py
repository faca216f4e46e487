"""Two processes of one thread against one process of two, under each strategy, and how much of a step its processes spend on one another.

The share of collectives is what is left of a step when its processes compute the same micro-batches with nothing between them: two
processes at the same time, each its own half, and no gradients exchanged. It holds the waiting for a rank that has more to do, too.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, Trace, figure, finish, machine, median_ratio, parser, show, take_turns
from benchmarks.ours import train_ours
from benchmarks.pairs import HH, encode, hh_rows, llama, read_comparisons, recipe_for, stored
from benchmarks.sampling import sample
from rmtrain.data.text.tokenizer import load_tokenizer
from rmtrain.engine.distributed import start

SHARDING = {
    "DDP": {},
    "FSDP2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
}
APART = "apart"


def compute(arguments: Namespace) -> Trace:
    """What one rank computes: a few steps of HH pairs under the strategy of its environment, or its part of them alone."""
    share = tuple(arguments.share) if arguments.share else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, _ = hh_rows(arguments.data, folder)
        batching = {"layout": "shared_prefix", "max_tokens": arguments.max_tokens}
        training = {"precision": "float32", "batch_size": arguments.batch_size}
        recipe = recipe_for(file, folder, llama(arguments.hidden), batching=batching, training=training)
        tokenizer = load_tokenizer(recipe.model, recipe.data)
        rows = encode(read_comparisons(recipe), tokenizer, recipe)
        measured = sample(rows, arguments.steps, arguments.batch_size, recipe.run.seed)
        warm, timed = (
            stored(some, folder / part) for part, some in (("warm", rows[: arguments.batch_size]), ("timed", measured))
        )
        return train_ours(recipe, tokenizer, warm, timed, start(recipe), share)


def options_of(arguments: Namespace) -> list[str]:
    names = ("data", "hidden", "max_tokens", "batch_size", "steps")
    return [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]


def run(strategy: str, processes: int, threads: int, arguments: Namespace) -> Trace:
    """The trace of the slowest of some processes under a strategy, each of so many threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **SHARDING.get(strategy, {})}
        command = [sys.executable, "-W", "ignore", __file__, "--child", *options_of(arguments)]
        if strategy == APART:
            command += ["--share", str(rank), str(processes)]
        elif processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment))
    printed = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), f"{strategy}: a process failed"
    return max((Trace(**json.loads(text.splitlines()[-1])) for text in printed), key=lambda trace: trace.seconds)


def main() -> None:
    """Measure, print, write; or be a process that is measured."""
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=HH, help="file of HH transcripts; where it is absent, pairs are generated")
    made.add_argument("--hidden", type=int, default=256, help="width of the llama")
    made.add_argument("--max-tokens", type=int, default=4096, help="budget of a micro-batch")
    made.add_argument("--batch-size", type=int, default=64, help="comparisons of a step")
    made.add_argument("--steps", type=int, default=3, help="steps that are timed")
    made.add_argument("--rounds", type=int, default=3, help="rounds of all runs")
    made.add_argument("--child", action="store_true", help="for the processes that are measured")
    made.add_argument("--share", type=int, nargs=2, metavar=("RANK", "WORLD"), help="with --child: compute the part of this rank")
    arguments = made.parse_args()
    if arguments.child:
        print(json.dumps(asdict(compute(arguments))), flush=True)
        os._exit(0)
    if arguments.quick:
        arguments.hidden, arguments.steps, arguments.rounds, arguments.batch_size = 64, 1, 1, 8
    about = machine()
    runs: dict[str, Callable[[], Trace]] = {"one process, two threads": partial(run, "DDP", 1, 2, arguments)}
    runs |= {f"{name}, two processes": partial(run, name, 2, 1, arguments) for name in SHARDING}
    runs["two halves, nothing between them"] = partial(run, APART, 2, 1, arguments)
    rounds = take_turns(runs, arguments.rounds)
    seconds = {name: [trace.seconds for trace in traces] for name, traces in rounds.items()}
    alone, apart = seconds["one process, two threads"], seconds["two halves, nothing between them"]
    lines, figures = [], []
    for name, spent in seconds.items():
        lines.append([name, median(spent), median_ratio(alone, spent)])
    for name in SHARDING:
        spent = seconds[f"{name}, two processes"]
        among = 1 - median_ratio(apart, spent)
        figures.append(
            figure(f"two processes of {name} against one with the same threads", f"{median_ratio(alone, spent):.2f} ×", "-")
        )
        figures.append(figure(f"share of a step of {name} in collectives, waiting included", f"{100 * among:.0f}%", "-"))
    show(f"hidden {arguments.hidden}, steps of {arguments.batch_size} HH pairs", ["run", "seconds", "× one process"], lines)
    losses = {name: traces[0].losses for name, traces in rounds.items() if not name.startswith("two halves")}
    reference = losses["one process, two threads"]
    worst = max(abs(a - b) for values in losses.values() for a, b in zip(values, reference, strict=True))
    assert worst < 1e-5, f"losses differ by {worst}"
    raw = {name: [asdict(trace) for trace in traces] for name, traces in rounds.items()}
    finish(arguments, {"machine": about, "runs": raw, "largest_loss_difference": worst}, figures)


if __name__ == "__main__":
    main()
